"""The cells of a run: the score of each task against the baseline and the controls, before verdicts are corrected.

Notable choices:
- A task's further metrics have cells of their own, in `further` of the primary one's.
- Where samples are all that is missing, an incomparable cell has the difference of the two scores and an unpaired
  interval; it is in no correction.
- NaN or infinity as a run's score makes the cell *failed* with that reason, never a number and never a missing row.
- Weights that are the baseline's to the bit, with its score, are *same* whatever the number of documents: there is
  nothing to test, so that the cell is in no correction either.
- What was made on another GPU, or by another engine, is compared where `compare.hardware` allows it: that depends on
  which noise was measured, so it is asked for every board and never kept with what was judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leaderboard.board import reported
from leaderboard.board.cell import Cell, changed, made
from leaderboard.board.further import further_scores
from leaderboard.compare import clipping, collapse, comparability, needs, verdict_cache
from leaderboard.compare.baselines import BaselineChoice, Baselines
from leaderboard.compare.contents import Contents
from leaderboard.compare.one_model import ONE_MODEL, is_one_model
from leaderboard.compare.pairing import Subject, Terms, effect_key, pair_up
from leaderboard.compare.verdict_cache import Judged, Key, Memory
from leaderboard.metrics import named
from leaderboard.readers.records import BASELINE
from leaderboard.store.database import Store
from leaderboard.store.queries import RunRow


class Judging(NamedTuple):
    """What every cell of a board is judged with: against the one run, or the best of a model's; remembered where
    `memory` is given. names: run_id -> what it is called beside the others.
    """

    store: Store
    contents: Contents
    against: RunRow | Baselines
    margin: float
    memory: Memory | None = None
    names: Mapping[str, str] = {}


def cells_of(judging: Judging, runs: Sequence[RunRow]) -> list[Cell]:
    """The cells of runs of one model, whose samples fit into memory together."""
    asked = {run.run_id: _asked_of(judging, run) for run in runs}
    judging.contents.fetch(_pairs(judging, asked))
    return [cell for run in runs for cell in _cells(judging, run, asked[run.run_id])]


class _Asked(NamedTuple):
    """A primary score, what it is compared with, and the task's other metrics of which documents may bear a value."""

    subject: Subject
    choice: BaselineChoice
    controls: list[RunRow]
    further: list[Subject]


def _asked_of(judging: Judging, run: RunRow) -> list[_Asked]:
    contents = judging.contents
    rows = [(task, contents.primary(run.run_id, task.task)) for task in contents.tasks.get(run.run_id, ())]
    subjects = [Subject(run, task, score) for task, score in rows if score is not None]
    return [
        _Asked(one, _choice(judging, one), _controls(judging, one), _further_subjects(judging, one)) for one in subjects
    ]


def _pairs(judging: Judging, asked: Mapping[str, Sequence[_Asked]]) -> set[tuple[str, str]]:
    """(baseline, run) of every pair whose samples will be asked for. asked: by run."""
    found: set[tuple[str, str]] = set()
    contents, terms = judging.contents, Terms(judging.margin)
    several = asked.values() if len(asked) > 1 else ()
    for subject, choice, controls, further in (one for ones in several for one in ones):
        run, baseline = subject.run, choice.run
        if baseline is None or baseline is run:
            continue
        wanted = [(subject, other) for other in (baseline, *controls)]
        wanted += [(one, other) for one in further for other in (baseline, *_controls_of_further(one, controls))]
        for one, other in wanted:
            if (
                (other.run_id, run.run_id) not in found
                and _recalled(judging, one, other) is None
                and effect_key(run, one.score, other.run_id, terms) not in contents.effects
            ):
                found.add((other.run_id, run.run_id))
    return found


def _further_subjects(judging: Judging, subject: Subject) -> list[Subject]:
    """The task's other metrics, of which documents may bear a value."""
    if subject.task.documents is None:
        return []
    scores = judging.contents.of_task(subject.run.run_id, subject.task.task)
    return [subject._replace(score=score) for score in further_scores(scores, subject.score)]


def _cells(judging: Judging, run: RunRow, asked: Sequence[_Asked]) -> list[Cell]:
    if run.status == "failed":
        names = [row.task for row in judging.contents.tasks.get(run.run_id, ())] or ["(all)"]
        return [_failed(judging, run, name) for name in names]
    return [_with_further(judging, _cell(judging, one), one) for one in asked]


def _with_further(judging: Judging, cell: Cell, asked: _Asked) -> Cell:
    """The cell with those of the task's further metrics; as it is where the run cannot be compared at all."""
    baseline = asked.choice.run
    if cell.verdict == "incomparable" or baseline is None:
        return cell
    found = tuple(
        one for subject in asked.further if (one := _further(judging, subject, baseline, asked.controls)) is not None
    )
    return changed(cell, further=found) if found else cell


