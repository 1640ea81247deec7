"""The plot of a history: scores with their intervals over time, the unedited model's beside them, decisions as upright
lines, triangles where something changed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from leaderboard.app.charts.heads import Head, heads
from leaderboard.app.charts.heads import rows as rows_of
from leaderboard.app.colours import MARKS, NEUTRAL
from leaderboard.app.linked_table import RUN_BLUE
from leaderboard.board.history import Event, HistoryPoint
from leaderboard.terminal.format import number, plain

WITH_RECIPE, UNEDITED, FAILED = "with the recipe", "unedited", "failed"
_DECISION, _CHANGE = "#a371f7", "#bb8009"
HEIGHT, ROW = 340, 14  # pixels: of the plot without words, and of a row of words above the scores
# below, the hour is written beside the date, and the second in its place
A_FEW_DAYS, A_FEW_MINUTES = timedelta(days=4), timedelta(minutes=10)


def line_of(point: HistoryPoint) -> str:
    """The name of the line that a point is on."""
    return UNEDITED if point.unedited else WITH_RECIPE


def when(moment: datetime | None) -> str:
    """`2026-01-02 03:04`, in UTC."""
    return "time unknown" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def chart(points: Sequence[HistoryPoint], events: Sequence[Event], *, by_date: bool) -> Any:
    """An altair chart of at least one point; `by_date` needs a time in every point, and otherwise runs stand evenly
    spaced.
    """
    import altair as alt
    import pandas as pd

    axis = _axis(points if by_date else ())
    rows = pd.DataFrame([_row(point, place, by_date) for place, point in enumerate(points, 1)])
    scored, changed = rows[rows["score"].notna()], rows[rows["changes"] != ""]
    at = _moments(points, events, by_date)
    found = _heads(list(rows["at"]), at, events)
    above, (low, high) = ROW * rows_of(found), _span(scored)
    # nothing that was measured lies behind words
    scale = alt.Scale(domain=[low, high], nice=True, range=[{"expr": "height"}, above])
    y = alt.Y("score:Q", title=plain(next((point.metric for point in points if point.metric), "score")), scale=scale)
    names = [name for name in (WITH_RECIPE, UNEDITED) if name in set(rows["line"])]
    colours = alt.Scale(domain=names, range=[RUN_BLUE if name == WITH_RECIPE else NEUTRAL for name in names])
    colour = alt.Color("line:N", scale=colours, legend=alt.Legend(title=None, orient="top", symbolOpacity=1))
    tooltip = [alt.Tooltip(f"{name}:N", title=name) for name in ("when", "line", "value", "changes", "run")]
    base = alt.Chart(scored).encode(x=axis, color=colour, tooltip=tooltip)
    layers = [
        base.mark_line(strokeWidth=1.5, opacity=0.6).encode(y=y),
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            y=y,
            shape=alt.Shape(
                "line:N", scale=alt.Scale(domain=names, range=["circle", "square"][: len(names)]), legend=None
            ),
        ),
        *_changes(changed, axis, tooltip),
        *_failures(rows[rows["status"] == FAILED], axis, tooltip),
        *_decisions(events, at, found, axis),
    ]
    return alt.layer(*layers).properties(height=HEIGHT + above).configure_view(strokeOpacity=0)


def _axis(dated: Sequence[HistoryPoint]) -> Any:
    """The axis of time for points that all have one; of places for none."""
    import altair as alt

    if not dated:
        return alt.X(
            "at:Q",
            title="runs, the earliest first",
            scale=alt.Scale(padding=20, nice=False, zero=False),
            axis=alt.Axis(tickMinStep=1, format="d", grid=False),
        )
    times = [point.moment for point in dated if point.moment is not None]
    span = max(times) - min(times)
    labels: dict[str, Any] = (
        {"format": "%H:%M:%S"} if span < A_FEW_MINUTES else {"format": "%d %b %H:%M"} if span < A_FEW_DAYS else {}
    )
    return alt.X(
        "at:T",
        title="started (UTC)",
        scale=alt.Scale(type="utc", padding=20),
        axis=alt.Axis(labelOverlap=True, tickCount=5, **labels),
    )


def _row(point: HistoryPoint, place: int, by_date: bool) -> dict[str, Any]:
    value = FAILED if point.status == FAILED else point.reported if point.score is None else number(point.score)
    return {
        "at": _utc(point.moment) if by_date and point.moment else place,
        "line": line_of(point),
        "status": point.status,
        "score": point.score,
        "low": point.score if point.low is None else point.low,
        "high": point.score if point.high is None else point.high,
        "value": plain(value),
        "when": when(point.moment),
        "changes": plain("; ".join(f"{change.what}: {change.before} -> {change.after}" for change in point.changes)),
        "run": point.run_id[:12],
    }


def _utc(moment: datetime) -> Any:
    import pandas as pd

    return pd.Timestamp(moment, tz="UTC")


def _span(scored: Any) -> tuple[float, float]:
    """The lowest and highest ends of the intervals, with a little air; around a single value, some room."""
    if scored.empty:
        return 0.0, 1.0
    low, high = float(scored["low"].min()), float(scored["high"].max())
    air = 0.12 * (high - low) or 0.05 * abs(high) or 0.5
    return low - air, high + air


def _changes(changed: Any, axis: Any, tooltip: list[Any]) -> list[Any]:
    """A triangle at the floor where something was made otherwise than before; no empty layer, which would be a picture
    without a word to a screen reader.
    """
    import altair as alt

    if changed.empty:
        return []
    base = alt.Chart(changed).mark_point(
        shape="triangle-up", filled=True, size=90, color=_CHANGE, opacity=1, yOffset=-6
    )
    return [base.encode(x=axis, y=alt.value("height"), tooltip=tooltip)]


def _failures(failed: Any, axis: Any, tooltip: list[Any]) -> list[Any]:
    """A cross near the floor with the word beside it, if any failed."""
    import altair as alt

    if failed.empty:
        return []
    base = alt.Chart(failed).encode(x=axis, y=alt.value("height"), tooltip=tooltip)
    cross = base.mark_point(
        shape="cross", angle=45, filled=True, size=120, color=MARKS["failed"], opacity=1, yOffset=-24
    )
    return [cross, base.mark_text(yOffset=-38, color=MARKS["failed"], text=FAILED)]


def _decisions(events: Sequence[Event], at: Sequence[Any], found: Sequence[Head], axis: Any) -> list[Any]:
    """Upright lines at the places `at`, with what was decided written at their heads."""
    import altair as alt
    import pandas as pd

    if not events:
        return []
    top = {line: ROW * head.row for head in found for line in head.lines}
    lines = [
        {
            "at": at[line],
            "top": top[line],
            "what": plain(event.what),
            "when": when(event.moment),
            "reason": plain(event.reason),
        }
        for line, event in enumerate(events)
    ]
    rule = alt.Chart(pd.DataFrame(lines)).mark_rule(strokeDash=[4, 3], strokeWidth=1.5, color=_DECISION)
    tooltip = [alt.Tooltip(f"{name}:N", title=name) for name in ("what", "when", "reason")]
    return [
        rule.encode(x=axis, y=alt.Y("top:Q", scale=None), y2=alt.value("height"), tooltip=tooltip),
        *(_words([head for head in found if head.to_the_left is left], at, axis) for left in (False, True)),
    ]


def _words(found: Sequence[Head], at: Sequence[Any], axis: Any) -> Any:
    """What was decided, on one side of the lines."""
    import altair as alt
    import pandas as pd

    left = any(head.to_the_left for head in found)
    rows = [
        {"at": at[head.lines[0 if left else -1]], "y": ROW * (head.row + place) + ROW / 2, "what": word}
        for head in found
        for place, word in enumerate(head.words)
    ]
    mark = alt.Chart(pd.DataFrame(rows, columns=["at", "y", "what"])).mark_text(
        align="right" if left else "left", dx=-4 if left else 4, baseline="middle", color=_DECISION, fontSize=11
    )
    return mark.encode(x=axis, y=alt.Y("y:Q", scale=None), text="what:N")


def _moments(points: Sequence[HistoryPoint], events: Sequence[Event], by_date: bool) -> list[Any]:
    """Where on the axis the events stand: at their time, or between the runs before and after."""
    times = [point.moment for point in points if point.moment is not None]
    return [_utc(event.moment) if by_date else bisect_right(times, event.moment) + 0.5 for event in events]


def _heads(runs: Sequence[Any], at: Sequence[Any], events: Sequence[Event]) -> list[Head]:
    """The words of the events, placed. runs, at: where runs and events stand on the axis."""
    if not events:
        return []
    first, last = min(*runs, *at), max(*runs, *at)
    return heads(
        [(place - first) / (last - first) if last > first else 0.5 for place in at],
        [plain(event.what) for event in events],
    )
