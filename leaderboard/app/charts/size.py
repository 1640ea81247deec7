"""Points of size and score, the front among them, and their plot."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leaderboard.app.charts.label_places import LabelObstacle, Spot, places
from leaderboard.app.colours import NEUTRAL
from leaderboard.app.comparison import about, possible, score_text
from leaderboard.app.page_queries import RunFacts
from leaderboard.board.cell import Cell
from leaderboard.board.pareto import front
from leaderboard.board.standings import ALONE, AS_CONTROL, BEATS, kind
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import counted, percent, plain

NAMES = 6  # of points on the front that the sentence names
HEIGHT = 170
"""Pixels of a plot without its title and axis, for which `_AROUND` has room."""
_AROUND = 142
WIDTHS = (240, 300, 420, 620, 1000)
"""Pixels that a plot may be wide, without its axis."""
_BLUE, _ORANGE, _DARK, _GREY = "#1f77c0", "#d9600b", "#a63f02", "#8b949e"
_EMPTY = "transparent"
_SHAPES = {
    BEATS: ("triangle-up", _BLUE, _BLUE),
    ALONE: ("triangle-up", _BLUE, _EMPTY),
    AS_CONTROL: ("triangle-up", "#8fbbe0", "#c4ddf5"),
    "same": ("square", _GREY, _GREY),
    "undecided": ("circle", _GREY, _EMPTY),
    "worse": ("triangle-down", _ORANGE, _ORANGE),
    COLLAPSED: ("M-1,-1L1,1M1,-1L-1,1", _DARK, _EMPTY),
}
"""Kind -> shape, outline and filling."""


class Measure(NamedTuple):
    """What a model's size is measured in. field: of `RunFacts`, with `_before` and `_after`. share: whether it is drawn
    as a share of the unedited model's. phrase: in sentences and on the axis.
    """

    words: str
    field: str
    phrase: str
    share: bool = True

    def text(self, point: SizePoint) -> str:
        """A point's size for people."""
        if self.share:
            return "" if point.share is None else percent(point.share)
        return f"{point.size:,.0f}"


MEASURES = (
    Measure("Parameters", "parameters", "parameters kept"),
    Measure("Bytes", "bytes", "bytes kept"),
    Measure("FLOPs per token", "flops_per_token", "FLOPs per token kept"),
    Measure("Tokens per second", "tokens_per_second", "tokens per second, measured while scoring", share=False),
)
SPEED = MEASURES[-1]


class SizePoint(NamedTuple):
    """A run on a task. size: in the measure asked for; share: of the unedited model's, None where that is not known;
    front: nothing beats it in both size and score.
    """

    cell: Cell
    size: float
    share: float | None
    front: bool


def points(cells: Sequence[Cell], facts: Mapping[str, RunFacts], measure: str) -> list[SizePoint]:
    """The cells with a score and a recorded size; the front is each task's own, and no control and no model that
    collapsed on any task is on it. measure: the field of a `Measure`; of tokens per second more is better, of all
    others less.
    """
    by_task: dict[str, list[tuple[Cell, float, float | None]]] = defaultdict(list)
    for cell in cells:
        size, before = _size(facts.get(cell.run_id), measure, cell.verdict == BASELINE)
        if cell.score is not None and cell.verdict not in ("failed", "incomparable") and size is not None:
            by_task[cell.task].append((cell, size, None if before is None else size / before))
    found = []
    sign = -1.0 if measure == SPEED.field else 1.0
    for rows in by_task.values():
        able = [i for i, (cell, _, _) in enumerate(rows) if not cell.is_ruined and cell.control is None]
        on_it = {able[k] for k in front([sign * rows[i][1] for i in able], [_good(rows[i][0]) for i in able])}
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


class _Axes(NamedTuple):
    """The ends of both axes; reverse: less is up."""

    left: float
    right: float
    low: float
    high: float
    reverse: bool

    def spot(self, point: SizePoint, measure: Measure, name: str = "") -> Spot:
        across = (_across(point, measure) - self.left) / (self.right - self.left)
        return Spot(across, self.down(point.cell.score or 0.0), name)

    def down(self, score: float) -> float:
        up = (score - self.low) / (self.high - self.low)
        return up if self.reverse else 1 - up


def _across(point: SizePoint, measure: Measure) -> float:
    return (point.share or 0.0) if measure.share else point.size