def _controls_of_further(subject: Subject, controls: Sequence[RunRow]) -> Sequence[RunRow]:
    """What a further metric is compared with besides the baseline: what a paper reports is held against controls."""
    run, task, score = subject
    return controls if reported.is_claimed(run.model_name, task.task, run.recipe_name, score.metric) else ()


def _further(judging: Judging, subject: Subject, baseline: RunRow, controls: Sequence[RunRow]) -> Cell | None:
    """The cell of a further metric; None where no document bears a value of it. controls: those of the primary one."""
    run, _, score = subject
    values = _of_score(judging, subject, is_primary=False)
    if score.score is None:
        return made(values, verdict="failed", notes=(f"the result is {score.reported}, not a number",))
    if baseline.run_id == run.run_id:
        return made(values, verdict=BASELINE, baseline_run=run.run_id, baseline_score=score.score)
    if _judged(judging, subject, baseline).documents == 0:
        return None
    against_controls = tuple(
        _compared(judging, values | {"control": control.control}, subject, control)
        for control in _controls_of_further(subject, controls)
    )
    return _compared(judging, values, subject, baseline, (), against_controls)


def _blank(judging: Judging, run: RunRow, task: str) -> dict[str, Any]:
    """The fields of a cell that are known of any."""
    kept = run.parameters_after / run.parameters_before if run.parameters_after and run.parameters_before else None
    return {
        "model": judging.contents.names[run.model_key],
        "recipe": run.recipe_label,
        "run_id": run.run_id,
        "task": task,
        "metric": "",
        "filter": "",
        "n": None,
        "baseline_score": None,
        "score": None,
        "verdict": "undecided",
        "model_key": run.model_key,
        "control": run.control,
        "started": run.started,
        "parameters_kept": 1.0 if kept is None and run.recipe_name == BASELINE else kept,
        "label": judging.names.get(run.run_id, ""),
        "weights": run.digest_after or run.run_id,
    }


def _failed(judging: Judging, run: RunRow, task: str) -> Cell:
    reason = run.failure or "no reason given"
    notes = (reason, *comparability.own_warnings(run))
    return made(_blank(judging, run, task), verdict="failed", notes=notes)


def _of_score(judging: Judging, subject: Subject, *, is_primary: bool = True) -> dict[str, Any]:
    """The fields of the cell of a score before it is compared."""
    run, task, score = subject
    claims = is_primary and run.control is None
    values = _blank(judging, run, task.task)
    values["metric"] = score.metric
    values["filter"] = score.filter
    values["n"] = task.document_count
    values["subset"] = task.subset
    values["learned"] = judging.contents.learned_of_scored.get((run.run_id, task.task), 0)
    values["shots"] = task.num_fewshot
    values["rephrased"] = comparability.rephrased(task)
    values["score"] = score.score
    values["best_value"] = score.best_value
    values["higher_is_better"] = score.higher_is_better is not False
    values["is_primary"] = is_primary
    values["reported"] = reported.beside(run.model_name, task.task, run.recipe_name, score.metric) if claims else ()
    return values


def _cell(judging: Judging, asked: _Asked) -> Cell:
    subject, (baseline, _, notes), controls, _ = asked
    run, task, score = subject
    values = _of_score(judging, subject)
    if score.score is None:
        return made(
            values,
            verdict="failed",
            notes=(f"the result is {score.reported}, not a number", *comparability.own_warnings(run)),
            collapse=_collapse_without_a_score(judging, asked),
        )
    if baseline is None:
        return made(
            values,
            verdict="incomparable",
            notes=("no baseline run of this model has this task", *comparability.unpaired_notes(run, task)),
        )
    if baseline.run_id == run.run_id:
        return made(
            values,
            verdict=BASELINE,
            baseline_run=run.run_id,
            baseline_score=score.score,
            notes=(*notes, *comparability.unpaired_notes(run, task)),
        )
    against_controls = tuple(
        _compared(judging, values | {"control": control.control, "reported": ()}, subject, control)
        for control in controls
    )
    before = (*judging.contents.revision_notes(run), *notes)
    return _compared(judging, values, subject, baseline, before, against_controls)


def _choice(judging: Judging, subject: Subject) -> BaselineChoice:
    against = judging.against
    return BaselineChoice(against) if isinstance(against, RunRow) else against.choose(subject)


def _controls(judging: Judging, subject: Subject) -> list[RunRow]:
    """The controls that a recipe's run is compared with beside its baseline; none where another run is asked about."""
    if isinstance(judging.against, RunRow):
        return []
    return judging.contents.controls_of(subject.run, subject.task, subject.score)


