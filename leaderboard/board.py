"""The board: every run x task against its baseline, judged, corrected for their number, and put into words.

Notable choices:
- The baseline of a cell is the pinned run of its model where one is pinned and has the task; otherwise the earliest unedited
  run in the same comparability key, one of the same settings before others. Where a model has no run of the recipe `baseline`,
  its earliest plain lm_eval run stands in.
- The words are those of `cell`.
- NaN or infinity as a run's score makes the cell *failed* with that reason, never a number and never a missing row.
- A failed run is left out once the same specification has completed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from leaderboard import comparable, judge, published, queries
from leaderboard.cell import BASELINE, Cell, with_verdicts
from leaderboard.errors import UnknownRun
from leaderboard.judge import DEFAULT_MARGIN, Effect, Scored
from leaderboard.queries import PairedSamples, RunRow, ScoreRow, TaskRow
from leaderboard.store import Store


LOG_LOSS = "log_loss"


@dataclass(frozen=True)
class _Contents:
    """The store's rows that the board needs, read once."""

    runs: list[RunRow]
    tasks: dict[str, list[TaskRow]]
    scores: dict[tuple[str, str], list[ScoreRow]]
    counts: dict[tuple[str, str, str, str], int]
    pinned: dict[str, str]
    names: dict[str, str]
    samples: PairedSamples

    def task(self, run_id: str, task: str) -> TaskRow | None:
        return next((row for row in self.tasks.get(run_id, ()) if row.task == task), None)

    def score(self, run_id: str, task: str, metric: str, filter_name: str) -> ScoreRow | None:
        rows = self.scores.get((run_id, task), ())
        return next((row for row in rows if (row.metric, row.filter) == (metric, filter_name)), None)

    def primary(self, run_id: str, task: str) -> ScoreRow | None:
        return next((row for row in self.scores.get((run_id, task), ()) if row.is_primary), None)


def board(
    store: Store,
    *,
    models: Iterable[str] | None = None,
    tasks: Iterable[str] | None = None,
    recipes: Iterable[str] | None = None,
    baseline_run: str | None = None,
    margin: float = DEFAULT_MARGIN,
) -> list[Cell]:
    """All cells, or those of some models, tasks and recipes (labels), by model, task and time.

    `baseline_run` compares everything with that run instead. `margin` is for scores in [0, 1]; see `judge` for others.
    The correction is over all cells of a model, whatever the filters. Raises `UnknownRun`.
    """
    contents = _read(store)
    fixed = _the_run(contents, baseline_run) if baseline_run else None
    by_model: dict[str, list[RunRow]] = defaultdict(list)
    for run in contents.runs:
        by_model[run.model_key].append(run)
    wanted = None if models is None else set(models)
    cells = []
    for key, runs in by_model.items():
        if wanted is None or wanted & {key, contents.names[key], runs[0].model_name}:
            cells += with_verdicts([cell for run in runs for cell in _cells(store, contents, run, runs, fixed, margin)])
    return sorted(_filtered(cells, tasks, recipes), key=_order)


def _read(store: Store) -> _Contents:
    runs = queries.runs(store)
    complete = {run.spec_id for run in runs if run.status == "complete" and run.spec_id}
    shown = [run for run in runs if run.status == "complete" or run.spec_id not in complete]
    return _Contents(
        shown,
        queries.run_tasks(store),
        queries.scores(store),
        queries.sample_counts(store),
        queries.pinned_baselines(store),
        display_names(runs),
        PairedSamples(store),
    )


def display_names(runs: Iterable[RunRow]) -> dict[str, str]:
    """model_key -> the name shown, with part of its identity where two models bear one name."""
    names = {run.model_key: (run.model_name, run.identity or run.model_key) for run in runs}
    shared = [name for name, _ in names.values()]
    return {key: name if shared.count(name) == 1 else f"{name} ({identity[:8]})" for key, (name, identity) in names.items()}


def _the_run(contents: _Contents, run_id: str) -> RunRow:
    found = [run for run in contents.runs if run.run_id.startswith(run_id)]
    if len(found) != 1:
        raise UnknownRun(f"{'no run' if not found else 'more than one run'} in the leaderboard begins with {run_id}")
    return found[0]