def _axes(every: Sequence[SizePoint], drawn: Sequence[SizePoint], measure: Measure) -> _Axes:
    """every: of all tasks, whose plots share the horizontal axis."""
    sizes = [_across(point, measure) for point in every]
    scores = [point.cell.score or 0.0 for point in drawn]
    scores += [cell.baseline_score for cell in (p.cell for p in drawn) if cell.baseline_score is not None]
    low, high = min(scores), max(scores)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 0.1
    least, most = possible(drawn[0].cell.metric)
    margin = 0.06 * (max(sizes) - min(sizes)) or 0.05 * abs(max(sizes)) or 1.0
    cell = drawn[0].cell
    return _Axes(
        min(sizes) - margin,
        max(sizes) + margin,
        low - room if least is None else max(least, low - room),
        high + room if most is None else min(most, high + room),
        cell.best_value is None and not cell.higher_is_better,
    )


def names(drawn: Sequence[SizePoint]) -> dict[int, str]:
    """Position among the points -> the name it would bear: those on the front but the baseline, one for points alike
    in both size and score.
    """
    found: dict[int, str] = {}
    seen: set[tuple[float, float | None]] = set()
    for place, point in sorted(enumerate(drawn), key=lambda item: item[1].size):
        alike = (point.size, point.cell.score)
        if point.front and point.cell.verdict != BASELINE and alike not in seen:
            seen.add(alike)
            found[place] = plain(point.cell.name)
    return found


def chart(every: Sequence[SizePoint], shown: Sequence[SizePoint], measure: Measure) -> Any:
    """An altair chart of one task's points (at least one). every: of all tasks that are drawn."""
    import altair as alt
    import pandas as pd

    drawn = [point for point in shown if point.cell.verdict != BASELINE] or list(shown)
    axes = _axes(every, shown, measure)
    x = alt.X(
        "across:Q",
        title=measure.phrase,
        scale=alt.Scale(domain=[axes.left, axes.right], nice=False, zero=False),
        axis=alt.Axis(format="%" if measure.share else "~s", tickCount=5, grid=False),
    )
    y = alt.Y(
        "score:Q",
        title=None,
        scale=alt.Scale(domain=[axes.low, axes.high], nice=False, zero=False, reverse=axes.reverse),
        axis=alt.Axis(tickCount=4),
    )
    rows = pd.DataFrame([_row(point, measure) for point in drawn])
    recipes = alt.Chart(rows[~rows["control"]]).encode(x=x, y=y)
    layers = [_baseline(shown, y), _steps(rows, (x, y), measure), _ticks(rows, x, y)]
    layers.append(recipes.mark_point(size=70, opacity=0.95, strokeWidth=1.5).encode(**_signs(rows)))
    layers += _labels(drawn, rows, axes, measure)
    title = alt.TitleParams(plain(shown[0].cell.task), subtitle=subtitle(shown), subtitleColor=NEUTRAL, anchor="start")
    return (
        alt.layer(*[layer for layer in layers if layer is not None])
        .properties(height=HEIGHT + _AROUND, title=title)
        .configure_view(strokeOpacity=0)
    )


def subtitle(shown: Sequence[SizePoint]) -> str:
    """`acc, n 80; dashed: baseline 0.013`."""
    baseline = _baseline_score(shown)
    edited = [point.cell for point in shown if point.cell.verdict != BASELINE] or [point.cell for point in shown]
    return about(edited[0]) + ("" if baseline is None else f"; dashed: baseline {score_text(baseline)}")


def _baseline_score(shown: Sequence[SizePoint]) -> float | None:
    found = [point.cell.score for point in shown if point.cell.verdict == BASELINE]
    found += [point.cell.baseline_score for point in shown]
    return next((score for score in found if score is not None), None)


def _baseline(shown: Sequence[SizePoint], y: Any) -> Any:
    import altair as alt
    import pandas as pd

    score = _baseline_score(shown)
    if score is None:
        return None
    return alt.Chart(pd.DataFrame({"score": [score]})).mark_rule(color=NEUTRAL, strokeDash=[5, 4]).encode(y=y)


