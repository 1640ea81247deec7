"""Points of size and score, the front among them, and their plot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leaderboard.app.charts.forest import shortened
from leaderboard.app.colours import NEUTRAL, word_colour
from leaderboard.app.page_queries import RunFacts
from leaderboard.board.cell import Cell
from leaderboard.board.pareto import front
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import counted, direction, number, percent, plain

NAMES = 6  # of points on the front that are named


class SizePoint(NamedTuple):
    """A run on a task. size: in the measure asked for; share: of the unedited model's, None where that is not known;
    front: nothing beats it in both size and score.
    """

    cell: Cell
    size: float
    share: float | None
    front: bool


def points(cells: Sequence[Cell], facts: Mapping[str, RunFacts], measure: str) -> list[SizePoint]:
    """The cells with a score and a recorded size; the front is each task's own, and no
    collapsed model is on it. measure: parameters, bytes or
    flops_per_token.
    """
    by_task: dict[str, list[tuple[Cell, float, float | None]]] = defaultdict(list)
    for cell in cells:
        size, before = _size(facts.get(cell.run_id), measure, cell.verdict == BASELINE)
        if cell.score is not None and cell.verdict not in ("failed", "incomparable") and size is not None:
            by_task[cell.task].append((cell, size, None if before is None else size / before))
    found = []
    for rows in by_task.values():
        able = [i for i, (cell, _, _) in enumerate(rows) if cell.verdict != COLLAPSED]
        on_it = {able[k] for k in front([rows[i][1] for i in able], [_good(rows[i][0]) for i in able])}
        found += [SizePoint(*row, i in on_it) for i, row in enumerate(rows)]
    return found


def _size(run: RunFacts | None, measure: str, unedited: bool) -> tuple[float | None, float | None]:
    before, after = (
        (None, None) if run is None else (getattr(run, f"{measure}_before"), getattr(run, f"{measure}_after"))
    )
    return (before if after is None and unedited else after), before


def _good(cell: Cell) -> float:
    score = cell.score or 0.0
    if cell.best_value is not None:
        return -abs(score - cell.best_value)
    return score if cell.higher_is_better else -score


def chart(shown: Sequence[SizePoint], words: str) -> Any:
    """An altair chart of one task's points (at least one)."""
    import altair as alt
    import pandas as pd

    rows = pd.DataFrame([_row(point) for point in shown])
    x = alt.X(
        "size:Q",
        title=words.lower().replace("flops", "FLOPs"),
        scale=alt.Scale(zero=False, padding=24),
        axis=alt.Axis(format="~s", tickCount=6),
    )
    reverse = shown[0].cell.best_value is None and not shown[0].cell.higher_is_better
    y = alt.Y("score:Q", title="score", scale=alt.Scale(zero=False, reverse=reverse))
    tooltip = [
        alt.Tooltip(f"{name}:N", title=name) for name in ("recipe", "verdict", "size in full", "kept", "score in full")
    ]
    colour = word_colour("verdict", rows["verdict"], legend=True)
    base = alt.Chart(rows).encode(x=x, tooltip=tooltip)
    on_front = rows[rows["front"]].sort_values("size")
    steps = (
        alt.Chart(on_front)
        .mark_line(interpolate="step-after", color=NEUTRAL, strokeDash=[5, 3])
        .encode(x=x, y=y, order="size:Q")
    )
    whiskers = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(opacity=0.45)
        .encode(y=alt.Y("low:Q", scale=alt.Scale(zero=False, reverse=reverse)), y2="high:Q", color=colour)
    )
    dots = base.mark_point(filled=True, opacity=0.9).encode(
        y=y,
        color=colour,
        size=alt.condition("datum.front", alt.value(130), alt.value(55)),
        shape=_shapes(rows["verdict"]),
    )
    apart = on_front.drop_duplicates(["size", "score"])
    names = (
        alt.Chart(apart.iloc[_spread(len(apart))])
        .mark_text(align="left", dx=8, dy=-9, fontSize=11, color=NEUTRAL, limit=130)
        .encode(x=x, y=y, text="name:N")
    )
    return alt.layer(steps, whiskers, dots, names).properties(height=400).configure_view(strokeOpacity=0)


def _shapes(words: Any) -> Any:
    import altair as alt

    known = {
        "better": "triangle-up",
        "worse": "triangle-down",
        "collapsed": "cross",
        "same": "circle",
        "undecided": "diamond",
        "baseline": "square",
    }
    present = set(words)
    seen = [word for word in known if word in present]
    return alt.Shape(
        "verdict:N",
        scale=alt.Scale(domain=seen, range=[known[word] for word in seen]),
        legend=alt.Legend(title=None, orient="bottom"),
    )


def _row(point: SizePoint) -> dict[str, Any]:
    cell = point.cell
    low, high = (
        (cell.baseline_score + cell.low, cell.baseline_score + cell.high)
        if cell.low is not None and cell.high is not None and cell.baseline_score is not None and not cell.unpaired
        else (None, None)
    )
    return {
        "recipe": plain(cell.name),
        "name": shortened(plain(cell.name), 26),
        "verdict": cell.verdict,
        "size": point.size,
        "score": cell.score,
        "low": low,
        "high": high,
        "front": point.front,
        "size in full": f"{point.size:,.0f}",
        "kept": percent(point.share),
        "score in full": number(cell.score),
    }


def _spread(count: int) -> list[int]:
    """Positions of at most `NAMES` of `count`, the ends among them."""
    return (
        list(range(count)) if count <= NAMES else sorted({round(i * (count - 1) / (NAMES - 1)) for i in range(NAMES)})
    )


def sentence(shown: Sequence[SizePoint], words: str) -> str:
    """What the plot shows, in words."""
    on_front = sorted((point for point in shown if point.front), key=lambda point: point.size)
    named = [on_front[i] for i in _spread(len(on_front))]
    listed = "; ".join(f"{plain(p.cell.name)} ({percent(p.share)}, {number(p.cell.score)})" for p in named)
    return (
        f"{counted(len(shown), 'run', 'runs')} by {words.lower().replace('flops', 'FLOPs')} and score"
        f" ({direction(shown[0].cell)}); {len(on_front)} on the"
        f" front{', among them' if len(named) < len(on_front) else ''}, smallest first, with the share kept and the"
        f" score: {listed}."
    )
