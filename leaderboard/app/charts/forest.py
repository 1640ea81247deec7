"""The forest plot: for each task, every recipe's difference with its interval around zero.

Text is drawn by Vega as text marks, never as HTML. Each task has an axis of its own, because units differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leaderboard.app.colours import MARKS, NEUTRAL, word_colour
from leaderboard.board.cell import Cell
from leaderboard.terminal.format import counted, interval, plain

MOST_ROWS = 24  # recipes in one plot: more cannot be read


def drawable(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that have an interval to draw. Unpaired ones stand in tables only, where the word is beside them."""
    return [
        cell
        for cell in cells
        if cell.low is not None and cell.high is not None and cell.delta is not None and not cell.unpaired
    ]


def most_telling(cells: Sequence[Cell]) -> list[Cell]:
    """At most `MOST_ROWS` of one task's cells: those with the largest differences, the highest first."""
    if len(cells) <= MOST_ROWS:
        return list(cells)
    return sorted(
        sorted(cells, key=lambda cell: -abs(cell.delta or 0.0))[:MOST_ROWS], key=lambda cell: -(cell.delta or 0.0)
    )


def sentence(cells: Sequence[Cell], of: int) -> str:
    """What a plot of these cells shows, in words; `of`: how many there are in all."""
    words = [f"{count} {word}" for word in MARKS if (count := sum(cell.verdict == word for cell in cells))]
    cut = (
        f"The {len(cells)} largest differences of {of} runs; choose recipes above for others: "
        if len(cells) < of
        else f"{counted(len(cells), 'run', 'runs')}: "
    )
    ordered = sorted(cells, key=lambda cell: cell.delta or 0.0)
    ends = (
        ""
        if len(cells) < 2
        else (
            f". From {plain(ordered[0].name)} ({interval(ordered[0])}) to {plain(ordered[-1].name)}"
            f" ({interval(ordered[-1])})"
        )
    )
    return f"{cut}{', '.join(words)}{ends}."


def _point(cell: Cell) -> float | None:
    """What the interval is of: the mean of clipped differences where documents are clipped, else the difference."""
    if cell.clipping is None or cell.best_value is not None or cell.improvement is None:
        return cell.delta
    return cell.improvement if cell.higher_is_better else -cell.improvement


def chart(cells: Sequence[Cell]) -> Any:
    """An altair chart of one task's cells (all with intervals)."""
    import altair as alt
    import pandas as pd

    labels = _labels(cells)
    rows = pd.DataFrame(
        [
            {
                "label": labels[i],
                "recipe": plain(cell.name),
                "delta": _point(cell),
                "low": cell.low,
                "high": cell.high,
                "verdict": cell.verdict,
                "text": interval(cell),
            }
            for i, cell in enumerate(cells)
        ]
    )
    colour = word_colour("verdict", rows["verdict"])
    y = alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelLimit=160, ticks=False, domain=False))
    tooltip = [alt.Tooltip(f"{name}:N", title=name) for name in ("recipe", "verdict", "text")]
    base = alt.Chart(rows).encode(y=y, color=colour, tooltip=tooltip)
    zero = alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=NEUTRAL, strokeDash=[4, 3]).encode(x="zero:Q")
    rules = base.mark_rule(strokeWidth=2.5).encode(
        x=alt.X("low:Q", title="recipe minus baseline", scale=alt.Scale(nice=True)), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=80, opacity=1).encode(x="delta:Q")
    words = base.mark_text(dy=-10, fontSize=11).encode(x="delta:Q", text="verdict:N")
    band = _band(cells)
    layers = [band, zero, rules, points, words] if band is not None else [zero, rules, points, words]
    return alt.layer(*layers).properties(height=34 * len(rows) + 84).configure_view(strokeOpacity=0)


def _labels(cells: Sequence[Cell]) -> list[str]:
    """A short name for each, no two alike: rows of one name would be drawn over each other."""
    short = [shortened(plain(cell.name)) for cell in cells]
    return [
        name if short.count(name) == 1 else f"{shortened(plain(cell.name), 20)} ({cell.run_id[:6]})"
        for name, cell in zip(short, cells)
    ]


def shortened(name: str, room: int = 26) -> str:
    """`name` in at most `room` letters, its middle left out: variants of a recipe differ at their ends."""
    return name if len(name) <= room else f"{name[: room // 2 - 2]}...{name[-(room - room // 2 - 1) :]}"


def _band(cells: Sequence[Cell]) -> Any:
    """The margin within which a recipe counts as the same, as a grey band, where it does not dwarf the intervals."""
    import altair as alt
    import pandas as pd

    margins = {cell.margin for cell in cells if cell.margin}
    widest = max(max(abs(cell.low or 0.0), abs(cell.high or 0.0)) for cell in cells)
    if len(margins) != 1 or (margin := margins.pop()) > 4 * widest:
        return None
    return (
        alt.Chart(pd.DataFrame({"from": [-margin], "to": [margin]}))
        .mark_rect(color=NEUTRAL, opacity=0.13)
        .encode(x="from:Q", x2="to:Q")
    )


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