def _cells(store: Store, contents: _Contents, run: RunRow, others: Sequence[RunRow], fixed: RunRow | None, margin: float) -> list[Cell]:
    if run.status == "failed":
        names = [row.task for row in contents.tasks.get(run.run_id, ())] or ["(all)"]
        return [_failed(contents, run, name) for name in names]
    rows = [(row, contents.primary(run.run_id, row.task)) for row in contents.tasks.get(run.run_id, ())]
    return [_cell(store, contents, run, row, score, others, fixed, margin) for row, score in rows if score is not None]


def _blank(contents: _Contents, run: RunRow, task: str, verdict: str) -> Cell:
    kept = run.parameters_after / run.parameters_before if run.parameters_after and run.parameters_before else None
    return Cell(
        model=contents.names[run.model_key], recipe=run.recipe_label, run_id=run.run_id, task=task, metric="", filter="", n=None,
        baseline_score=None, score=None, verdict=verdict, model_key=run.model_key, control=run.control, started=run.started,
        parameters_kept=1.0 if kept is None and run.recipe_name == BASELINE else kept,
    )  # fmt: skip


def _failed(contents: _Contents, run: RunRow, task: str) -> Cell:
    reason = run.failure or "no reason given"
    return replace(_blank(contents, run, task, "failed"), notes=(reason, *comparable.own_warnings(run)))


def _cell(
    store: Store, contents: _Contents, run: RunRow, task: TaskRow, score: ScoreRow, others: Sequence[RunRow], fixed: RunRow | None, margin: float
) -> Cell:
    cell = replace(
        _blank(contents, run, task.task, "undecided"), metric=score.metric, filter=score.filter, n=task.documents, score=score.score,
        best_value=score.best_value, higher_is_better=score.higher_is_better is not False,
    )  # fmt: skip
    cell = replace(cell, reported=published.beside(run.model_name, task.task, run.recipe_name, score.metric) if run.control is None else ())
    if score.score is None:
        return replace(cell, verdict="failed", notes=(f"the result is {score.reported}, not a number", *comparable.own_warnings(run)))
    baseline = fixed or _baseline_of(contents, run, task, others)
    if baseline is None:
        return replace(cell, verdict="incomparable", notes=("no baseline run of this model has this task",))
    if baseline.run_id == run.run_id:
        return replace(cell, verdict=BASELINE, baseline_run=run.run_id, baseline_score=score.score, notes=comparable.own_warnings(run))
    return _compared(store, contents, cell, (run, task, score), baseline, margin)


def _compared(
    store: Store, contents: _Contents, cell: Cell, recipe: tuple[RunRow, TaskRow, ScoreRow], baseline: RunRow, margin: float
) -> Cell:
    run, task, score = recipe
    base_task = contents.task(baseline.run_id, task.task)
    if base_task is None:
        return replace(cell, verdict="incomparable", baseline_run=baseline.run_id, notes=("the baseline has not run this task",))
    base_score = contents.score(baseline.run_id, task.task, score.metric, score.filter)
    reported = None if base_score is None else base_score.score
    cell = replace(cell, baseline_run=baseline.run_id, baseline_score=reported)
    obstacles = comparable.obstacles(store, (baseline, base_task, base_score), recipe)
    if not obstacles and reported is None and base_score is not None:
        obstacles = (f"the baseline's own result is {base_score.reported}, not a number",)
    if obstacles or reported is None:
        return replace(cell, verdict="incomparable", notes=(*obstacles, *comparable.own_warnings(run)))
    effect = _effect(contents, recipe, baseline.run_id, reported, margin)
    notes = (*effect.notes, *_beside(contents, baseline.run_id, run.run_id, score), *_direction_note(score), *comparable.reservations(baseline, run))
    return replace(
        cell, n=effect.count or task.documents, delta=effect.delta, low=effect.low, high=effect.high, p_value=effect.p_value, p_same=effect.p_same,
        lost=effect.lost, gained=effect.gained, flip_rate=effect.flip_rate, documents_needed=effect.documents_needed,
        improvement=effect.improvement, margin=effect.margin, notes=notes,
    )  # fmt: skip


