"""A recipe against controls of its own: the same documents, a verdict of its own, and said wherever the recipe is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import leaderboard
from leaderboard import statistics
from leaderboard.board import across_models
from leaderboard.board.board import board
from leaderboard.board.cell import Cell
from leaderboard.compare_runs import compare_paths, controls_beside, with_controls
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.store.deletions import delete
from leaderboard.terminal.table import render

COUNT, RIGHT = 200, 100


@pytest.fixture
def variant(made: Any, kit: Any) -> Any:
    """Writes the run of a recipe, or of a control of one, that gains some documents and loses others."""

    def write(recipe: str, gained: int, *, control: str | None = None, lost: int = 0, task: str = "sums") -> Path:
        label = f"{recipe}+{control}" if control else recipe
        answers = kit.binary(COUNT, RIGHT, gained=gained, lost=lost)[1]
        likelihoods = kit.likelihoods(COUNT, sum(map(ord, label)))
        run = made.run(label, {task: kit.Task({"acc": answers}, log_likelihoods=likelihoods)})
        if control:
            receipt = json.loads((run / "receipt.json").read_text())
            receipt["recipe"] |= {"control": control, "control_of": kit.sha(recipe)}
            (run / "receipt.json").write_text(json.dumps(receipt))
        return run

    return write


def cell_of(cells: list[Cell], recipe: str) -> Cell:
    (found,) = [cell for cell in cells if cell.recipe == recipe]
    return found


def test_better_than_the_baseline_and_not_than_its_control_cannot_be_missed(made: Any, variant: Any) -> None:
    variant("baseline", 0)
    variant("svd", 60)
    variant("svd", 55, control="random-subspace")
    cells = made.board()
    svd = cell_of(cells, "svd")
    (pair,) = svd.against_controls
    assert (svd.verdict, pair.verdict, svd.beats_controls) == ("better", "undecided", False)
    assert pair.delta == pytest.approx(5 / COUNT) and (pair.lost, pair.gained) == (0, 5)
    assert pair.control == "random-subspace" and pair.baseline_run == cell_of(cells, "svd+random-subspace").run_id
    for width in (80, 120):
        lines = render(cells, width=width).splitlines()
        at = next(place for place, line in enumerate(lines) if line.startswith("  svd "))
        assert lines[at + 1].startswith("    ! better than the baseline, NOT shown to be better than its control")
        assert all(len(line) <= width for line in lines)
    assert "\x1b[33;1m    ! better than the baseline, NOT" in render(cells, color=True)
    assert cell_of(cells, "svd+random-subspace").beats_controls is None


@pytest.mark.slow
def test_better_than_both_is_said_and_so_is_a_control_of_a_recipe_that_is_not_better(made: Any, variant: Any) -> None:
    variant("baseline", 0)
    variant("svd", 60)
    variant("svd", 0, control="random-subspace", lost=2)
    variant("laser", 0, lost=60)
    variant("laser", 0, control="random-subspace")
    cells = made.board()
    assert cell_of(cells, "svd").beats_controls is True and cell_of(cells, "laser").beats_controls is False
    text = render(cells, width=120)
    assert ". better than the baseline, better than its control random-subspace: +0.3100 [" in text
    assert ". against its control random-subspace: -0.3000 [" in text and "NOT better" not in text


@pytest.mark.slow
def test_the_correction_is_over_all_control_comparisons_of_the_model_and_over_them_alone(
    made: Any, variant: Any
) -> None:
    variant("baseline", 0)
    gains = {"a": 6, "b": 7, "c": 9, "d": 0, "e": 1}
    for recipe, gained in gains.items():
        variant(recipe, gained)
        variant(recipe, 0, control="random-subspace", lost=1)
    cells = made.board()
    pairs = [pair for cell in cells for pair in cell.against_controls]
    assert len(pairs) == len(gains)
    corrected = statistics.benjamini_hochberg([pair.p_value for pair in pairs])
    assert [pair.q_value for pair in pairs] == pytest.approx(list(corrected))
    others = [cell for cell in cells if cell.p_value is not None]
    assert [c.q_value for c in others] == pytest.approx(
        list(statistics.benjamini_hochberg([c.p_value for c in others]))
    )


@pytest.mark.slow
def test_every_control_counts(made: Any, variant: Any) -> None:
    variant("baseline", 0)
    variant("svd", 60)
    variant("svd", 0, control="shuffled-labels", lost=3)
    variant("svd", 58, control="random-subspace")
    svd = cell_of(made.board(), "svd")
    assert [pair.control for pair in svd.against_controls] == ["random-subspace", "shuffled-labels"]
    assert [pair.verdict for pair in svd.against_controls] == ["undecided", "better"] and svd.beats_controls is False
    frame = leaderboard.board(made.root).to_frame().set_index("recipe")
    assert frame.loc["svd", "control_verdict"] == "undecided"


def test_a_control_that_was_asked_something_else_gives_no_verdict(made: Any, kit: Any, variant: Any) -> None:
    variant("baseline", 0)
    variant("svd", 60)
    run = variant("svd", 0, control="random-subspace", lost=3)
    (results,) = run.glob("results_*.json")
    results.write_text(
        results.read_text().replace('"version": 1.0', '"version": 2.0').replace('1.0}, "n-s', '2.0}, "n-s')
    )
    svd = cell_of(made.board(), "svd")
    assert svd.verdict == "better" and svd.beats_controls is False
    assert svd.against_controls[0].verdict == "incomparable"
    assert "cannot be compared with its control random-subspace: task version" in render([svd], width=120)


@pytest.mark.slow
def test_of_a_control_that_was_run_again_the_latest_that_was_asked_the_same_speaks(
    made: Any, kit: Any, database: Path, variant: Any
) -> None:
    variant("baseline", 0)
    variant("svd", 60)
    first = variant("svd", 0, control="random-subspace", lost=3)
    ingest(made.root, database)
    first.rename(made.root / "first")
    variant("svd", 60, control="random-subspace", lost=3)
    ingest(made.root, database)
    with open_store(database) as store:
        (pair,) = cell_of(board(store), "svd").against_controls
    assert pair.delta == pytest.approx(3 / COUNT)


@pytest.mark.slow
def test_what_is_stored_for_sql_is_the_board(made: Any, database: Path, variant: Any) -> None:
    variant("baseline", 0)
    variant("svd", 60)
    control = variant("svd", 55, control="random-subspace")
    ingest(made.root, database)
    with open_store(database) as store:
        svd = cell_of(board(store), "svd")
        (row,) = store.rows("SELECT * FROM v_control_verdicts")
        flags = store.rows("SELECT verdict, beats_controls FROM verdicts WHERE verdict <> 'baseline' ORDER BY ALL")
    (pair,) = svd.against_controls
    assert (row["recipe"], row["control"], row["verdict"], row["control_run"]) == (
        *("svd", "random-subspace", pair.verdict),
        pair.baseline_run,
    )
    assert (row["delta"], row["low"], row["q"], row["control_score"]) == (
        *(pair.delta, pair.low, pair.q_value),
        pair.baseline_score,
    )
    assert flags == [
        {"verdict": "better", "beats_controls": False},
        {"verdict": "better", "beats_controls": None},
    ]
    delete(database, str(control), "not wanted")
    with open_store(database) as store:
        assert store.rows("SELECT * FROM control_verdicts") == []


def test_across_models_counts_where_the_control_is_beaten(made: Any, variant: Any) -> None:
    variant("baseline", 0)
    variant("svd", 60)
    variant("svd", 55, control="random-subspace")
    lines = {line.recipe: line for line in across_models.lines(made.board(), "sums")}
    assert across_models.sentence(lines["svd"]) == (
        "better on 1 of 1 model; better than its control on 0 of 1 model; up on 1, down on 0"
    )
    assert "than its control" not in across_models.sentence(lines["svd+random-subspace"])


def test_of_a_controls_runs_that_one_is_taken_that_was_asked_the_same(variant: Any) -> None:
    baseline, svd = variant("baseline", 0), variant("svd", 60)
    other = variant("svd", 55, control="random-subspace", task="products").rename(svd.parent / "a-other")
    control = variant("svd", 55, control="random-subspace")
    beside = controls_beside(svd)
    assert beside == [other, control]
    held = with_controls(compare_paths(baseline, svd), baseline, svd, beside)
    (pair,) = held.cells[0].against_controls
    assert pair.verdict == "undecided" and held.controls == (control,)
    alone = with_controls(compare_paths(baseline, svd), baseline, svd, [other])
    assert [pair.verdict for pair in alone.cells[0].against_controls] == ["incomparable"]


def test_the_controls_beside_a_run_are_found(variant: Any) -> None:
    baseline, svd = variant("baseline", 0), variant("svd", 60)
    control = variant("svd", 55, control="random-subspace")
    (results,) = svd.glob("results_*.json")
    assert controls_beside(svd) == controls_beside(results) == [control]
    assert controls_beside(baseline) == controls_beside(control) == []
    receipt = json.loads((control / "receipt.json").read_text())
    other = receipt | {"weights": receipt["weights"] | {"digest_before": "blake3:" + "0" * 64}}
    (control / "receipt.json").write_text(json.dumps(other))
    assert controls_beside(svd) == [], "a control of another revision of the model is not its own"
    (control / "receipt.json").write_text("{")
    assert controls_beside(svd) == []
