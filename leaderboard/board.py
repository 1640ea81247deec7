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
from dataclasses import replace

from leaderboard import comparable, published
from leaderboard.cell import BASELINE, Cell, with_verdicts
from leaderboard.contents import Contents, Effects, read_contents
from leaderboard.errors import UnknownRun
from leaderboard.judge import DEFAULT_MARGIN
from leaderboard.pairing import Subject, Terms, effect_key, pair_up
from leaderboard.queries import RunRow, ScoreRow, TaskRow
from leaderboard.store import Store


def board(
    store: Store,
    *,
    models: Iterable[str] | None = None,
    tasks: Iterable[str] | None = None,
    recipes: Iterable[str] | None = None,
    baseline_run: str | None = None,
    margin: float = DEFAULT_MARGIN,
    known: Effects | None = None,
) -> list[Cell]:
    """All cells, or those of some models, tasks and recipes (labels), by model, task and time.

    `baseline_run` compares everything with that run instead. `margin` is for scores in [0, 1]; see `judge` for others.
    `known` keeps effects from one call to the next: runs never change, so neither do they.
    The correction is over all cells of a model, whatever the filters. Raises `UnknownRun`.
    """
    contents = read_contents(store, known)
    fixed = _the_run(contents, baseline_run) if baseline_run else None
    by_model: dict[str, list[RunRow]] = defaultdict(list)
    for run in contents.runs:
        by_model[run.model_key].append(run)
    wanted = None if models is None else set(models)
    cells = []
    for key, runs in by_model.items():
        if wanted is None or wanted & {key, contents.names[key], runs[0].model_name}:
            candidates = fixed or _Candidates(contents, runs)
            contents.samples.fetch(_pairs(contents, runs, candidates, margin))
            cells += with_verdicts([cell for run in runs for cell in _cells(store, contents, run, candidates, margin)])
    return sorted(_filtered(cells, tasks, recipes), key=_order)


def pair_board(store: Store, baseline_run: str, run_id: str, *, margin: float = DEFAULT_MARGIN) -> list[Cell]:
    """One run against another, whatever their models: a cell a task, corrected over these alone. Raises `UnknownRun`."""
    contents = read_contents(store)
    baseline, run = _the_run(contents, baseline_run), _the_run(contents, run_id)
    return sorted(with_verdicts(_cells(store, contents, run, baseline, margin)), key=_order)


def _pairs(contents: Contents, runs: Sequence[RunRow], against: RunRow | _Candidates, margin: float) -> set[tuple[str, str]]:
    """(baseline, run) of every pair whose samples will be asked for."""
    found = set()
    for run in runs if len(runs) > 1 else ():
        for task in contents.tasks.get(run.run_id, ()):
            score = contents.primary(run.run_id, task.task)
            baseline = against if isinstance(against, RunRow) else against.baseline_of(run, task)
            if score is not None and baseline is not None and baseline is not run and effect_key(run, score, baseline.run_id, Terms(margin)) not in contents.effects:
                found.add((baseline.run_id, run.run_id))
    return found


def _the_run(contents: Contents, run_id: str) -> RunRow:
    found = [run for run in contents.runs if run.run_id.startswith(run_id)]
    if len(found) != 1:
        raise UnknownRun(f"{'no run' if not found else 'more than one run'} in the leaderboard begins with {run_id}")
    return found[0]


def _cells(store: Store, contents: Contents, run: RunRow, against: RunRow | _Candidates, margin: float) -> list[Cell]:
    if run.status == "failed":
        names = [row.task for row in contents.tasks.get(run.run_id, ())] or ["(all)"]
        return [_failed(contents, run, name) for name in names]
    rows = [(row, contents.primary(run.run_id, row.task)) for row in contents.tasks.get(run.run_id, ())]
    return [_cell(store, contents, run, row, score, against, margin) for row, score in rows if score is not None]


def _blank(contents: Contents, run: RunRow, task: str, verdict: str) -> Cell:
    kept = run.parameters_after / run.parameters_before if run.parameters_after and run.parameters_before else None
    return Cell(
        model=contents.names[run.model_key], recipe=run.recipe_label, run_id=run.run_id, task=task, metric="", filter="", n=None,
        baseline_score=None, score=None, verdict=verdict, model_key=run.model_key, control=run.control, started=run.started,
        parameters_kept=1.0 if kept is None and run.recipe_name == BASELINE else kept,
    )  # fmt: skip


