"""Which run a score is compared with, where a task was mended, run in part, or run under several settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.board import board
from leaderboard.board.cell import Cell
from leaderboard.compare import comparability
from leaderboard.compare_runs import compare_paths
from leaderboard.ingest import ingest
from leaderboard.store import noise_floor, queries
from leaderboard.store.database import open_store

BROKEN, MENDED = ({"process_results": f"def process_results(doc, results): return {value}"} for value in (0, 1))


def at(minute: int) -> str:
    """A time of the day on which all runs are made."""
    return f"2026-02-01T00:{minute:02d}:00+00:00"


def scores(kit: Any, share: float, seed: int, **options: Any) -> Any:
    """60 documents of which a share is right."""
    right = [float(i < 60 * share) for i in range(60)]
    return kit.Task({"acc": right}, log_likelihoods=kit.likelihoods(60, seed), **options)


def run(made: Any, recipe: str, minute: int, tasks: dict[str, Any], **changes: Any) -> Path:
    """A run of that minute; identities: task -> identity."""
    identities, dtype = changes.pop("identities", {}), changes.pop("dtype", "float32")
    changes = {"spec_id": f"{recipe}{minute}", "started": at(minute)} | changes
    place: Path = made.run(recipe, tasks, folder=f"{recipe}-{minute}", **changes)
    receipt = json.loads((place / "receipt.json").read_text())
    receipt["model"]["dtype"] = dtype
    receipt["tasks"] |= {name: {"identity": identity} for name, identity in identities.items()}
    (place / "receipt.json").write_text(json.dumps(receipt))
    return place


def cell(cells: Sequence[Cell], recipe: str, minute: int, task: str = "sums") -> Cell:
    """The cell of a run by its minute."""
    (found,) = [
        cell
        for cell in cells
        if (cell.recipe, cell.task) == (recipe, task) and cell.started is not None and cell.started.minute == minute
    ]
    return found


@pytest.mark.parametrize("known_by", ["identity", "configuration", "identity beside an equal configuration"])
class TestMendedTask:
    """The scorer of a task is mended, and the same command runs again."""

    def task(self, kit: Any, known_by: str, share: float, seed: int, form: Any) -> Any:
        return scores(kit, share, seed, config=form if known_by == "configuration" else {})

    def add(self, made: Any, kit: Any, known_by: str, minute: int, *, mended: bool) -> None:
        """Baseline and identity, which changes nothing."""
        share, form = (0.5, MENDED) if mended else (0.0, BROKEN)
        told = {"identities": {"sums": f"{mended}"}} if known_by.startswith("identity") else {}
        for k, recipe in enumerate(("baseline", "identity")):
            run(made, recipe, minute + k, {"sums": self.task(kit, known_by, share, minute + k, form)}, **told)

    def test_each_is_compared_with_its_own(self, made: Any, kit: Any, known_by: str) -> None:
        self.add(made, kit, known_by, 0, mended=False)
        self.add(made, kit, known_by, 10, mended=True)
        cells = made.board()
        for recipe, minute, delta in (("identity", 1, 0.0), ("identity", 11, 0.0), ("baseline", 0, None)):
            found = cell(cells, recipe, minute)
            assert found.delta == delta and found.verdict not in ("better", "worse"), found
        assert cell(cells, "baseline", 10).verdict == cell(cells, "baseline", 0).verdict == "baseline"
        assert any(note.startswith("an older baseline") for note in cell(cells, "baseline", 0).notes)
        assert not any("older" in note for note in cell(cells, "baseline", 10).notes)

    @pytest.mark.slow
    def test_mended_and_taken_back(self, made: Any, kit: Any, known_by: str) -> None:
        for minute, mended in ((0, False), (10, True), (20, False)):
            self.add(made, kit, known_by, minute, mended=mended)
        cells = made.board()
        newest, first = cell(cells, "baseline", 20), cell(cells, "baseline", 0)
        assert cell(cells, "identity", 21).baseline_run == cell(cells, "identity", 1).baseline_run == newest.run_id
        assert first.baseline_run == newest.run_id and first.verdict in ("same", "undecided") and first.delta == 0
        assert cell(cells, "identity", 11).baseline_run == cell(cells, "baseline", 10).run_id

    def test_only_a_baseline_of_the_other_form(self, made: Any, kit: Any, known_by: str) -> None:
        self.add(made, kit, known_by, 0, mended=False)
        told = {"identities": {"sums": "True"}} if known_by.startswith("identity") else {}
        run(made, "svd", 11, {"sums": self.task(kit, known_by, 0.5, 11, MENDED)}, **told)
        found = cell(made.board(), "svd", 11)
        expected = {
            "configuration": "task code or data differ: scoring",
            "identity": "task code or data differ (its configuration is the same)",
        }
        assert found.verdict == "incomparable" and found.notes == (expected[known_by.split()[0]],)


def test_two_runs_of_a_mended_task_are_not_compared_with_each_other(made: Any, kit: Any) -> None:
    first = run(made, "svd", 0, {"sums": scores(kit, 0.5, 0, config=BROKEN)})
    second = run(made, "svd", 1, {"sums": scores(kit, 0.9, 1, config=MENDED)})
    (found,) = compare_paths(first, second).cells
    assert found.verdict == "incomparable" and found.notes == ("task code or data differ: scoring",)


def test_other_examples_in_the_prompt_are_no_other_code(made: Any, kit: Any) -> None:
    """An identity is of a task with its examples: of two numbers of them it says nothing."""
    tasks = [
        queries.RunTaskRow(*(None,) * len(queries.RunTaskRow._fields))._replace(
            task="sums", identity=identity, num_fewshot=shots
        )
        for identity, shots in (("a", 0), ("b", 2), ("c", 2))
    ]
    assert comparability.task_difference(tasks[0], tasks[1]) is None
    assert "few-shot examples differ: baseline 0, this run 2" in comparability._differences(tasks[0], tasks[1])
    assert comparability.task_difference(tasks[1], tasks[2]) == "task code or data differ"


def test_where_nothing_says_what_a_task_was_it_is_compared(made: Any, kit: Any) -> None:
    """Plain files of two versions of lm-eval write configurations in two ways."""
    run(made, "baseline", 0, {"sums": scores(kit, 0.5, 0)})
    place = run(made, "svd", 1, {"sums": scores(kit, 0.5, 1, config=MENDED)})
    results = next(place.glob("results_*.json"))
    results.write_text(results.read_text().replace('"lm_eval_version": "0.4.13"', '"lm_eval_version": "0.4.12"'))
    found = cell(made.board(), "svd", 1)
    assert found.delta == 0 and "warning: lm-eval differs: baseline 0.4.13, this run 0.4.12" in found.notes


@pytest.mark.slow
@pytest.mark.parametrize("late", [True, False])
def test_a_run_that_says_what_it_ran_beside_ones_that_do_not(made: Any, kit: Any, late: bool) -> None:
    """The one of known identity is preferred, whenever it was made; a silent one serves where there is no other."""
    run(made, "baseline", 5, {"sums": scores(kit, 0.5, 0)})
    run(made, "svd", 7, {"sums": scores(kit, 0.5, 2)}, identities={"sums": "a"})
    found = cell(made.board(), "svd", 7)
    assert found.delta == 0 and any("the baseline does not say which task code" in note for note in found.notes)
    run(made, "baseline", 6 if late else 4, {"sums": scores(kit, 0.25, 1)}, identities={"sums": "a"})
    found = cell(made.board(), "svd", 7)
    assert found.baseline_score == 0.25 and not any("does not say" in note for note in found.notes)


class TestPinned:
    """A pinned run is the baseline where it ran what the score is of."""

    def cells(self, made: Any, database: Path, minute: int) -> list[Cell]:
        ingest(made.root, database)
        with open_store(database, read_only=False) as store:
            (pinned,) = [r for r in queries.runs(store) if r.started is not None and r.started.minute == minute]
            queries.pin_baseline(store, pinned.run_id, "try")
            return board(store)

    @pytest.mark.slow
    def test_of_another_form_of_the_task_it_gives_way(self, made: Any, kit: Any, database: Path) -> None:
        run(made, "baseline", 0, {"sums": scores(kit, 0.0, 0), "words": scores(kit, 0.5, 0)}, identities={"sums": "a"})
        run(made, "baseline", 1, {"sums": scores(kit, 0.5, 1), "words": scores(kit, 0.6, 1)}, identities={"sums": "b"})
        run(made, "svd", 2, {"sums": scores(kit, 0.5, 2), "words": scores(kit, 0.5, 2)}, identities={"sums": "b"})
        cells = self.cells(made, database, 0)
        sums, words = cell(cells, "svd", 2), cell(cells, "svd", 2, "words")
        assert sums.baseline_score == 0.5 and words.baseline_score == 0.5
        assert sums.baseline_run == cell(cells, "baseline", 1).run_id != words.baseline_run
        reason = "warning: the pinned baseline does not serve here: task code or data differ"
        assert any(note.startswith(reason) for note in sums.notes)
        assert not any("pinned" in note for note in words.notes)

    @pytest.mark.slow
    def test_where_no_other_serves_its_differences_are_named(self, made: Any, kit: Any, database: Path) -> None:
        run(made, "baseline", 0, {"sums": scores(kit, 0.0, 0)}, identities={"sums": "a"})
        run(made, "svd", 2, {"sums": scores(kit, 0.5, 2, shots=5)}, identities={"sums": "b"})
        found = cell(self.cells(made, database, 0), "svd", 2)
        # The prompts hold the examples, and so does the identity of a task.
        assert found.verdict == "incomparable" and len(found.notes) == 2
        assert found.notes[0].startswith("few-shot examples differ") and found.notes[1].startswith("documents are")


class TestSeveral:
    """Several baselines, each right for something."""

    def test_the_latest_that_ran_the_task(self, made: Any, kit: Any) -> None:
        run(made, "baseline", 0, {"sums": scores(kit, 0.4, 0), "words": scores(kit, 0.4, 0)})
        run(made, "baseline", 1, {"sums": scores(kit, 0.5, 1)})
        run(made, "svd", 2, {"sums": scores(kit, 0.5, 2), "words": scores(kit, 0.4, 2)})
        cells = made.board()
        assert cell(cells, "svd", 2).baseline_run == cell(cells, "baseline", 1).run_id
        assert cell(cells, "svd", 2, "words").baseline_run == cell(cells, "baseline", 0, "words").run_id

    @pytest.mark.slow
    def test_the_latest_goes_by_the_start_not_by_the_order_of_ingest(self, made: Any, kit: Any, database: Path) -> None:
        run(made, "svd", 2, {"sums": scores(kit, 0.5, 2)})
        for minute, share in ((1, 0.5), (0, 0.1)):
            run(made, "baseline", minute, {"sums": scores(kit, share, minute)})
            ingest(made.root, database)
        with open_store(database) as store:
            assert cell(board(store), "svd", 2).baseline_score == 0.5
        ingest(made.root, database, rebuild=True)
        with open_store(database) as store:
            assert cell(board(store), "svd", 2).baseline_score == 0.5

    def test_other_documents_shots_and_metrics_do_not_serve(self, made: Any, kit: Any) -> None:
        run(made, "baseline", 0, {"sums": scores(kit, 0.5, 0)})
        part = kit.Task({"acc": [1.0] * 20}, of=60, log_likelihoods=kit.likelihoods(20, 1))
        run(made, "baseline", 1, {"sums": part})
        run(made, "baseline", 2, {"sums": scores(kit, 0.9, 2, shots=3)})
        other = kit.Task({"other": [1.0] * 60}, log_likelihoods=kit.likelihoods(60, 3))
        run(made, "baseline", 3, {"sums": other})
        run(made, "svd", 4, {"sums": scores(kit, 0.5, 4)})
        found = cell(made.board(), "svd", 4)
        assert (found.baseline_score, found.delta) == (0.5, 0.0)

    def test_which_documents_is_said_where_they_differ(self, made: Any, kit: Any) -> None:
        run(made, "baseline", 0, {"sums": scores(kit, 0.5, 0)})
        part = kit.Task({"acc": [1.0] * 20}, of=60, log_likelihoods=kit.likelihoods(20, 1))
        run(made, "svd", 1, {"sums": part}, config={"limit": 20.0})
        found = cell(made.board(), "svd", 1)
        assert found.verdict == "incomparable" and found.notes == (
            "documents differ: 40 only in the baseline, 0 only in this run (baseline: all; this run: first 20 of 60"
            " documents)",
        )

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_settings_and_else_the_dtype_decide(self, made: Any, kit: Any, dtype: str) -> None:
        for minute, kind, share in ((0, "float32", 0.4), (1, "bfloat16", 0.5)):
            task = {"sums": scores(kit, share, minute)}
            run(made, "baseline", minute, task, settings_id=kind, dtype=kind, variant_id=kind)
        for minute, settings in ((2, dtype), (3, "new")):
            task = {"sums": scores(kit, 0.5, minute)}
            run(made, "svd", minute, task, settings_id=settings, dtype=dtype, variant_id=f"svd {settings}", weights={})
        cells = made.board()
        assert {cell(cells, "svd", minute).baseline_score for minute in (2, 3)} == {0.4 if dtype == "float32" else 0.5}

    @pytest.mark.slow
    def test_a_plain_run_comes_after_runs_of_the_recipe_baseline(self, made: Any, kit: Any) -> None:
        run(made, "svd", 2, {"sums": scores(kit, 0.5, 2), "words": scores(kit, 0.5, 2)})
        plain = {"sums": scores(kit, 0.3, 5), "words": scores(kit, 0.3, 5)}
        made.plain(plain, config={"model_sha": kit.sha("tiny")})
        assert {cell(made.board(), "svd", 2, task).baseline_score for task in ("sums", "words")} == {0.3}
        run(made, "baseline", 0, {"sums": scores(kit, 0.4, 0)})
        cells = made.board()
        assert cell(cells, "svd", 2).baseline_score == 0.4 and cell(cells, "svd", 2, "words").baseline_score == 0.3


def test_without_samples_the_part_of_the_documents_counts(made: Any, kit: Any) -> None:
    part = kit.Task({"acc": [1.0] * 20}, of=60)
    made.plain({"sums": kit.Task({"acc": [1.0] * 60})}, samples=False)
    made.plain({"sums": part}, samples=False, folder="part", config={"limit": 20.0})
    assert [found.baseline_run == found.run_id for found in made.board()] == [True, True]


@pytest.mark.slow
def test_the_noise_floor_is_of_one_form_of_a_task(made: Any, kit: Any, database: Path) -> None:
    for minute, size, form in ((0, 1, BROKEN), (1, 8, MENDED), (2, 16, MENDED)):
        run(made, "baseline", minute, {"sums": scores(kit, 0.1 * minute, minute, config=form)},
            config={"batch_size": size})  # fmt: skip
    ingest(made.root, database)
    with open_store(database) as store:
        (floors,) = noise_floor.floors(store).values()
    assert [(floor.batch_size, floor.other_batch_size) for floor in floors] == [("8", "16")]


@pytest.mark.parametrize("mended", [True, False])
def test_copied_answers_are_looked_for_in_what_two_runs_share(made: Any, kit: Any, mended: bool) -> None:
    """Two of three tasks answer alike to the bit; the third was mended between the runs, or its answers moved."""
    same = {name: kit.Task({"acc": [1.0] * 9}, log_likelihoods=kit.likelihoods(9, 0)) for name in ("a", "b")}
    for minute, recipe, form in ((0, "baseline", BROKEN), (1, "svd", MENDED if mended else BROKEN)):
        third = kit.Task({"acc": [1.0] * 9}, log_likelihoods=kit.likelihoods(9, minute), config=form)
        run(made, recipe, minute, {**same, "c": third})
    report = ingest(made.root, None)
    assert report.store is not None
    told = " ".join(row["warnings"] for row in report.store.rows("SELECT warnings FROM runs"))
    report.store.connection.close()
    assert ("every log-likelihood of a, b equals to the bit" in told) == mended
