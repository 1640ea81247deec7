"""Scores of a run and of what it is compared with, a line a task: one axis a metric, within what is possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from leaderboard.app.colours import NEUTRAL
from leaderboard.app.comparison import possible, score_text
from leaderboard.terminal.format import counted, plain

SUBJECT = "This run"
_COLOURS = ("#7a8494", "#1c78c8", "#9b59b6", "#c9711c", "#16998a", "#8c6d1f")
_SHAPES = ("diamond", "circle", "square", "triangle-up", "cross", "triangle-down")
_FILLS = (_COLOURS[0], _COLOURS[1], *["transparent"] * 4)
_SIZES = (150, 70, 110, 110, 110, 110)  # where scores are alike, the larger sign shows around the smaller


class Scores(NamedTuple):
    """A task's scores by who has them."""

    task: str
    metric: str
    by_whom: dict[str, float]


def chart(rows: Sequence[Scores], whom: Sequence[str], axis: str, *, legend: bool) -> Any:
    """An altair chart of tasks of one metric (at least one). whom: in the order of the legend, the run itself second.
    axis: its title.
    """
    import altair as alt
    import pandas as pd

    points = pd.DataFrame(
        [
            {"task": plain(row.task), "whose": name, "score": score, "score in full": score_text(score)}
            for row in rows
            for name, score in row.by_whom.items()
        ]
    )
    spans = pd.DataFrame(
        [{"task": plain(row.task), "low": min(row.by_whom.values()), "high": max(row.by_whom.values())} for row in rows]
    )
    scale = _scale(rows[0].metric, points["score"])
    y = alt.Y(
        "task:N",
        title=None,
        sort=None,
        axis=alt.Axis(labelLimit=150, ticks=False, domain=False, labelOverlap=False, labelFlush=False),
    )
    lines = alt.Chart(spans).mark_rule(strokeWidth=4, color=NEUTRAL, opacity=0.35)
    lines = lines.encode(y=y, x=alt.X("low:Q", scale=scale, title=axis), x2="high:Q")
    order = list(whom)
    key = alt.Legend(title=None, orient="top", labelLimit=300, columns=2) if legend else None
    dots = (
        alt.Chart(points)
        .mark_point(opacity=1, strokeWidth=2)
        .encode(
            y=y,
            x=alt.X("score:Q", scale=scale, title=axis),
            color=alt.Color("whose:N", scale=_cycled(order, _COLOURS), legend=key),
            shape=alt.Shape("whose:N", scale=_cycled(order, _SHAPES), legend=key),
            fill=alt.Color("whose:N", scale=_cycled(order, _FILLS), legend=None),
            size=alt.Size("whose:N", scale=_cycled(order, _SIZES), legend=None),
            tooltip=[alt.Tooltip(f"{name}:N", title=name) for name in ("task", "whose", "score in full")],
        )
    )
    return alt.layer(lines, dots).properties(height=alt.Step(24)).configure_view(strokeOpacity=0)


def _cycled(order: Sequence[str], values: Sequence[Any]) -> Any:
    import altair as alt

    return alt.Scale(domain=list(order), range=[values[i % len(values)] for i in range(len(order))])


def _scale(metric: str, scores: Any) -> Any:
    """The whole range of a metric that has one; else around the scores, and never past what is possible."""
    import altair as alt

    low, high = possible(metric)
    if low is not None and high is not None:
        return alt.Scale(domain=[low, high])
    room = 0.08 * (float(scores.max()) - float(scores.min())) or 0.1 * abs(float(scores.max())) or 1.0
    least, most = float(scores.min()) - room, float(scores.max()) + room
    return alt.Scale(
        domain=[least if low is None else max(low, least), most if high is None else min(high, most)], nice=False
    )


def sentence(rows: Sequence[Scores], whom: Sequence[str]) -> str:
    """What the chart shows, in words."""
    spread = max(rows, key=lambda row: max(row.by_whom.values()) - min(row.by_whom.values()))
    said = ", ".join(f"{name} {score_text(spread.by_whom[name])}" for name in whom if name in spread.by_whom)
    return f"Scores on {counted(len(rows), 'task', 'tasks')}; furthest apart on {plain(spread.task)}: {said}."
