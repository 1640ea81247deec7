"""The heat map of two runs: every metric of every task in which they may be compared, coloured by whether it improved
or declined.

Notable choice: metrics have units of their own, so a column's colours are relative to its own largest change; the
numbers are in the metric's units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leaderboard.app import page_queries
from leaderboard.app.colours import difference_colour
from leaderboard.store.database import Store
from leaderboard.terminal.format import plain, signed

MOST_TASKS, MOST_METRICS = 60, 12
ON_TILES = "#101418"  # the tiles look the same in both themes, so their text does too


class HeatTile(NamedTuple):
    """One metric of one task. improvement: above zero where `after` is better than `before`, in the metric's own
    units.
    """

    task: str
    metric: str
    before: float
    after: float
    delta: float
    improvement: float


def rows(store: Store, a: str, b: str, tasks: tuple[str, ...]) -> list[HeatTile]:
    """What both runs report of these tasks."""
    return [_tile(scores) for scores in page_queries.common_scores(store, a, b) if scores["task"] in tasks]


def _tile(scores: Mapping[str, Any]) -> HeatTile:
    """From a row of `common_scores`."""
    metric, best, before, after = (scores[name] for name in ("metric", "best_value", "before", "after"))
    name = metric if scores["filter"] in ("", "none") else f"{metric} ({scores['filter']})"
    sign = -1.0 if scores["higher_is_better"] is False else 1.0
    improvement = sign * (after - before) if best is None else abs(before - best) - abs(after - best)
    return HeatTile(scores["task"], name, before, after, after - before, improvement)


def _shown(found: Sequence[HeatTile]) -> list[HeatTile]:
    """The tasks and metrics that fit: those that move most relative to their metric's largest change."""
    largest = _largest(found)
    metrics = sorted(largest, key=lambda metric: -sum(row.metric == metric for row in found))[:MOST_METRICS]
    share: dict[str, float] = {}
    for row in found:
        if row.metric in metrics:
            share[row.task] = max(share.get(row.task, 0.0), abs(row.improvement) / (largest[row.metric] or 1.0))
    tasks = set(sorted(share, key=lambda task: -share[task])[:MOST_TASKS])
    return [row for row in found if row.metric in metrics and row.task in tasks]


def _largest(found: Sequence[HeatTile]) -> dict[str, float]:
    return {
        metric: max(abs(row.improvement) for row in found if row.metric == metric)
        for metric in {row.metric for row in found}
    }


def chart(found: Sequence[HeatTile]) -> Any:
    """An altair chart of the rows (at least one)."""
    import altair as alt
    import pandas as pd

    shown, largest = _shown(found), _largest(found)
    table = pd.DataFrame(
        [
            {
                "task": plain(row.task),
                "metric": plain(row.metric),
                "share": row.improvement / (largest[row.metric] or 1.0),
                "text": signed(row.delta),
                "word": _word(row),
            }
            for row in shown
        ]
    )
    base = alt.Chart(table).encode(
        x=alt.X(
            "metric:N",
            title=None,
            axis=alt.Axis(labelAngle=-35 if table["metric"].nunique() > 2 else 0, labelLimit=140),
        ),
        y=alt.Y("task:N", title=None, axis=alt.Axis(labelLimit=160)),
        tooltip=[alt.Tooltip(f"{name}:N", title=name) for name in ("task", "metric", "text", "word")],
    )
    tiles = base.mark_rect(cornerRadius=3).encode(color=difference_colour("share", 1.0, "declined to improved"))
    return (
        alt.layer(tiles, base.mark_text(fontSize=12, color=ON_TILES).encode(text="text:N"))
        .properties(height=28 * table["task"].nunique() + 160)
        .configure_view(strokeOpacity=0)
    )


def _word(row: HeatTile) -> str:
    """Other words than those of verdicts, which need a test."""
    return "improved" if row.improvement > 0 else "declined" if row.improvement < 0 else "unchanged"


def sentence(found: Sequence[HeatTile]) -> str:
    """What the map shows, in words."""
    shown = _shown(found)
    words = [
        f"{count} {word}"
        for word in ("improved", "declined", "unchanged")
        if (count := sum(_word(row) == word for row in shown))
    ]
    cut = (
        ""
        if len(shown) == len(found)
        else f" The {len(shown)} of {len(found)} that move most are drawn; the file has all."
    )
    return (
        f"B minus A in each metric's own units: {', '.join(words)}, by the direction that is good for the metric and"
        f" without regard to chance. Colours are relative to the metric's largest change.{cut}"
    )
