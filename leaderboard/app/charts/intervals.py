"""Every recipe's improvement on every task, with its interval: a column a task, a row a recipe, names printed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.app.colours import MARKS, NEUTRAL
from leaderboard.board.cell import Cell
from leaderboard.board.standings import COLLAPSED, Standing, kind, proven
from leaderboard.report.words import improvement_limits, improvement_point, improvement_text
from leaderboard.terminal.format import counted, direction, metric_name, plain

_STEP = 19
_TOLD = 4  # tasks whose best and worst the sentence names
_KINDS = ("better", "worse", "collapsed", "same", "undecided")


def drawable(rows: Sequence[Standing], task: str) -> list[tuple[Standing, Cell]]:
    """The rows that have an interval to draw. Unpaired ones stand in tables only, where the word is beside them."""
    cells = ((row, row.cells[task]) for row in rows if task in row.cells)
    return [(row, cell) for row, cell in cells if improvement_limits(cell) is not None]


def chart(rows: Sequence[Standing], tasks: Sequence[str]) -> Any:
    """An altair chart of some tasks, each with an axis of its own, in the order of the rows."""
    import altair as alt

    names = [plain(row.name) for row in rows]
    return alt.hconcat(
        *(_of_task(rows, task, names, labels=not i) for i, task in enumerate(tasks)), spacing=26
    ).configure_view(strokeOpacity=0)


def _of_task(rows: Sequence[Standing], task: str, names: Sequence[str], *, labels: bool) -> Any:
    import altair as alt
    import pandas as pd

    found = drawable(rows, task)
    data = pd.DataFrame(
        [
            {
                "recipe": plain(row.name),
                "point": improvement_point(cell),
                "low": limits.low,
                "high": limits.high,
                "verdict": cell.verdict,
                "proven": kind(cell) in ("beats", "worse", "collapsed"),
                "text": f"{improvement_text(cell)}, {cell.verdict}",
            }
            for row, cell in found
            if (limits := improvement_limits(cell))
        ]
    )
    shown = found[0][1]
    axis = alt.Axis(labelFlush=False, labelOverlap=False, labelLimit=0, ticks=False, domain=False)
    order = list(names)
    y = alt.Y("recipe:N", title=None, sort=order, scale=alt.Scale(domain=order), axis=axis if labels else None)
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
        plain(task),
        subtitle=f"{direction(shown)}, n {shown.n:,}" if shown.n else direction(shown),
        subtitleColor=NEUTRAL,
    )
    return alt.layer(*layers).properties(width=170, height=alt.Step(_STEP), title=title)


def sentence(rows: Sequence[Standing], tasks: Sequence[str], best: Mapping[str, frozenset[str]]) -> str:
    """What the chart shows, in words. best: task -> names of the rows whose gain is its largest proven one."""
    cells = [cell for task in tasks for _, cell in drawable(rows, task)]
    words = [f"{count} {word}" for word in _KINDS if (count := sum(cell.verdict == word for cell in cells))]
    return (
        f"{counted(len(tasks), 'task', 'tasks')}, {counted(len(cells), 'interval', 'intervals')} of 95 %, not corrected"
        f" for their number (the words are): {', '.join(words)}."
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