def _beside(contents: _Contents, baseline: str, run: str, primary: ScoreRow) -> tuple[str, ...]:
    """The log-loss of the right answers, where a task reports it beside its primary metric: accuracy can rise while it gets worse."""
    before, after = (contents.score(run_id, primary.task, LOG_LOSS, primary.filter) for run_id in (baseline, run))
    if primary.metric == LOG_LOSS or before is None or after is None or before.score is None or after.score is None:
        return ()
    return (f"{LOG_LOSS} {before.score:.4f} -> {after.score:.4f}, lower is better",)


def _direction_note(score: ScoreRow) -> tuple[str, ...]:
    unknown = score.higher_is_better is None and score.best_value is None
    return ("its results do not say whether higher is better: taken so",) if unknown else ()


def _effect(
    contents: _Contents, recipe: tuple[RunRow, TaskRow, ScoreRow], baseline: str, baseline_score: float, margin: float
) -> Effect:
    run, task, score = recipe
    assert score.score is not None
    samples = contents.samples.of(baseline, run.run_id, score)
    pairs = 0 if samples is None else len(samples.recipe)
    counts = [contents.counts.get((run_id, task.task, score.metric, score.filter), 0) for run_id in (baseline, run.run_id)]
    if samples is None or counts != [pairs, pairs]:
        return Effect(pairs, score.score - baseline_score, notes=("not every document bears this metric in both runs",))
    return judge.judge(
        score.metric,
        _scored(baseline_score, samples.baseline, samples.baseline_weight, samples.baseline_parts),
        _scored(score.score, samples.recipe, samples.recipe_weight, samples.recipe_parts),
        higher_is_better=score.higher_is_better is not False,
        best_value=score.best_value,
        margin=score.margin,
        default_margin=margin,
        clusters=_whole(samples.cluster) if task.cluster_by else None,
    )


def _scored(score: float, values: np.ma.MaskedArray, weights: np.ma.MaskedArray, parts: np.ma.MaskedArray) -> Scored:
    texts = _whole(parts)
    numbers = np.ma.filled(values.astype(float), np.nan)
    return Scored(score, numbers, _whole(weights.astype(float)), None if texts is None else [str(text) for text in texts])


def _whole(column: np.ndarray) -> np.ndarray | None:
    """The column without its mask; None where anything is missing."""
    return None if np.ma.getmaskarray(column).any() else np.ma.getdata(column)


def _baseline_of(contents: _Contents, run: RunRow, task: TaskRow, others: Sequence[RunRow]) -> RunRow | None:
    """The run to compare with; see the module's notes."""
    having = [other for other in others if other.status == "complete" and contents.primary(other.run_id, task.task)]
    pinned = contents.pinned.get(run.model_key)
    for other in having:
        if other.run_id == pinned:
            return other
    unedited = [other for other in having if other.recipe_name == BASELINE] or [other for other in having if other.origin == "plain"]
    if not unedited:
        return None
    is_unedited = run in unedited

    def distance(other: RunRow) -> tuple[bool, bool]:
        row = contents.task(other.run_id, task.task)
        return row is None or not comparable.same_key(row, task), not is_unedited and other.settings_id != run.settings_id

    return min(unedited, key=distance)  # the first of equals: runs come earliest first


def _filtered(cells: Iterable[Cell], tasks: Iterable[str] | None, recipes: Iterable[str] | None) -> list[Cell]:
    task_set = None if tasks is None else set(tasks)
    recipe_set = None if recipes is None else set(recipes)
    return [
        cell
        for cell in cells
        if (task_set is None or cell.task in task_set) and (recipe_set is None or cell.recipe in recipe_set or cell.verdict == BASELINE)
    ]


def _order(cell: Cell) -> tuple[str, str, bool, str, str]:
    return cell.model, cell.task, cell.verdict != BASELINE, cell.recipe, cell.run_id
