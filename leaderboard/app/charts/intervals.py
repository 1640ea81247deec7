"""Every recipe's improvement on a task, with its interval: a picture a task, a row a recipe.

Notable choice: tasks are pictures of their own, not columns of one, so that the page breaks them into rows that fit its
width. Names are short; the whole one is in the tooltip.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.app.colours import MARKS, NEUTRAL
from leaderboard.app.short_names import short_names
from leaderboard.board.cell import Cell
from leaderboard.board.standings import COLLAPSED, Standing, kind, proven
from leaderboard.report.words import improvement_limits, improvement_point, improvement_text
from leaderboard.terminal.format import counted, direction, metric_name, plain

_STEP = 19
_LABEL = 150  # pixels of a name, at most
_TITLE_LETTERS = 38  # of a line, in so narrow a picture
WIDTH = 344
"""Pixels of one picture: a telephone shows one beside another's none, a desk three in a row."""
_TOLD = 4  # tasks whose best and worst the sentence names
_KINDS = ("better", "worse", "collapsed", "same", "undecided")


def drawable(rows: Sequence[Standing], task: str) -> list[tuple[Standing, Cell]]:
    """The rows that have an interval to draw. Unpaired ones stand in tables only, where the word is beside them."""
    cells = ((row, row.cells[task]) for row in rows if task in row.cells)
    return [(row, cell) for row, cell in cells if improvement_limits(cell) is not None]


def chart(rows: Sequence[Standing], task: str) -> Any:
    """An altair chart of one task: the rows that have an interval on it, in their order. It takes the width that it is
    given.
    """
    import altair as alt
    import pandas as pd

    found = drawable(rows, task)
    drawn = [row.name for row, _ in found]
    names = [name for row, name in zip(rows, short_names(rows)) if row.name in drawn]
    data = pd.DataFrame(
        [
            {
                "name": name,
                "recipe": plain(row.name),
                "point": improvement_point(cell),
                "low": limits.low,
                "high": limits.high,
                "verdict": cell.verdict,
                "proven": kind(cell) in ("beats", "worse", "collapsed"),
                "text": f"{improvement_text(cell)}, {cell.verdict}",
            }
            for name, (row, cell) in zip(names, found)
            if (limits := improvement_limits(cell))
        ]
    )
    shown = found[0][1]
    axis = alt.Axis(labelFlush=False, labelOverlap=False, labelLimit=_LABEL, ticks=False, domain=False)
    y = alt.Y("name:N", title=None, sort=names, scale=alt.Scale(domain=names), axis=axis)
    scale = alt.Scale(domain=list(_KINDS), range=[MARKS[word] for word in _KINDS])
    colour = alt.Color("verdict:N", legend=None, scale=scale)
    base = alt.Chart(data).encode(
        y=y, color=colour, tooltip=[alt.Tooltip(f"{name}:N", title=name) for name in ("recipe", "text")]
    )
    x = alt.X("low:Q", title=f"improvement of {metric_name(shown)}", axis=alt.Axis(tickCount=3))
    rules = base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q")
    shapes = alt.Shape(
        "verdict:N",
        legend=None,
        scale=alt.Scale(domain=list(_KINDS), range=["triangle-up", "triangle-down", "cross", "square", "circle"]),
    )
    filled = alt.condition(alt.datum.proven, alt.value(1), alt.value(0))
    points = base.mark_point(size=55, opacity=1, strokeWidth=1.5).encode(x="point:Q", shape=shapes, fillOpacity=filled)
    points = points.encode(fill=alt.Fill("verdict:N", legend=None, scale=scale))
    zero = alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=NEUTRAL, strokeDash=[4, 3]).encode(x="zero:Q")
    layers = [zero, rules, points]
    margins = {cell.margin for _, cell in found if cell.margin}
    widest = float(data[["low", "high"]].abs().max().max())
    if len(margins) == 1 and (margin := next(iter(margins))) <= 4 * widest:
        band = alt.Chart(pd.DataFrame({"from": [-margin], "to": [margin]}))
        layers.insert(0, band.mark_rect(color=NEUTRAL, opacity=0.16).encode(x="from:Q", x2="to:Q"))
    title = alt.Title(
        textwrap.wrap(plain(task), _TITLE_LETTERS) or "",
        subtitle=f"{direction(shown)}, 95 % interval",
        subtitleColor=NEUTRAL,
    )
    return alt.layer(*layers).properties(height=alt.Step(_STEP), title=title).configure_view(strokeOpacity=0)


def task_sentence(rows: Sequence[Standing], task: str) -> str:
    """What the chart of one task shows, in words."""
    cells = [cell for _, cell in drawable(rows, task)]
    said = ", ".join(f"{plain(cell.name)} {improvement_text(cell)} {cell.verdict}" for cell in cells)
    return f"Improvement on {plain(task)}, 95 % interval: {_counts(cells)}. {said}."


def _counts(cells: Sequence[Cell]) -> str:
    return ", ".join(f"{count} {word}" for word in _KINDS if (count := sum(cell.verdict == word for cell in cells)))


def sentence(rows: Sequence[Standing], tasks: Sequence[str], best: Mapping[str, frozenset[str]]) -> str:
    """What the charts show, in words. best: task -> names of the rows whose gain is its largest proven one."""
    cells = [cell for task in tasks for _, cell in drawable(rows, task)]
    return (
        f"{counted(len(tasks), 'task', 'tasks')}, {counted(len(cells), 'interval', 'intervals')} of 95 %, not corrected"
        f" for their number (the words are): {_counts(cells)}."
        f"{_ends('Best', _largest_gains(rows, tasks, best))}{_ends('Worst', _largest_losses(rows, tasks))}"
        " The grey band is the margin."
    )


def _largest_gains(
    rows: Sequence[Standing], tasks: Sequence[str], best: Mapping[str, frozenset[str]]
) -> list[list[Cell]]:
    """Of each task that has any, the cells that bear its star. Tasks have units of their own and are never ranked."""
    found = ([cell for row, cell in drawable(rows, task) if row.name in best.get(task, ())] for task in tasks)
    return [cells for cells in found if cells]


def _largest_losses(rows: Sequence[Standing], tasks: Sequence[str]) -> list[list[Cell]]:
    """Of each task that has any, the cells of its largest proven loss: those that collapsed before all others."""
    found = []
    for task in tasks:
        cells = [cell for _, cell in drawable(rows, task)]
        least = min(map(proven, cells), default=0.0)
        if least < 0:
            found.append([cell for cell in cells if proven(cell) == least])
    return found


def _ends(word: str, by_task: Sequence[Sequence[Cell]]) -> str:
    """` Best on sums: laser (+0.838 [+0.700, +0.900]); on bias: svd (...).`, of the first few tasks."""
    if not by_task:
        return ""
    said = [f"on {plain(cells[0].task)}: {', '.join(map(_named, cells))}" for cells in by_task[:_TOLD]]
    more = len(by_task) - len(said)
    return f" {word} {'; '.join([*said, *([counted(more, 'task more', 'tasks more')] if more else [])])}."


def _named(cell: Cell) -> str:
    """A name with its improvement, of which nothing is said where the model collapsed."""
    return f"{plain(cell.name)} ({cell.verdict if cell.verdict == COLLAPSED else improvement_text(cell)})"