def _steps(rows: Any, axes: tuple[Any, Any], measure: Measure) -> Any:
    import altair as alt

    x, y = axes
    on_front = rows[rows["front"]].sort_values("across")
    line = alt.Chart(on_front).mark_line(
        interpolate="step-before" if measure == SPEED else "step-after", color=NEUTRAL, strokeWidth=1.2
    )
    return line.encode(x=x, y=y, order="across:Q")


def _ticks(rows: Any, x: Any, y: Any) -> Any:
    import altair as alt

    controls = rows[rows["control"]]
    if controls.empty:
        return None
    ticks = alt.Chart(controls).mark_tick(color=NEUTRAL, thickness=1.5, size=10, orient="horizontal", opacity=0.8)
    return ticks.encode(x=x, y=y, tooltip=_tooltip())


def _signs(rows: Any) -> dict[str, Any]:
    import altair as alt

    seen = [word for word in _SHAPES if word in set(rows["kind"])] or ["same"]
    shapes, outlines, fills = ([_SHAPES[word][i] for word in seen] for i in range(3))
    return {
        "shape": alt.Shape("kind:N", scale=alt.Scale(domain=seen, range=shapes), legend=None),
        "stroke": alt.Stroke("kind:N", scale=alt.Scale(domain=seen, range=outlines), legend=None),
        "fill": alt.Fill("kind:N", scale=alt.Scale(domain=seen, range=fills), legend=None),
        "tooltip": _tooltip(),
    }


def _tooltip() -> list[Any]:
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=name) for name in ("recipe", "verdict", "size", "score in full")]


def _labels(drawn: Sequence[SizePoint], rows: Any, axes: _Axes, measure: Measure) -> list[Any]:
    """A layer a name, because each stands on its own side of its point."""
    import altair as alt

    wanted = names(drawn)
    spots = [axes.spot(point, measure, wanted.get(place, "")) for place, point in enumerate(drawn)]
    return [
        alt.Chart(rows.iloc[[position]])
        .mark_text(align=place.align, dx=place.right, dy=place.down, baseline="alphabetic", fontSize=10, color=NEUTRAL)
        .encode(
            x=alt.X("across:Q", scale=alt.Scale(domain=[axes.left, axes.right], nice=False, zero=False)),
            y=alt.Y(
                "score:Q",
                scale=alt.Scale(domain=[axes.low, axes.high], nice=False, zero=False, reverse=axes.reverse),
            ),
            text="recipe:N",
        )
        for position, place in places(spots, _lines(drawn, axes, measure), WIDTHS, HEIGHT).items()
    ]


def _lines(drawn: Sequence[SizePoint], axes: _Axes, measure: Measure) -> list[LabelObstacle]:
    """The baseline's, and those of the front's steps."""
    found = []
    score = _baseline_score(drawn)
    if score is not None:
        level = axes.down(score)
        found.append(LabelObstacle(0, level, 1, level))
    steps = sorted(axes.spot(point, measure) for point in drawn if point.front)
    for one, other in itertools.pairwise(steps):
        level, upright = (other.down, one.across) if measure == SPEED else (one.down, other.across)
        found.append(LabelObstacle(one.across, level, other.across, level))
        found.append(LabelObstacle(upright, min(one.down, other.down), upright, max(one.down, other.down)))
    return found


def _row(point: SizePoint, measure: Measure) -> dict[str, Any]:
    cell = point.cell
    return {
        "recipe": plain(cell.name),
        "kind": kind(cell) if kind(cell) in _SHAPES else "same",
        "verdict": kind(cell),
        "across": _across(point, measure),
        "score": cell.score,
        "front": point.front,
        "control": cell.control is not None,
        "size": measure.text(point),
        "score in full": score_text(cell.score),
    }


def sentence(shown: Sequence[SizePoint], measure: Measure) -> str:
    """What the plot shows, in words."""
    recipes = [point for point in shown if point.cell.control is None and point.cell.verdict != BASELINE]
    on_front = sorted((point for point in recipes if point.front), key=lambda point: point.size)
    said = "; ".join(
        f"{plain(point.cell.name)} ({measure.text(point)}, {score_text(point.cell.score)})"
        for point in on_front[:NAMES]
    )
    count = f"{counted(len(recipes), 'recipe', 'recipes')} by {measure.phrase} and score"
    if not on_front:
        return f"{count}; the baseline beats each in size or score."
    more = ", among them" if len(on_front) > NAMES else ""
    return f"{count}; {len(on_front)} on the line{more}: {said}."
