"""Reading what lm-eval and we wrote, and refusing with a reason what nobody should have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboard.errors import Unreadable
from leaderboard.finding import Candidate, find_runs
from leaderboard.reading import read_run
from leaderboard.records import Rejection, Run
from leaderboard.results_file import model_arguments
from leaderboard.samples_file import sample_score


def only_run(path: Path) -> Run:
    """The one run at a path."""
    (found,) = find_runs(path)
    assert isinstance(found, Candidate)
    return read_run(found)


def reason(path: Path) -> str:
    """Why the one thing at a path is refused."""
    (found,) = find_runs(path)
    if isinstance(found, Rejection):
        return found.reason
    with pytest.raises(Unreadable) as caught:
        read_run(found)
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
    assert (run.origin, run.status, run.variant.recipe_label, run.lm_eval_version, run.torch_version) == ("recipe", "complete", "laser", "0.4.13", "2.13.0+cpu")
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
    again = only_run(made.run("laser", {"sums": task}, folder="copy", started="2026-02-02T00:00:00+00:00", seconds={"load": 9}))
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
    assert read.documents == 6 and sorted({sample.occurrence for sample in read.samples}) == [0, 1]


def test_calibration_on_scored_documents_is_noticed(made: Any, kit: Any) -> None:
    _, task = kit.pair(5, 3)
    used = [kit.sha(json.dumps({"question": f"sums {i}?"}, indent=2)) for i in (1, 4, 99)]
    calibration = [{"step": 0, "task": "sums", "split": "train", "samples": 3, "seed": 0, "documents": used}]
    run = only_run(made.run("eigenprune", {"sums": task}, calibration=calibration))
    assert run.tasks[0].calibration_overlap == 2 and run.tasks[0].overlap_example in used


def test_nan_is_kept_as_text_and_never_as_a_number(made: Any, kit: Any) -> None:
    task = kit.Task({"acc": [1.0, float("nan")]}, scores={"acc": float("nan")})
    run = only_run(made.run("laser", {"sums": task}))
    assert (run.scores[0].score, run.scores[0].reported) == (None, "nan")
    assert [sample.scores["acc"].value for sample in run.tasks[0].samples] == [1.0, None]


def test_primary_metric_is_the_named_one(made: Any, kit: Any) -> None:
    task = kit.Task({"acc": [1.0], "log_odds": [0.3]}, metadata={"primary_metric": "log_odds", "best_value": {"log_odds": 0}})
    run = only_run(made.run("laser", {"bias": task}))
    assert {(s.metric, s.is_primary, s.best_value) for s in run.scores} == {("acc", False, None), ("log_odds", True, 0.0)}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, (1.0, None, None)), (True, (1.0, None, None)), (float("inf"), (None, None, None)), ("0.25", (None, None, '"0.25"')), ([1, 0], (None, None, "[1,0]"))],
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
        ('{"results": {"t": {"acc": 0.5}}}', "before lm-eval 0.4"),
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
        ("format", 2, "format 2"), ("status", "half", "status"), ("model", {}, "model.name"), ("matrices", [{"name": 3}], "matrices.0.name"),
        ("spec_id", None, "spec_id"), ("calibration", "all", "calibration"), ("status", "failed", "not why"),
    ],
)  # fmt: skip
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
        data.update({"versions": 3, "n-shot": None, "higher_is_better": "yes", "config": {"model_args": 7, "batch_size": [1]}, "date": 1e300})
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


def test_samples_without_results_are_reported(made: Any, kit: Any) -> None:
    file = made.plain({"sums": kit.pair(3, 1)[0]})
    file.unlink()
    assert "samples without the results file" in reason(made.root)


def test_real_files_from_elsewhere(shared: Path) -> None:
    folder = shared / "data" / "lm_eval_results"
    if not folder.is_dir():
        pytest.skip("no files from elsewhere")
    read, refused = 0, []
    for found in find_runs(folder):
        try:
            assert isinstance(found, Candidate)
            read_run(found)
            read += 1
        except Unreadable as error:
            refused.append(str(error))
    assert read >= 37
    assert all("before lm-eval 0.4" in text for text in refused)
