"""Reading what lm-eval and we wrote, and refusing with a reason what nobody should have written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboard.errors import Unreadable
from leaderboard.ingest import ingest
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.reader import read_runs
from leaderboard.readers.records import Rejection, Run
from leaderboard.readers.results import model_arguments
from leaderboard.readers.same_document import DocumentText, content_digests
from leaderboard.readers.samples_reader import sample_score
from leaderboard.store.families import told_apart
from leaderboard.store.naming import short_identity


def only_run(path: Path) -> Run:
    """The one run at a path."""
    (found,) = find_runs(path)
    assert isinstance(found, Candidate)
    (run,) = read_runs(found)
    return run


def reason(path: Path) -> str:
    """Why the one thing at a path is refused."""
    (found,) = find_runs(path)
    if isinstance(found, Rejection):
        return found.reason
    with pytest.raises(Unreadable) as caught:
        read_runs(found)
    return str(caught.value)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def results_of(path: Path) -> Path:
    return next(path.glob("results_*.json"))


def test_a_run_directory_is_read_whole(made: Any, kit: Any) -> None:
    _, task = kit.pair(20, 10, lost=2)
    run = only_run(made.run("laser", {"sums": task}))
    assert (run.origin, run.status, run.variant.recipe_label, run.lm_eval_version, run.torch_version) == (
        "recipe",
        "complete",
        "laser",
        "0.4.13",
        "2.13.0+cpu",
    )
    (read,) = run.tasks
    assert (read.documents, read.version, read.num_fewshot, read.log_likelihoods) == (20, "1.0", 0, 20)
    assert [(s.metric, s.score, s.is_primary) for s in run.scores] == [("acc", 0.4, True)]
    assert run.matrices[0].rank_after == 2 and run.parameters_after == 992


def test_a_failed_run_names_its_tasks_and_reason(made: Any, kit: Any) -> None:
    run = only_run(made.failed("laser", {"sums": kit.pair(5, 3)[1]}))
    assert (run.status, run.failure_kind, run.failure_where) == ("failed", "non_finite_weight", "layers.0.up.weight")
    assert [task.task for task in run.tasks] == ["sums"]


def test_plain_output_with_and_without_samples(made: Any, kit: Any) -> None:
    task, _ = kit.pair(5, 3)
    assert only_run(made.plain({"sums": task})).tasks[0].documents == 5
    assert only_run(made.plain({"sums": task}, samples=False, folder="bare")).tasks[0].documents is None


def test_the_same_run_elsewhere_and_later_is_the_same(made: Any, kit: Any) -> None:
    _, task = kit.pair(5, 3)
    first = only_run(made.run("laser", {"sums": task}))
    again = only_run(
        made.run("laser", {"sums": task}, folder="copy", started="2026-02-02T00:00:00+00:00", seconds={"load": 9})
    )
    other = only_run(made.run("laser", {"sums": kit.pair(5, 3, lost=1)[1]}, folder="other"))
    assert first.run_id == again.run_id != other.run_id


def test_order_of_samples_does_not_matter(made: Any, kit: Any) -> None:
    path = made.run("laser", {"sums": kit.pair(9, 3)[1]})
    before = only_run(path)
    samples = next(path.glob("samples_*"))
    samples.write_text("".join(sorted(samples.read_text().splitlines(keepends=True), reverse=True)))
    after = only_run(path)
    assert (before.run_id, before.tasks[0].documents_hash) == (after.run_id, after.tasks[0].documents_hash)


def test_a_document_that_occurs_twice_is_two(made: Any, kit: Any) -> None:
    path = made.run("laser", {"sums": kit.pair(3, 1)[1]})
    samples = next(path.glob("samples_*"))
    samples.write_text(samples.read_text() * 2)
    read = only_run(path).tasks[0]
    assert read.documents == 6 and sorted(set(read.samples.occurrence)) == [0, 1]


def test_calibration_on_scored_documents_is_noticed(made: Any, kit: Any) -> None:
    _, task = kit.pair(5, 3)
    used = [kit.sha(json.dumps({"question": f"sums {i}?"}, indent=2)) for i in (1, 4, 99)]
    calibration = [{"step": 0, "task": "sums", "split": "train", "samples": 3, "seed": 0, "documents": used}]
    run = only_run(made.run("eigenprune", {"sums": task}, calibration=calibration))
    assert run.tasks[0].calibration_overlap == 2 and run.tasks[0].overlap_example in used


def asked(prompt: str, answer: str = " yes") -> list[str]:
    """The digests that a receipt has of a document to learn from."""
    return sorted(content_digests(DocumentText(((prompt, answer),), answer)))


def test_calibration_on_scored_documents_in_another_form_is_noticed(made: Any, kit: Any) -> None:
    _, task = kit.pair(5, 3)
    contents = [*asked("SUMS  1? with 0 examples"), *asked("sums 4?\nwith 0 examples", " Yes."), *asked("sums 2?")]
    used = {"step": 0, "task": "sums", "split": "train", "samples": 3, "documents": [kit.sha("x")]}
    run = only_run(made.run("eigenprune", {"sums": task}, calibration=[used | {"contents": contents}]))
    hashes = {kit.sha(json.dumps({"question": f"sums {i}?"}, indent=2)) for i in (1, 4)}
    assert run.tasks[0].calibration_overlap == 2 and run.tasks[0].overlap_example == min(hashes)
    # A receipt of before has no digests, and one that somebody spoiled has none that can be read.
    for place, kept in enumerate(({}, {"contents": 7})):
        older = only_run(made.run("eigenprune", {"sums": task}, folder=f"o{place}", calibration=[used | kept]))
        assert older.tasks[0].calibration_overlap == 0


def test_calibration_on_scored_documents_is_noticed_behind_examples(made: Any, kit: Any) -> None:
    path = made.run(
        "eigenprune",
        {"sums": kit.Task({"acc": [1.0] * 5}, shots=2)},
        calibration=[{"task": "sums", "documents": [], "contents": asked("Which sum is 3?")}],
    )
    (samples,) = path.glob("samples_*")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    for place, line in enumerate(lines):
        line["arguments"]["gen_args_0"]["arg_0"] = f"Which sum is 9? yes\n\nWhich sum is {place}?"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert only_run(path).tasks[0].calibration_overlap == 1


def test_a_recipe_that_was_chosen_on_scored_documents_is_noticed(made: Any, kit: Any) -> None:
    _, task = kit.pair(5, 3)
    for place, chosen_on in enumerate((asked("sums 1? with 0 examples"), "none", [3])):
        path = made.run("mine", {"sums": task}, folder=f"r{place}")
        resolved = {"steps": [], "chosen_on": chosen_on}
        edit(path / "receipt.json", lambda receipt, resolved=resolved: receipt["recipe"].update(resolved=resolved))
        run = only_run(path)
        assert run.tasks[0].calibration_overlap == (not place)


def test_nan_is_kept_as_text_and_never_as_a_number(made: Any, kit: Any) -> None:
    task = kit.Task({"acc": [1.0, float("nan")]}, scores={"acc": float("nan")})
    run = only_run(made.run("laser", {"sums": task}))
    assert (run.scores[0].score, run.scores[0].reported) == (None, "nan")
    assert [found.scores["acc"].value for found in run.tasks[0].samples.outcomes] == [1.0, None]


def test_primary_metric_is_the_named_one(made: Any, kit: Any) -> None:
    task = kit.Task(
        {"acc": [1.0], "log_odds": [0.3]}, metadata={"primary_metric": "log_odds", "best_value": {"log_odds": 0}}
    )
    run = only_run(made.run("laser", {"bias": task}))
    assert {(s.metric, s.is_primary, s.best_value) for s in run.scores} == {
        ("acc", False, None),
        ("log_odds", True, 0.0),
    }


def test_a_task_may_bound_what_one_document_counts_for(made: Any, kit: Any) -> None:
    task = kit.Task({"acc": [1.0], "log_odds": [0.3]}, metadata={"bound": {"log_odds": 2}})
    run = only_run(made.run("laser", {"bias": task}))
    assert {(score.metric, score.bound) for score in run.scores} == {("acc", None), ("log_odds", 2.0)}


class TestClusters:
    """Which documents depend on each other."""

    def task(self, kit: Any, passages: list[str], **options: Any) -> Any:
        return kit.Task(
            {"acc": [1.0] * len(passages)}, fields={"passage": passages, "topic": passages[::-1]}, **options
        )

    def clusters(self, made: Any, name: str, task: Any) -> tuple[str | None, list[str | None]]:
        (found,) = only_run(made.run("laser", {name: task})).tasks
        return found.cluster_by, [document.cluster for document in found.samples.documents]

    def test_of_lm_evals_own_tasks_are_known(self, made: Any, kit: Any) -> None:
        by, found = self.clusters(made, "boolq", self.task(kit, ["a", "a", "b"]))
        assert by == "passage" and found == ['"a"', '"a"', '"b"']

    def test_the_task_says_more_than_the_table(self, made: Any, kit: Any) -> None:
        by, found = self.clusters(made, "boolq", self.task(kit, ["a", "a", "b"], metadata={"cluster_by": "topic"}))
        assert by == "topic" and found == ['"b"', '"a"', '"a"']

    def test_other_tasks_have_none(self, made: Any, kit: Any) -> None:
        assert self.clusters(made, "sums", self.task(kit, ["a", "b"])) == (None, [None, None])

    def test_a_long_passage_is_known_by_its_digest(self, made: Any, kit: Any) -> None:
        _, found = self.clusters(made, "drop", self.task(kit, ["a" * 500, "a" * 500, "b" * 500]))
        assert found[0] == found[1] != found[2] and all(len(name) == 32 for name in found)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, (1.0, None, None)),
        (True, (1.0, None, None)),
        (float("inf"), (None, None, None)),
        ("0.25", (None, None, '"0.25"')),
        ([1, 0], (None, None, "[1,0]")),
    ],
)
def test_kinds_of_sample(value: object, expected: tuple[object, ...]) -> None:
    assert tuple(sample_score("f1", value)) == expected


def test_log_likelihoods_with_weights() -> None:
    assert tuple(sample_score("word_perplexity", [-5.5, 12])) == (-5.5, 12.0, None)
    assert tuple(sample_score("word_perplexity", [float("-inf"), 12])) == (None, None, None)


def test_model_arguments_in_both_forms() -> None:
    assert model_arguments("pretrained=a/b,dtype=float16") == model_arguments({"pretrained": "a/b", "dtype": "float16"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ('{"results": {', "is not JSON, or is cut off"),
        ("[1, 2]", "not a results file"),
        ('{"results": {}}', "holds no results"),
        ('{"results": []}', "not a results file"),
        ('{"results": {"t": {"acc": 0.5}}, "config_general": {}}', "of lighteval"),
        ('{"results": {"t": 7}}', "no score that can be read"),
        ("[" * 100_000, "nested too deeply"),
        ('{"results": ' + "9" * 5000 + "}", "number that cannot be read"),
        ('{"model": "not ours"}', "not a results file"),
    ],
)
def test_what_is_no_results_file_is_refused_with_its_reason(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "results_x.json").write_text(text)
    assert expected in reason(tmp_path)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "results_x.json").write_bytes(b'{"results": "\xff\xfe"}')
    assert "not UTF-8" in reason(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("format", 2, "format 2"),
        ("status", "half", "status"),
        ("model", {}, "model.name"),
        ("matrices", [{"name": 3}], "matrices.0.name"),
        ("spec_id", None, "spec_id"),
        ("calibration", "all", "calibration"),
        ("status", "failed", "not why"),
    ],
)
def test_a_bad_receipt_is_refused_with_its_reason(made: Any, kit: Any, key: str, value: object, expected: str) -> None:
    path = made.run("laser", {"sums": kit.pair(3, 1)[1]})
    edit(path / "receipt.json", lambda receipt: receipt.update({key: value}))
    assert expected in reason(path)


def test_what_is_missing_is_said(made: Any, kit: Any) -> None:
    path = made.run("laser", {"sums": kit.pair(30, 10)[1]})
    samples = next(path.glob("samples_*"))
    whole = samples.read_text()
    samples.write_text("".join(whole.splitlines(keepends=True)[:20]))
    assert "20 of 30 documents" in reason(path)
    samples.write_text(whole[:-40])
    assert "line 30 is not JSON, or is cut off" in reason(path)
    results_of(path).unlink()
    assert "no results_*.json" in reason(path)


def test_hostile_values_do_not_raise(made: Any, kit: Any) -> None:
    path = made.run("laser", {"sums": kit.pair(2, 1)[1]})

    def spoil(data: Any) -> None:
        data["results"]["sums"].update({"x,\ud800": 1e400, "acc_norm,none": True, "name": [1], "sample_len": "many"})
        data["results"]["../../etc"] = {"acc,none": 0.5, "acc_stderr,none": {"a": 1}}
        data["configs"] = {"sums": [1], "../../etc": {"metric_list": "acc", "num_fewshot": 1e300, "metadata": 3}}
        data.update(
            {
                "versions": 3,
                "n-shot": None,
                "higher_is_better": "yes",
                "config": {"model_args": 7, "batch_size": [1]},
                "date": 1e300,
            }
        )
        data["model_name"] = "<script>\x00\ud800"

    edit(results_of(path), spoil)
    run = only_run(path)
    assert {score.task for score in run.scores} == {"sums", "../../etc"}
    assert next(task for task in run.tasks if task.task == "../../etc").samples is None


def test_links_out_of_the_folder_are_not_followed(made: Any, kit: Any, tmp_path: Path) -> None:
    secret = made.run("laser", {"sums": kit.pair(3, 1)[1]}).parent
    inside = tmp_path / "given"
    inside.mkdir()
    (inside / "folder").symlink_to(secret, target_is_directory=True)
    (inside / "results_2026.json").symlink_to(results_of(secret / "laser-0123456789"))
    assert list(find_runs(inside)) == []


def test_a_run_being_written_is_not_looked_at(made: Any, kit: Any) -> None:
    made.run("laser", {"sums": kit.pair(3, 1)[1]}, folder=".laser-0123456789.tmp-77")
    assert list(find_runs(made.root)) == []


def test_nothing_there_and_no_results_file(tmp_path: Path) -> None:
    assert reason(tmp_path / "absent") == "there is nothing at this path"
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert "not a results file" in reason(tmp_path / "weights.bin")


def test_samples_without_results_are_a_run_whose_scores_are_means(made: Any, kit: Any) -> None:
    file = made.plain({"sums": kit.pair(10, 4)[0]})
    file.unlink()
    run = only_run(made.root)
    assert [(task.task, task.documents) for task in run.tasks] == [("sums", 10)]
    assert [(s.metric, s.score, s.higher_is_better) for s in run.scores] == [("acc", 0.4, True)]
    assert "its results file is missing" in run.warnings[0]


def test_lines_that_are_no_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "samples_x.jsonl").write_text('{"text": "a corpus"}\n')
    assert "not a samples file" in reason(tmp_path)


OLD = {"acc": 0.25, "acc_stderr": 0.01, "ppl": 20.0}


def test_results_from_before_filters(tmp_path: Path) -> None:
    """The form of lm-eval 0.2 and 0.3: metrics without a filter, settings in `config`."""
    config = {"model": "hf-causal", "model_args": "pretrained=a/b,revision=step7", "num_fewshot": 3, "device": "cuda:0"}
    (tmp_path / "old.json").write_text(
        json.dumps({"results": {"piqa": OLD}, "versions": {"piqa": 0}, "config": config})
    )
    run = only_run(tmp_path)
    assert (run.variant.model_name, run.variant.revision, run.backend, run.device) == (
        "a/b",
        "step7",
        "hf-causal",
        "cuda:0",
    )
    assert [(s.metric, s.filter, s.score, s.stderr, s.higher_is_better) for s in run.scores] == [
        ("acc", "none", 0.25, 0.01, True),
        ("ppl", "none", 20.0, None, False),
    ]
    assert [(t.task, t.version, t.num_fewshot, t.samples) for t in run.tasks] == [("piqa", "0", 3, None)]


def test_results_with_several_dates_are_as_many_runs(tmp_path: Path) -> None:
    folder = tmp_path / "bloom"
    folder.mkdir()
    rows = {
        "piqa": {"2022-07-06-16-30-12": {"acc": 0.5, "prompt_name": "x"}, "2022-07-07-16-30-12": {"acc": 0.6}},
        "rte": {"2022-07-01-00-00-00": {"acc": 0.7}},
    }
    (folder / "final.json").write_text(json.dumps({"results": rows, "versions": {"piqa": 0}}))
    (found,) = find_runs(folder)
    assert isinstance(found, Candidate)
    runs = read_runs(found)
    assert [[(s.task, s.score) for s in run.scores] for run in runs] == [[("piqa", 0.6), ("rte", 0.7)], [("piqa", 0.5)]]
    assert {run.variant.model_name for run in runs} == {"bloom/final"}


def test_every_real_file_from_elsewhere_lands(shared: Path) -> None:
    folder = shared / "data" / "lm_eval_results"
    if not folder.is_dir():
        pytest.skip("no files from elsewhere")
    found = list(find_runs(folder))
    assert [item for item in found if isinstance(item, Rejection)] == []
    assert len(found) == 61 and all(read_runs(item) for item in found)


class TestDirections:
    """Whether more is better, from every place where lm-eval has written it."""

    def directions(self, made: Any, kit: Any, change: Callable[[Any], None], metric: str = "loss") -> list[bool | None]:
        path = made.plain({"sums": kit.pair(5, 3, metric=metric)[0]})
        edit(path, change)
        return [score.higher_is_better for score in only_run(path).scores if score.metric == metric]

    @pytest.mark.parametrize("higher", [True, False])
    def test_in_the_list_of_metrics(self, made: Any, kit: Any, higher: bool) -> None:
        """lm-eval 0.4.0 to 0.4.2."""

        def change(data: Any) -> None:
            del data["higher_is_better"]
            data["configs"]["sums"]["metric_list"] = [{"metric": "loss", "higher_is_better": higher}]

        assert self.directions(made, kit, change) == [higher]

    @pytest.mark.parametrize("empty", [None, {}, {"sums": None}, {"sums": {}}, {"sums": {"loss": None}}, [1]])
    def test_where_the_newer_place_says_nothing(self, made: Any, kit: Any, empty: Any) -> None:
        def change(data: Any) -> None:
            data["higher_is_better"] = empty
            data["configs"]["sums"]["metric_list"] = [{"metric": "loss", "higher_is_better": False}]

        assert self.directions(made, kit, change) == [False]

    def test_the_newer_place_comes_first(self, made: Any, kit: Any) -> None:
        def change(data: Any) -> None:
            data["higher_is_better"] = {"sums": {"loss": False}}
            data["configs"]["sums"]["metric_list"] = [{"metric": "loss", "higher_is_better": True}]

        assert self.directions(made, kit, change) == [False]

    @pytest.mark.parametrize("text", ["def loss(items):\n    return 1\n", "<function loss at 0x7d5febf3e8e0>"])
    def test_of_a_metric_that_is_a_function(self, made: Any, kit: Any, text: str) -> None:
        def change(data: Any) -> None:
            del data["higher_is_better"]
            data["configs"]["sums"]["metric_list"] = [{"metric": text, "higher_is_better": False}]

        assert self.directions(made, kit, change) == [False]

    @pytest.mark.parametrize("listed", [None, "x", [], [None], [{"metric": "loss"}], [{"higher_is_better": False}]])
    @pytest.mark.parametrize(("metric", "known"), [("loss", None), ("acc", True), ("word_perplexity", False)])
    def test_else_as_known(self, made: Any, kit: Any, listed: Any, metric: str, known: bool | None) -> None:
        def change(data: Any) -> None:
            del data["higher_is_better"]
            data["configs"]["sums"]["metric_list"] = listed

        assert self.directions(made, kit, change, metric) == [known]


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda data: None, 50),
        (lambda data: data["results"]["sums"].pop("sample_len"), 50),
        (lambda data: (data["results"]["sums"].pop("sample_len"), data.pop("n-samples")), None),
        (
            lambda data: (
                data["results"]["sums"].pop("sample_len"),
                data.pop("n-samples"),
                data["config"].update(limit=30.0),
            ),
            30,
        ),
        (
            lambda data: (
                data["results"]["sums"].pop("sample_len"),
                data.pop("n-samples"),
                data["config"].update(limit=0.5),
            ),
            None,
        ),
        (
            lambda data: (
                data["results"]["sums"].pop("sample_len"),
                data.pop("n-samples"),
                data["config"].update(limit=300),
                data["results"]["sums"].update({"acc_stderr,none": (0.4 * 0.6 / 49) ** 0.5}),
            ),
            50,
        ),
    ],
    ids=["the row", "n-samples", "nothing", "limit", "a share as limit", "the standard error"],
)
def test_how_many_documents_a_file_without_samples_says(
    made: Any, kit: Any, change: Callable[[Any], None], count: int | None
) -> None:
    path = made.plain({"sums": kit.pair(50, 20)[0]}, samples=False)
    edit(path, change)
    (task,) = only_run(path).tasks
    assert (task.documents, task.sample_count) == (None, count)


def test_how_many_documents_a_file_from_before_0_4_says(tmp_path: Path) -> None:
    row = {"acc": 0.4, "acc_stderr": (0.4 * 0.6 / 871) ** 0.5}
    (tmp_path / "old.json").write_text(json.dumps({"results": {"sums": row}, "versions": {"sums": 0}}))
    assert [task.sample_count for task in only_run(tmp_path / "old.json").tasks] == [None]  # 0.4 of 872 is no number
    row = {"acc": 0.5, "acc_stderr": (0.25 / 871) ** 0.5}
    (tmp_path / "old.json").write_text(json.dumps({"results": {"sums": row}, "versions": {"sums": 0}}))
    assert [task.sample_count for task in only_run(tmp_path / "old.json").tasks] == [872]


class TestFilesOfAReceipt:
    """A receipt lists its run's files; others in their place are not that run."""

    @pytest.fixture
    def run(self, made: Any, kit: Any) -> Path:
        path = made.run("laser", {"sums": kit.pair(20, 10)[0]})
        receipt = json.loads((path / "receipt.json").read_text())
        receipt["files"] = [
            {
                "name": file.name,
                "bytes": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in sorted(path.iterdir())
            if file.name != "receipt.json"
        ]
        (path / "receipt.json").write_text(json.dumps(receipt))
        return path

    def test_as_they_were_written(self, made: Any, run: Path) -> None:
        assert [cell.recipe for cell in made.board()] == ["laser"]

    @pytest.mark.parametrize("pattern", ["results_*", "samples_*"])
    def test_a_changed_one_is_refused(self, made: Any, run: Path, pattern: str) -> None:
        (file,) = run.glob(pattern)
        file.write_text(file.read_text().replace("1.0", "0.0", 1))
        (rejected,) = ingest(made.root, None).rejected
        assert f"{file.name} is not as it was written" in rejected.reason

    def test_one_of_another_run_is_refused(self, made: Any, run: Path) -> None:
        (file,) = run.glob("results_*")
        file.rename(file.with_name("results_2026-02-02T03-04-05.678901.json"))
        (rejected,) = ingest(made.root, None).rejected
        assert "is none of the run's files" in rejected.reason


@pytest.mark.parametrize("written", ["m2/model/", "./m2/model", ".//m2/model//"])
def test_a_folder_is_one_model_however_it_is_written(made: Any, kit: Any, written: str) -> None:
    before, after = kit.pair(50, 20, lost=2)
    model = {"name": "model", "pretrained": "m2/model", "identity": kit.sha("m"), "dtype": "float32"}
    made.run("baseline", {"sums": before}, model=model["name"])
    made.run("laser", {"sums": after}, model=model["name"])
    for label, place in (("baseline", "m2/model"), ("laser", written)):
        (receipt,) = made.root.glob(f"model/{label}*/receipt.json")
        data = json.loads(receipt.read_text())
        data["model"] |= {**model, "pretrained": place}
        receipt.write_text(json.dumps(data))
    assert len({cell.model_key for cell in made.board()}) == 1


def test_models_of_one_name_are_told_apart_by_what_differs() -> None:
    identities = {"a": "sha256:1234567890", "b": "sha256:1299999999", "c": "org/m@abcdef0123"}
    models = told_apart([(key, "m", short_identity(identity)) for key, identity in identities.items()])
    assert [model.shown for model in models] == ["m (12345678)", "m (12999999)", "m (abcdef01)"]


@pytest.mark.parametrize("row", [{"bypass,none": 999, "bypass_stderr,none": "N/A"}, {"alias": "sums", "sample_len": 0}])
def test_predictions_alone_have_no_row(made, kit, row: dict[str, Any]) -> None:
    outputs, _ = kit.pair(20, 15)
    file = made.plain({"sums": outputs})
    data = json.loads(file.read_text())
    data["results"]["sums"] = row
    data["configs"]["sums"]["metric_list"] = [{"metric": "bypass"}]
    file.write_text(json.dumps(data))
    (rejected,) = ingest([file.parent], None).rejected
    assert "--predict_only, which computes no scores" in rejected.reason


def test_records_of_sweeps_are_no_runs(tmp_path: Path) -> None:
    cell = tmp_path / "sweeps" / "low-rank" / "cells" / "demo-laser-1"
    cell.mkdir(parents=True)
    (cell / "manifest.json").write_text("{}")
    assert len(list(find_runs(tmp_path))) == 1  # a folder that only has such a name is looked at
    (tmp_path / "sweeps" / "low-rank" / "plan.json").write_text("{}")
    assert list(find_runs(tmp_path)) == []
