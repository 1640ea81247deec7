"""Runs whose weights are the baseline's to the bit: there is nothing to test, however few their documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.board import board, pair_board
from leaderboard.board.cell import Cell
from leaderboard.compare.one_model import ONE_MODEL, is_one_model
from leaderboard.ingest import ingest
from tests.leaderboard.gate.gating import gated, row


def weights_of(run: Path) -> Any:
    return json.loads((run / "receipt.json").read_text())["weights"]


def cells(made: Any) -> dict[str, Cell]:
    store = ingest(made.root, None).store
    try:
        return {cell.recipe: cell for cell in board(store)}
    finally:
        store.connection.close()


def test_they_are_the_same_and_in_no_correction(made: Any, kit: Any) -> None:
    before, after = kit.pair(20, 10, lost=2)
    base = made.run("baseline", {"sums": before})
    nothing = made.run("laser-search", {"sums": before}, weights=weights_of(base))
    made.run("laser", {"sums": after})
    found = cells(made)
    one = found["laser-search"]
    assert (one.verdict, one.delta, one.low, one.high, one.improvement, one.n) == ("same", 0, 0, 0, 0, 20)
    assert one.p_value is None and one.documents_needed is None and one.notes == (ONE_MODEL,)
    assert (found["laser"].comparisons, found["laser"].verdict) == (1, "undecided")
    store = ingest(made.root, None).store
    (pair,) = pair_board(store, *(cell.run_id for cell in (found["baseline"], one)))
    assert (pair.verdict, pair.low, pair.high) == ("same", 0, 0)
    store.connection.close()
    report = gated(nothing, base, suites={"s": {"weights": {"sums": 1}}})
    assert (report.exit_code, row(report).verdict, row(report, "s").verdict) == (0, "PASS", "PASS")
    assert (row(report).drop_low, row(report).drop_high, row(report).change_at_worst) == (0, 0, 0)


def test_equal_weights_that_score_otherwise_are_tested(made: Any, kit: Any) -> None:
    """Rounding differs from machine to machine, and a scorer may be broken."""
    before, after = kit.pair(20, 10, lost=2)
    base = made.run("baseline", {"sums": before})
    other = made.run("identity", {"sums": after}, weights=weights_of(base))
    one = cells(made)["identity"]
    assert one.verdict == "undecided" and one.p_value is not None and one.low < one.delta < one.high
    assert gated(other, base).exit_code == 3


@pytest.mark.parametrize(
    ("baseline", "recipe", "delta", "is_one"),
    [
        ("sha256:a", "sha256:a", 0.0, True),
        ("sha256:a", "sha256:a", -1e-9, False),
        ("sha256:a", "sha256:a", None, False),
        ("sha256:a", "sha256:b", 0.0, False),
        ("sha256:a", "blake3:a", 0.0, False),
        (None, None, 0.0, False),
    ],
)
def test_only_known_digests_of_one_kind_tell(
    baseline: str | None, recipe: str | None, delta: float | None, is_one: bool
) -> None:
    assert is_one_model(baseline, recipe, delta) is is_one
