"""The two plots of a report: the improvement of each row with its interval, and size against score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from leaderboard.board.cell import Cell
from leaderboard.board.pareto import front
from leaderboard.board.standings import Standing, kind
from leaderboard.report import svg
from leaderboard.report.contents import Report
from leaderboard.report.svg import Scale, label, line, mark, number, text
from leaderboard.report.words import (
    ImprovementLimits,
    baseline_score,
    improvement_limits,
    improvement_point,
    improvement_text,
    share,
)
from leaderboard.terminal.format import counted, direction, metric_name, plain, span
from leaderboard.terminal.format import number as score_text
from leaderboard.terminal.marks import MARKS, words_of

WIDTH = 380.0
MOST_ROWS = 60
"""Rows of a plot: more cannot be read. The tables hold all."""
_NAME_LETTERS = 27
_SIZE_HEIGHT = 210.0
_NAMED = 6
_NEAR = 9.0  # pixels: points so near each other are named both or neither; here neither


class _DrawnRow(NamedTuple):
    name: str
    cell: Cell
    point: float
    limits: ImprovementLimits


def about(report: Report, cells: Sequence[Cell]) -> str:
    """`demo, acc (higher is better), n 80, 27 Nov 2026`: what a picture of one task needs in order to stand alone."""
    first = next(cell for cell in cells if cell.metric)
    counts = [cell.n for cell in cells if cell.n is not None]
    made = f"{report.made.day} {report.made:%b %Y}"
    metric = f"{plain(metric_name(first))} ({direction(first)})"
    return ", ".join(filter(None, [report.title.partition(":")[0], metric, span(counts), made]))


def interval_plot(report: Report, task: str) -> str:
    """One task: every ranked row's improvement with its 95 % interval, in the order of the table; nothing where no row
    has one.
    """
    rows = _rows(report, task)
    shown = rows[:MOST_ROWS]
    if not shown:
        return ""
    names = [svg.wrapped(row.name, _NAME_LETTERS) for row in shown]
    left = 8 + svg.LETTER * max(len(part) for parts in names for part in parts)
    heights = [max(17, svg.SMALL_LINE * len(parts) + 5) for parts in names]
    bottom = svg.HEAD + sum(heights)
    x = svg.scale([0.0, *(end for row in shown for end in (*row.limits, row.point))], left + 6, WIDTH - 14)
    parts = [_band(shown, x, bottom), line((x(0), svg.HEAD - 4), (x(0), bottom), "zero")]
    top = float(svg.HEAD)
    for row, lines, height in zip(shown, names, heights):
        middle = top + height / 2
        parts.append(_interval(row, lines, x, (left, middle)))
        top += height
    parts.append(svg.axis(x, bottom + 14, signed=True))
    cells = [row.cell for row in shown]
    return svg.picture(
        (WIDTH, bottom + 20), f"{task}: improvement, 95 % interval", about(report, cells), told(rows, len(shown)), parts
    )


def _rows(report: Report, task: str) -> list[_DrawnRow]:
    found = []
    for row in report.standings.rows:
        cell = row.cells.get(task)
        if cell is None or row.is_baseline:
            continue
        limits, point = improvement_limits(cell), improvement_point(cell)
        if limits is not None and point is not None:
            found.append(_DrawnRow(plain(row.name), cell, point, limits))
    return found


def _band(rows: Sequence[_DrawnRow], x: Scale, bottom: float) -> str:
    """The margin within which a row counts as the same, where all rows have the same one."""
    margins = {row.cell.margin for row in rows}
    margin = margins.pop() if len(margins) == 1 else None
    if not margin:
        return ""
    start, end = x(-margin), x(margin)
    height = number(bottom - svg.HEAD + 4)
    return (
        f'<rect x="{number(start)}" y="{svg.HEAD - 4}" width="{number(end - start)}" height="{height}" class="band"/>'
    )


def _interval(row: _DrawnRow, lines: Sequence[str], x: Scale, at: tuple[float, float]) -> str:
    left, middle = at
    first = middle + 4 - svg.SMALL_LINE * (len(lines) - 1) / 2
    names = "".join(label(part, left, first + svg.SMALL_LINE * i, "", "end") for i, part in enumerate(lines))
    what = kind(row.cell)
    said = text(f"{row.name}: {improvement_text(row.cell)}, {words_of(row.cell)}")
    rule = line((x(row.limits.low), middle), (x(row.limits.high), middle), f"i {svg.css(what)}")
    return f"<g><title>{said}</title>{names}{rule}{mark(what, x(row.point), middle)}</g>"


def told(rows: Sequence[_DrawnRow], shown: int) -> str:
    """What an interval plot shows, in words."""
    words = Counter(kind(row.cell) for row in rows)
    listed = ", ".join(f"{words[name]} {sign.words}" for name, sign in MARKS.items() if words[name])
    ends = sorted(rows, key=lambda row: row.point)
    cut = "" if shown == len(rows) else f" The first {shown} are drawn."
    least, most = ends[0], ends[-1]
    return (
        f"{counted(len(rows), 'row', 'rows')}: {listed}. From {least.name}, {improvement_text(least.cell)}, to"
        f" {most.name}, {improvement_text(most.cell)}.{cut}"
    )


class _SizedRow(NamedTuple):
    row: Standing
    cell: Cell
    kept: float
    score: float
    good: float


def size_plot(report: Report, task: str) -> str:
    """One task: the share of the parameters that each row keeps, against its score, with the front among them; nothing
    where sizes do not differ.
    """
    points = _points(report, task)
    if len({round(point.kept, 3) for point in points}) < 2:
        return ""
    baseline = baseline_score(report, task)
    bottom, left = svg.HEAD + _SIZE_HEIGHT, 52.0
    x = svg.scale([100 * point.kept for point in points], left, WIDTH - 16)
    y = svg.scale([point.score for point in points] + ([] if baseline is None else [baseline]), bottom, svg.HEAD + 8.0)
    best = [points[i] for i in _front(points)]
    parts = [_grid(y, left), *_baseline(baseline, y, left), _steps([(x(100 * p.kept), y(p.score)) for p in best])]
    places = [(x(100 * point.kept), y(point.score)) for point in points]
    for point, (px, py) in zip(points, places):
        said = text(
            f"{plain(point.row.name)}: {share(point.kept)} kept, score {score_text(point.score)},"
            f" {words_of(point.cell)}"
        )
        parts.append(f"<g><title>{said}</title>{mark(kind(point.cell), px, py)}</g>")
    parts += _names([(plain(p.row.name), x(100 * p.kept), y(p.score)) for p in best], places, (left, bottom))
    parts += [_shares(x, bottom + 16), label("of the parameters kept", WIDTH - 12, bottom + 30, "q", "end")]
    return svg.picture(
        (WIDTH, bottom + 34),
        f"{task}: size and score",
        about(report, [p.cell for p in points]),
        _size_told(points, best),
        parts,
    )


def _points(report: Report, task: str) -> list[_SizedRow]:
    found = []
    for row in report.standings.rows:
        cell = row.cells.get(task)
        if cell is None or cell.score is None or row.parameters_kept is None or row.is_baseline:
            continue
        if cell.verdict not in ("failed", "incomparable"):
            found.append(_SizedRow(row, cell, row.parameters_kept, cell.score, _good(cell)))
    return found


def _good(cell: Cell) -> float:
    score = cell.score or 0.0
    if cell.best_value is not None:
        return -abs(score - cell.best_value)
    return score if cell.higher_is_better else -score


def _front(points: Sequence[_SizedRow]) -> list[int]:
    """The points that nothing beats in both, by size; a collapsed model is never among them."""
    able = [i for i, point in enumerate(points) if not point.cell.is_ruined]
    return [able[k] for k in front([points[i].kept for i in able], [points[i].good for i in able])]


def _grid(y: Scale, left: float) -> str:
    ticks = y.ticks()
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return "".join(
        line((left, y(value)), (WIDTH, y(value)), "grid")
        + label(svg.tick_text(value, step, signed=False), left - 6, y(value) + 4, "q", "end")
        for value in ticks
    )


def _baseline(score: float | None, y: Scale, left: float) -> list[str]:
    if score is None:
        return []
    said = f"<title>baseline: score {text(score_text(score))}</title>"
    return [f"<g>{said}{line((left, y(score)), (WIDTH, y(score)), 'zero')}</g>"]


def _steps(places: Sequence[tuple[float, float]]) -> str:
    if len(places) < 2:
        return ""
    first, *others = sorted(places)
    path = f"M{number(first[0])} {number(first[1])}" + "".join(f"H{number(x)}V{number(y)}" for x, y in others)
    return f'<path d="{path}" class="front"/>'


def _shares(x: Scale, y: float) -> str:
    return "".join(label(f"{value:.3g} %", x(value), y, "q", "middle") for value in x.ticks())


def _names(
    best: Sequence[tuple[str, float, float]], points: Sequence[tuple[float, float]], corner: tuple[float, float]
) -> list[str]:
    """The names of points on the front that stand apart from every other, where there is room for them."""
    taken: list[tuple[float, float, float, float]] = []
    found: list[str] = []
    for name, x, y in best:
        near = sum(abs(x - px) < _NEAR and abs(y - py) < _NEAR for px, py in points)
        if near > 1 or len(found) == _NAMED:
            continue
        width = svg.LETTER * len(name)
        for dx, dy in ((8, -7), (-8 - width, -7), (8, 15), (-8 - width, 15)):
            box = (x + dx, y + dy - 10, x + dx + width, y + dy + 2)
            inside = box[0] >= corner[0] and box[2] <= WIDTH and box[1] >= svg.HEAD - 8 and box[3] <= corner[1]
            if inside and not any(_meet(box, other) for other in taken) and not _covers(box, points):
                taken.append(box)
                found.append(label(name, x + dx, y + dy))
                break
    return found


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _covers(box: tuple[float, float, float, float], points: Sequence[tuple[float, float]]) -> bool:
    return any(_meet(box, (x - 4, y - 4, x + 4, y + 4)) for x, y in points)


def _size_told(points: Sequence[_SizedRow], best: Sequence[_SizedRow]) -> str:
    listed = [f"{plain(p.row.name)}, {share(p.kept)}, score {score_text(p.score)}" for p in best]
    shown = listed if len(listed) <= _NAMED else [*listed[: _NAMED - 1], listed[-1]]
    return (
        f"{counted(len(points), 'row', 'rows')} by share of the parameters kept and score. Nothing is as small and"
        f" better than: {svg.many(shown)}."
    )
