"""The mean over several tasks of one run, as a cell: what papers print at the end of a row.

Every task counts the same, whatever its documents, unless the mean is pooled: then every document does. Tasks are
independent, since no document belongs to two, so that the limits of a mean follow from those of its tasks
(`statistics.suites`). No word of the board is part of it: *better* and *worse* are of the mean's own 95 % interval, and
nothing is corrected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from leaderboard.board.cell import BASELINE, COMPARED, Cell, changed
from leaderboard.board.retained_quality import how_asked_differs
from leaderboard.statistics.suites import SuitePart, suite

_ONE_SIDED = 0.025
_NORMAL = 1.959964  # of 95 % limits on both sides


def run_means(
    cells: Sequence[Cell], name: str, metric: str, members: Sequence[tuple[str, str]], pooled: bool = False
) -> Iterator[Cell]:
    """The mean of each run that has all members, once; none for other runs. name, metric: what the mean is called.
    members: task and metric of each. pooled: whether every document counts the same. cells: of any runs, controls and
    further metrics among them.
    """
    of_run: dict[str, dict[tuple[str, str], Cell]] = {}
    for cell in cells:
        for one in (cell, *cell.further):
            if one.control is None and (one.task, one.metric) in members:
                of_run.setdefault(one.run_id, {})[one.task, one.metric] = one
    for found in of_run.values():
        if len(found) == len(members):
            parts = [found[member] for member in members]
            if not pooled or all(part.n for part in parts):
                yield _mean(parts, {"task": name, "metric": metric, "further": ()}, pooled)


def _mean(parts: Sequence[Cell], named: Mapping[str, Any], pooled: bool) -> Cell:
    """One cell of several. `n` are the documents of a single task whose score would be as sure."""
    first = parts[0]
    weights = [float(part.n or 0) if pooled else 1.0 for part in parts]
    broken = next((part for part in parts if part.verdict not in (*COMPARED, BASELINE)), None)
    subset = next((f"{part.subset} of {part.task}" for part in parts if part.subset is not None), None)
    counts = [part.n for part in parts]
    values: dict[str, Any] = {
        **named,
        "n": int(sum(weights) ** 2 / sum(w**2 / n for w, n in zip(weights, counts) if n)) if all(counts) else None,
        "subset": subset,
        "shots": next((part.shots for part in parts if how_asked_differs(part)), first.shots),
        "rephrased": next((part.rephrased for part in parts if part.rephrased), None),
        "notes": _notes(parts, broken),
        **{field: _average(parts, weights, field) for field in ("score", "baseline_score", "delta", "improvement")},
        **dict.fromkeys(("chance", "beats_chance")),
        **dict.fromkeys(("p_value", "q_value", "p_same", "clipping", "margin", "collapse", "lost", "gained")),
    }
    low, high = _limits(parts, weights)
    values |= {"low": low, "high": high, "verdict": broken.verdict if broken else _verdict(first, low, high)}
    values["against_controls"] = tuple(_of_controls(parts, named, pooled))
    return changed(first, **values)


def _notes(parts: Sequence[Cell], broken: Cell | None) -> tuple[str, ...]:
    """Why there is no mean, or no interval; else the notes of the first part that has any, which are about it alone."""
    noted = broken or next((part for part in parts if part.low is None or part.high is None), None)
    noted = noted or next((part for part in parts if part.notes), None)
    return () if noted is None else tuple(f"{noted.task}: {note}" for note in noted.notes)


def _of_controls(parts: Sequence[Cell], named: Mapping[str, Any], pooled: bool) -> Iterator[Cell]:
    """The means against each control that all parts have."""
    for pair in parts[0].against_controls:
        alike = [
            next((one for one in part.against_controls if one.baseline_run == pair.baseline_run), None)
            for part in parts
        ]
        if all(alike):
            yield _mean([one for one in alike if one is not None], named, pooled)


def _average(parts: Sequence[Cell], weights: Sequence[float], field: str) -> float | None:
    values = [getattr(part, field) for part in parts]
    return None if None in values else fmean(values, weights)


def _limits(parts: Sequence[Cell], weights: Sequence[float]) -> tuple[float | None, float | None]:
    """Of the difference; none where a part has none, or counts no document whole."""
    found = []
    for weight, part in zip(weights, parts, strict=True):
        if part.delta is None or part.low is None or part.high is None or part.clipping or part.unpaired:
            return None, None
        error = (part.high - part.low) / (2 * _NORMAL)
        found.append(SuitePart(weight, part.delta, part.low, part.high, error, float("inf")))
    whole = suite(found, _ONE_SIDED)
    return whole.low, whole.high


def _verdict(first: Cell, low: float | None, high: float | None) -> str:
    if first.verdict == BASELINE:
        return BASELINE
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "better" if (low > 0) == first.higher_is_better else "worse"
