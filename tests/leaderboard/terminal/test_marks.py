"""The signs of cells: which, with which number, and in ASCII where nothing else can be written."""

from __future__ import annotations

import pytest

from leaderboard.board.cell import Cell
from leaderboard.board.standings import KINDS
from leaderboard.terminal.marks import MARKS, cell_text, gain, legend, p_text


def cell(verdict: str, improvement: float | None = None, delta: float | None = None, **rest: object) -> Cell:
    return Cell("m", "laser", "r", "t", "acc", "none", 10, 0.5, 0.25, verdict, delta, improvement=improvement, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.8375, "+0.838"), (-0.0001, "0.000"), (0.0, "0.000"), (-0.0126, "-0.013"), (12.3, "+12.3"), (-4e5, "-4.00e+05")],
)  # fmt: skip
def test_gains_have_a_sign_unless_they_are_none(value: float, text: str) -> None:
    assert gain(value) == text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_is_no_number_has_no_text(value: float | None) -> None:
    assert gain(value) == p_text(value) == ""


def test_a_small_p_value_is_not_zero() -> None:
    assert (p_text(0.0), p_text(3e-5), p_text(1e-4), p_text(0.03125)) == ("< 0.0001", "< 0.0001", "0.0001", "0.0312")


def test_a_cell_is_mark_and_number() -> None:
    assert cell_text(cell("better", 0.8375), best=True, ascii_only=True) == "* + +0.838"
    assert cell_text(cell("worse", -0.5)) == "\u25bc \u22120.500"
    assert cell_text(cell("baseline")) == "score 0.250"
    assert cell_text(cell("failed"), ascii_only=True) == "! failed"
    assert cell_text(cell("incomparable", delta=-0.1, higher_is_better=False), ascii_only=True) == "? +0.100"
    assert cell_text(cell("incomparable", delta=-0.1, best_value=0.0), ascii_only=True) == "? incomparable"


def test_ascii_is_ascii_and_no_two_kinds_look_alike() -> None:
    assert all(mark.ascii.isascii() for mark in MARKS.values())
    for signs in ([mark.sign for mark in MARKS.values()], [mark.ascii for mark in MARKS.values()]):
        assert len(set(signs)) == len(KINDS)
    assert [name for name, _ in legend(["worse", "beats", "baseline"])] == ["beats", "worse"]


def test_the_legend_says_that_hardware_makes_runs_incomparable() -> None:
    meaning = MARKS["incomparable"].meaning
    assert "different GPUs or engines" in meaning and "lm_eval noise did not measure both" in meaning