def _compared(
    judging: Judging,
    known: Mapping[str, Any],
    subject: Subject,
    baseline: RunRow,
    before: tuple[str, ...] = (),
    against_controls: tuple[Cell, ...] = (),
) -> Cell:
    """The cell of a comparison. known: its fields so far; before: notes that come before those of the comparison."""
    run, task, score = subject
    apart = judging.contents.hardware(baseline, run, score)
    if apart is not None:
        if not apart.is_measured:
            return _in_another_place(judging, known, subject, baseline, (*before, apart.refusal))
        before = (*before, apart.warning)
    found = _judged(judging, subject, baseline)
    base_score = judging.contents.score(baseline.run_id, task.task, score.metric, score.filter)
    values: dict[str, Any] = {
        "baseline_run": baseline.run_id,
        "baseline_score": found.baseline_score,
        "higher_is_better": comparability.agreed(base_score, score).higher_is_better is not False,
        "delta": found.delta,
        "low": found.low,
        "high": found.high,
        "against_controls": against_controls,
    }
    notes = verdict_cache.texts(found.notes)
    if found.documents is None:
        why = (*verdict_cache.texts(found.obstacles), *(notes or comparability.own_warnings(run)))
        return made(
            known,
            **values,
            verdict="incomparable",
            notes=(*before, *why),
            unpaired=found.delta is not None,
            says_nothing=_as_wide_as_the_range(score.metric, found),
        )
    if is_one_model(baseline.digest_after, run.digest_after, found.delta):
        return made(
            known,
            **values | {"low": 0.0, "high": 0.0},
            verdict="same",
            n=found.documents or task.documents,
            lost=found.lost,
            gained=found.gained,
            flip_rate=found.flip_rate,
            improvement=0.0,
            margin=found.margin,
            notes=(*before, ONE_MODEL),
            collapse=collapse.from_json(found.collapse),
            chance=found.chance,
            beats_chance=found.beats_chance,
        )
    return made(
        known,
        **values,
        n=found.documents or task.documents,
        p_value=found.p_value,
        p_same=found.p_same,
        lost=found.lost,
        gained=found.gained,
        flip_rate=found.flip_rate,
        improvement=found.improvement,
        improvement_low=found.improvement_low,
        improvement_high=found.improvement_high,
        margin=found.margin,
        notes=(*before, *notes) if before else notes,
        noise_floor=judging.contents.noise_floor(run, score, baseline),
        clipping=clipping.from_json(found.clipping),
        needs=found.needs,
        collapse=collapse.from_json(found.collapse),
        chance=found.chance,
        beats_chance=found.beats_chance,
    )


def _in_another_place(
    judging: Judging, known: Mapping[str, Any], subject: Subject, baseline: RunRow, notes: tuple[str, ...]
) -> Cell:
    """The cell of a run that may not be compared because its baseline was made elsewhere, whatever the answers say."""
    run, task, score = subject
    base_score = judging.contents.score(baseline.run_id, task.task, score.metric, score.filter)
    return made(
        known,
        verdict="incomparable",
        baseline_run=baseline.run_id,
        baseline_score=None if base_score is None else base_score.score,
        notes=(*notes, *comparability.own_warnings(run)),
    )


def _collapse_without_a_score(judging: Judging, asked: _Asked) -> tuple[str, ...] | None:
    """What shows that the model collapsed, where its score is no finite number: other tasks of the weights may look
    cured.
    """
    run, task, _ = asked.subject
    baseline = asked.choice.run
    if baseline is None or baseline.run_id == run.run_id or not baseline.may_be_baseline:
        return None
    return collapse.collapse_signs(judging.contents.answers, baseline.run_id, run.run_id, task.task)


def _as_wide_as_the_range(metric: str, found: Judged) -> bool:
    """Whether the unpaired interval of a metric within limits leaves everything possible."""
    within = named(metric).range
    width = within.high - within.low
    if found.low is None or found.high is None or not math.isfinite(width):
        return False
    return needs.spans(width, found.low, found.high)


def _judged(judging: Judging, subject: Subject, baseline: RunRow) -> Judged:
    found = _recalled(judging, subject, baseline)
    if found is not None:
        return found
    pairing = pair_up(judging.store, judging.contents, subject, baseline, Terms(judging.margin))
    return (
        verdict_cache.judged(pairing)
        if judging.memory is None
        else judging.memory.add(_key(subject, baseline), pairing)
    )


def _recalled(judging: Judging, subject: Subject, baseline: RunRow) -> Judged | None:
    return None if judging.memory is None else judging.memory.get(_key(subject, baseline))


def _key(subject: Subject, baseline: RunRow) -> Key:
    return Key(subject.run.run_id, baseline.run_id, subject.task.task, subject.score.metric, subject.score.filter)
