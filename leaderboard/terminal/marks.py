"""The signs of the board: one mark, one wording and one short number a cell, in the terminal, on the page and in
reports alike. Form, colour and word go together; none is the only sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from leaderboard.board.cell import Cell
from leaderboard.board.standings import ALONE, AS_CONTROL, BEATS, KINDS, gained, kind
from leaderboard.readers.records import BASELINE

STAR = "\u2605"
"""Before the best cell of a task."""
ASCII_STAR = "*"
MINUS = "\u2212"


class Mark(NamedTuple):
    """A sign, its stand-in where only ASCII can be written, its words for a legend, and what they mean."""

    sign: str
    ascii: str
    words: str
    meaning: str


MARKS = {
    BEATS: Mark(
        "\u25b2", "^", "better than baseline and control", "significant, and better than every control of its own"
    ),
    ALONE: Mark("\u25b4", "+", "better, no control run", "significant; a random edit of that size was not tried"),
    AS_CONTROL: Mark(
        "\u25b3",
        "~",
        "better, but its control may be too",
        "significant, but not shown to beat an edit of the same size without the recipe's idea",
    ),
    "same": Mark("=", "=", "same within the margin", "shown to differ by less than the margin"),
    "undecided": Mark("\u00b7", ".", "undecided", "too few documents to tell; details say how many are needed"),
    "worse": Mark("\u25bc", "v", "worse", "significant"),
    "collapsed": Mark(
        "\u2a2f",
        "x",
        "collapsed",
        "right answers ten times less likely, or no better than chance: what the metric says means nothing",
    ),
    "incomparable": Mark(
        "?",
        "?",
        "incomparable",
        "the two runs were not asked the same thing, or are from different GPUs or engines and lm_eval noise did not"
        " measure both",
    ),
    "failed": Mark("!", "!", "failed", "no usable result; details say why"),
    BASELINE: Mark("", "", "baseline", "the unedited model; its scores"),
}
assert tuple(MARKS) == KINDS


def gain(value: float | None, *, minus: str = "-", digits: int = 3) -> str:
    """An improvement, positive where it is good on every task: `+0.838`, `0.000`, empty where there is none; fewer
    decimals from ten on.
    """
    if value is None or not math.isfinite(value):
        return ""
    size = abs(value)
    text = f"{size:.{digits}f}" if size < 10 else f"{size:.1f}" if size < 1000 else f"{size:.2e}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else minus}{text}"


def p_text(value: float | None, *, least: float = 1e-4) -> str:
    """A p- or q-value: `0.0312`, or `< 0.0001`; empty where there is none."""
    if value is None or not math.isfinite(value):
        return ""
    return f"< {least:.4f}" if value < least else f"{value:.4f}"


def cell_text(cell: Cell, *, best: bool = False, ascii_only: bool = False) -> str:
    """`* ^ +0.838`, with the signs of the page unless only ASCII can be written; `score 0.013` of the baseline."""
    if cell.verdict == BASELINE:
        return f"score {_score(cell.score)}"
    mark = MARKS[kind(cell)]
    star = (ASCII_STAR if ascii_only else STAR) if best else ""
    number = gain(gained(cell), minus="-" if ascii_only else MINUS)
    return " ".join(filter(None, [star, mark.ascii if ascii_only else mark.sign, number or mark.words]))


def words_of(cell: Cell) -> str:
    """What a cell says, in the words of the legend; of a control, which needs none of its own, plainly."""
    return "better" if cell.control is not None and kind(cell) == ALONE else MARKS[kind(cell)].words


def legend(kinds: Iterable[str]) -> list[tuple[str, Mark]]:
    """The kinds that occur and their marks, from good to bad, without the baseline."""
    present = set(kinds)
    return [(name, mark) for name, mark in MARKS.items() if name in present and name != BASELINE]


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
