"""Runs of one recipe by two revisions of its method: told apart, each with its own controls, the older with a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board import across_models
from leaderboard.board.board import board
from leaderboard.board.history import history
from leaderboard.board.labels import stored_names
from leaderboard.compare_runs import controls_beside
from leaderboard.gate.changes import changes
from leaderboard.ingest import ingest
from leaderboard.readers.asked import asked_of, revision_of, words
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.reader import read_runs
from leaderboard.store.database import open_store

NOTE = "a later run of this recipe is by revision 2 of its methods, this one by revision 1: it gives other weights now"


@pytest.fixture
def variant(made: Any, kit: Any) -> Any:
    """Writes a run of `eigenprune`, or of its control, by a revision."""

    def write(
        day: int, gained: int, *, revision: int = 1, control: str | None = None, model: str = "tiny", label: str = ""
    ) -> Path:
        label = label or (f"eigenprune+{control}" if control else "eigenprune")
        answers = kit.binary(200, 100, gained=gained)[1]
        run = made.run(
            label,
            {"sums": kit.Task({"acc": answers}, log_likelihoods=kit.likelihoods(200, day))},
            model=model,
            folder=f"{label}-{day}",
            spec_id=f"{label} {revision} {day}",
            variant_id=f"{model} {label} {revision}",
            started=f"2026-01-{day:02}T04:00:00+00:00",
        )
        receipt = json.loads((run / "receipt.json").read_text())
        if control:
            receipt["recipe"] |= {"control": control, "control_of": kit.sha("eigenprune")}
        if revision > 1:
            receipt["recipe"] |= {f"{'control_of_' if control else ''}revisions": {"eigenprune": revision}}
        (run / "receipt.json").write_text(json.dumps(receipt))
        return run

    return write


@pytest.mark.slow
def test_each_has_a_row_and_the_older_says_so(made: Any, variant: Any, database: Path) -> None:
    variant(1, 0, label="baseline")
    variant(2, 60)
    variant(3, 10, revision=2)
    cells = {cell.name: cell for cell in made.board() if cell.recipe == "eigenprune"}
    old, new = cells["eigenprune"], cells["eigenprune [revision 2]"]
    assert (old.delta, new.delta) == (pytest.approx(0.3), pytest.approx(0.05))
    assert NOTE in old.notes and NOTE not in new.notes
    ingest(made.root, database)
    with open_store(database) as store:
        points = history(store, "tiny", "eigenprune", "sums").points
    found = [change for point in points for change in point.changes if change.what == "revision of its methods"]
    assert [(change.before, change.after) for change in found] == [("revision 1", "revision 2")]


def test_of_one_revision_alone_nothing_is_said(made: Any, variant: Any) -> None:
    variant(1, 0, label="baseline")
    variant(2, 60, revision=2)
    variant(3, 60, revision=2)
    names = {cell.name: cell.notes for cell in made.board() if cell.recipe == "eigenprune"}
    assert set(names) == {"eigenprune"} and not any("later run" in note for note in names["eigenprune"])


@pytest.mark.slow
def test_a_control_is_one_of_the_revision_whose_budget_it_has(made: Any, variant: Any) -> None:
    variant(1, 0, label="baseline")
    old, new = variant(2, 60), variant(4, 60, revision=2)
    control = variant(3, 0, control="random-subspace")
    cells = {cell.name: cell for cell in made.board() if cell.recipe == "eigenprune"}
    assert [len(cells[name].against_controls) for name in ("eigenprune", "eigenprune [revision 2]")] == [1, 0]
    assert (controls_beside(old), controls_beside(new)) == ([control], [])
    second = variant(5, 50, revision=2, control="random-subspace")
    cells = {cell.name: cell for cell in made.board() if cell.recipe == "eigenprune"}
    against = {name: [pair.delta for pair in cell.against_controls] for name, cell in cells.items()}
    assert against == {"eigenprune": [pytest.approx(0.3)], "eigenprune [revision 2]": [pytest.approx(0.05)]}
    assert (controls_beside(old), controls_beside(new)) == ([control], [second])


@pytest.mark.slow
def test_models_with_different_revisions_are_not_counted_together(made: Any, variant: Any, database: Path) -> None:
    for model, revision in (("tiny", 1), ("small", 2)):
        variant(1, 0, label="baseline", model=model)
        variant(2, 60, revision=revision, model=model)
    ingest(made.root, database)
    with open_store(database) as store:
        assert set(stored_names(store).values()) >= {"eigenprune", "eigenprune [revision 2]"}
        lines = across_models.lines(board(store), "sums")
    assert {line.recipe: list(line.cells) for line in lines} == {
        "eigenprune": ["tiny"],
        "eigenprune [revision 2]": ["small"],
    }


def test_a_gate_says_that_the_method_changed(variant: Any) -> None:
    runs = []
    for place in (variant(2, 60), variant(3, 10, revision=2)):
        (candidate,) = [found for found in find_runs(place) if isinstance(found, Candidate)]
        runs += read_runs(candidate)
    (change,) = [change for change in changes(*runs) if change.what == "revision of its methods"]
    assert (change.before, change.after) == ("revision 1", "revision 2")
    assert not [change for change in changes(runs[1], runs[1]) if "revision" in change.what]


def test_a_results_file_without_a_receipt_tells_it_too(made: Any, kit: Any) -> None:
    for place, config in (("first", {}), ("second", {"recipe_revisions": {"eigenprune": 2}})):
        known = {"recipe": "eigenprune", "recipe_id": kit.sha("eigenprune"), "weights_digest": place}
        made.plain({"sums": kit.pair(60, 30)[1]}, folder=place, config=known | config)
    assert {cell.name for cell in made.board()} == {"eigenprune", "eigenprune [revision 2]"}


@pytest.mark.parametrize(
    ("revisions", "expected"),
    [
        (None, "revision 1"),
        ({}, "revision 1"),
        ({"eigenprune": 3}, "revision 3"),
        ({"laser_search": 2, "eigenprune": 3}, "revisions eigenprune 3, laser_search 2"),
        # A file may hold anything.
        ("two", "revision 1"),
        ({"eigenprune": "2"}, "revision 1"),
        ([2], "revision 1"),
    ],
)
def test_in_words(revisions: Any, expected: str) -> None:
    assert revision_of(asked_of({}, revisions)) == expected
    assert revision_of(None) == "revision 1" and words(None) == {}