def _failed(contents: Contents, run: RunRow, task: str) -> Cell:
    reason = run.failure or "no reason given"
    return replace(_blank(contents, run, task, "failed"), notes=(reason, *comparable.own_warnings(run)))


def _cell(store: Store, contents: Contents, run: RunRow, task: TaskRow, score: ScoreRow, against: RunRow | _Candidates, margin: float) -> Cell:
    cell = replace(
        _blank(contents, run, task.task, "undecided"), metric=score.metric, filter=score.filter, n=task.documents, score=score.score,
        best_value=score.best_value, higher_is_better=score.higher_is_better is not False,
    )  # fmt: skip
    cell = replace(cell, reported=published.beside(run.model_name, task.task, run.recipe_name, score.metric) if run.control is None else ())
    if score.score is None:
        return replace(cell, verdict="failed", notes=(f"the result is {score.reported}, not a number", *comparable.own_warnings(run)))
    baseline = against if isinstance(against, RunRow) else against.baseline_of(run, task)
    if baseline is None:
        return replace(cell, verdict="incomparable", notes=("no baseline run of this model has this task",))
    if baseline.run_id == run.run_id:
        return replace(cell, verdict=BASELINE, baseline_run=run.run_id, baseline_score=score.score, notes=comparable.own_warnings(run))
    return _compared(store, contents, cell, (run, task, score), baseline, margin)


def _compared(
    store: Store, contents: Contents, cell: Cell, recipe: tuple[RunRow, TaskRow, ScoreRow], baseline: RunRow, margin: float
) -> Cell:
    run, task, _ = recipe
    pairing = pair_up(store, contents, Subject(*recipe), baseline, Terms(margin))
    cell = replace(cell, baseline_run=baseline.run_id, baseline_score=pairing.baseline_score)
    effect = pairing.effect
    if effect is None:
        return replace(cell, verdict="incomparable", notes=(*pairing.obstacles, *comparable.own_warnings(run)))
    return replace(
        cell, n=effect.count or task.documents, delta=effect.delta, low=effect.low, high=effect.high, p_value=effect.p_value, p_same=effect.p_same,
        lost=effect.lost, gained=effect.gained, flip_rate=effect.flip_rate, documents_needed=effect.documents_needed, detectable=effect.detectable,
        improvement=effect.improvement, margin=effect.margin, notes=pairing.notes, noise_floor=pairing.noise_floor,
    )  # fmt: skip


class _Candidates:
    """The runs of one model that may be its baseline, by task: found once, because a model may have a thousand runs."""

    def __init__(self, contents: Contents, runs: Sequence[RunRow]) -> None:
        self._contents = contents
        pinned = contents.pinned.get(runs[0].model_key)
        self._pinned: dict[str, RunRow] = {}
        having: dict[str, list[tuple[RunRow, TaskRow]]] = defaultdict(list)
        for run in runs:
            if run.status != "complete" or not (run.run_id == pinned or run.recipe_name == BASELINE or run.origin == "plain"):
                continue
            for row in contents.tasks.get(run.run_id, ()):
                if contents.primary(run.run_id, row.task) is None:
                    continue
                if run.run_id == pinned:
                    self._pinned[row.task] = run
                if run.recipe_name == BASELINE or run.origin == "plain":
                    having[row.task].append((run, row))
        self._unedited = {task: [pair for pair in pairs if pair[0].recipe_name == BASELINE] or pairs for task, pairs in having.items()}

    def baseline_of(self, run: RunRow, task: TaskRow) -> RunRow | None:
        """The run to compare with; see the module's notes."""
        if task.task in self._pinned:
            return self._pinned[task.task]
        unedited = self._unedited.get(task.task, ())
        is_unedited = run.recipe_name == BASELINE or any(other.run_id == run.run_id for other, _ in unedited)
        best: tuple[bool, bool] | None = None
        found = None
        for other, row in unedited:  # the first of equals: runs come earliest first
            distance = (not comparable.same_key(row, task), not is_unedited and other.settings_id != run.settings_id)
            if best is None or distance < best:
                best, found = distance, other
            if best == (False, False):
                break
        return found


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
