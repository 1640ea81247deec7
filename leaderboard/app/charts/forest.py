"""A forest plot of one run: its difference from another on every task of a metric, with intervals around zero.

Text is drawn by Vega as text marks, never as HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leaderboard.app.colours import MARKS, NEUTRAL, word_colour
from leaderboard.board.cell import Cell
from leaderboard.terminal.format import counted, interval, plain


def drawable(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that have an interval to draw. Unpaired ones stand in tables only, where the word is beside them."""
    return [
        cell
        for cell in cells
        if cell.low is not None and cell.high is not None and cell.delta is not None and not cell.unpaired
    ]


def _point(cell: Cell) -> float | None:
    """What the interval is of: the mean of clipped differences where documents are clipped, else the difference."""
    if cell.clipping is None or cell.best_value is not None or cell.improvement is None:
        return cell.delta
    return cell.improvement if cell.higher_is_better else -cell.improvement


def by_task(cells: Sequence[Cell]) -> Any:
    """An altair chart of one run's cells (all with intervals, of one metric), a row a task, each with its own margin as
    a grey bar.
    """
    import altair as alt
    import pandas as pd

    rows = pd.DataFrame(
        [
            {
                "task": plain(cell.task),
                "delta": _point(cell),
                "low": cell.low,
                "high": cell.high,
                "verdict": cell.verdict,
                "text": interval(cell),
                "from": -_margin(cell),
                "to": _margin(cell),
            }
            for cell in cells
        ]
    )
    tooltip = [alt.Tooltip(f"{name}:N", title=name) for name in ("task", "verdict", "text")]
    base = alt.Chart(rows).encode(
        y=alt.Y("task:N", title=None, sort=None, axis=alt.Axis(labelLimit=180, ticks=False, domain=False)),
        tooltip=tooltip,
    )
    coloured = base.encode(color=word_colour("verdict", rows["verdict"]))
    zero = alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=NEUTRAL, strokeDash=[4, 3]).encode(x="zero:Q")
    margins = base.mark_bar(color=NEUTRAL, opacity=0.18, size=26).encode(
        x=alt.X("from:Q", title="B minus A; grey: within the margin"), x2="to:Q"
    )
    rules = coloured.mark_rule(strokeWidth=2.5).encode(x="low:Q", x2="high:Q")
    points = coloured.mark_point(filled=True, size=80, opacity=1).encode(x="delta:Q")
    words = coloured.mark_text(dy=-10, fontSize=11).encode(x="delta:Q", text="verdict:N")
    return (
        alt.layer(margins, zero, rules, points, words)
        .properties(height=36 * len(rows) + 60)
        .configure_view(strokeOpacity=0)
    )


def _margin(cell: Cell) -> float:
    """The margin as far as it is drawn: one that dwarfs the interval would hide it."""
    widest = max(abs(cell.low or 0.0), abs(cell.high or 0.0))
    return min(cell.margin or 0.0, 4 * widest) if widest else cell.margin or 0.0


def task_sentence(cells: Sequence[Cell], of: int) -> str:
    """What `by_task` shows, in words; `of`: how many tasks there are in all."""
    words = [f"{count} {word}" for word in MARKS if (count := sum(cell.verdict == word for cell in cells))]
    ends = sorted(cells, key=lambda cell: cell.delta or 0.0)
    cut = (
        f"The {len(cells)} largest differences of {of} tasks: "
        if len(cells) < of
        else f"{counted(of, 'task', 'tasks')}: "
    )
    span = (
        f"; from {plain(ends[0].task)} ({interval(ends[0])}) to {plain(ends[-1].task)} ({interval(ends[-1])})"
        if len(ends) > 1
        else ""
    )
    return f"{cut}{', '.join(words)}{span}. The grey bar is the margin within which B counts as the same."
