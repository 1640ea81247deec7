"""One task of one run against the same task of another: may they be compared, and what do their samples say?

What `board`, `compare` and `gate` have in common; each puts the answer into its own words.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from leaderboard.compare import comparability, hardware
from leaderboard.compare.chance import answers_and_chance, chance_note, of_metric
from leaderboard.compare.collapse import collapse_signs, possible_collapse
from leaderboard.compare.contents import Contents
from leaderboard.compare.effect import Comparison, Effect, Scored
from leaderboard.compare.judge import judge
from leaderboard.compare.unpaired_scores import ReportedTask, Unpaired, gated, unpaired
from leaderboard.metrics import DEFAULT_MARGIN, named
from leaderboard.store.database import Store
from leaderboard.store.queries import RunRow, RunTaskRow, ScoreRow


class Subject(NamedTuple):
    """A score, the task it is of, and the run that made it."""

    run: RunRow
    task: RunTaskRow
    score: ScoreRow


class Terms(NamedTuple):
    """On which terms two runs are judged. `margin` is for scores in [0, 1], see `judge` for others; `own_margin`, in
    the metric's units, is taken instead of it and of the task's own. `limits_at`: the level of one-sided limits of the
    drop, None for none."""

    margin: float = DEFAULT_MARGIN
    own_margin: float | None = None
    limits_at: float | None = None


@dataclass(frozen=True)
class Pairing:
    """The answer. `obstacles`: why the two may not be compared, and then there is no effect. `notes`: what is to be
    said beside the effect.

    `noise_floor`: the share of answers of the unedited model that flip when rounding alone changes; None where it
    was not measured. `unpaired`: the difference of the two scores by themselves, where samples are all that is missing.
    """

    baseline_score: float | None
    obstacles: tuple[str, ...] = ()
    effect: Effect | None = None
    notes: tuple[str, ...] = ()
    noise_floor: float | None = None
    unpaired: Unpaired | None = None


def pair_up(store: Store, contents: Contents, subject: Subject, baseline: RunRow, terms: Terms) -> Pairing:
    """Compare a score with the baseline run's."""
    run, task, score = subject
    base_task = contents.task(baseline.run_id, task.task)
    if base_task is None:
        return Pairing(None, ("the baseline has not run this task",))
    base_score = contents.score(baseline.run_id, task.task, score.metric, score.filter)
    reported = None if base_score is None else base_score.score
    subject = subject._replace(score=comparability.agreed(base_score, score))
    obstacles = comparability.obstacles(store, (baseline, base_task, base_score), subject)
    if not obstacles and reported is None and base_score is not None:
        obstacles = (f"the baseline's own result is {base_score.reported}, not a number",)
    alone = bool(obstacles) and obstacles == comparability.lacking_samples(base_task, task)
    if alone and base_score is not None and reported is not None:
        return _unpaired(ReportedTask(base_score, base_task), subject, baseline, terms)
    if obstacles or reported is None:
        return Pairing(reported, obstacles)
    effect = _effect(contents, subject, baseline, reported, terms)
    notes = (
        *effect.notes,
        *_direction_note(subject.score),
        *comparability.task_notes(base_task, task),
        *hardware.unknown_place(baseline, run),
        *comparability.reservations(baseline, run),
        *filter(None, [effect.chance_note]),
    )
    return Pairing(reported, (), effect, notes, contents.noise_floor(run, score, baseline))


def _unpaired(reported: ReportedTask, subject: Subject, baseline: RunRow, terms: Terms) -> Pairing:
    """Two scores of one thing, at least one of them without samples."""
    recipe = ReportedTask(subject.score, subject.task)
    if terms.limits_at is None:
        found = unpaired(reported, recipe)
    else:
        found = gated(reported, recipe, terms.limits_at, terms.own_margin, terms.margin)
    obstacles = comparability.lacking_samples(reported.task, subject.task)
    notes = (
        found.note,
        *_direction_note(subject.score),
        *hardware.unknown_place(baseline, subject.run),
        *comparability.reservations(baseline, subject.run),
    )
    return Pairing(reported.score.score, obstacles, notes=notes, unpaired=found)


def _direction_note(score: ScoreRow) -> tuple[str, ...]:
    said, known = score.higher_is_better, named(score.metric).higher_is_better
    if said is None and score.best_value is None:
        return ("its results do not say whether higher is better: taken so",)
    if None not in (said, known) and said != known:
        better = "higher" if said else "lower"
        return (f"warning: both results say that {better} is better of {score.metric}, of which the opposite is known",)
    return ()


def _effect(contents: Contents, subject: Subject, baseline: RunRow, baseline_score: float, terms: Terms) -> Effect:
    key = effect_key(subject.run, subject.score, baseline.run_id, terms)
    if key not in contents.effects:
        effect = _found_effect(contents, subject, baseline.run_id, baseline_score, terms)
        contents.effects[key] = _beside_its_answers(effect, contents, subject, baseline, terms)
    return contents.effects[key]


def _beside_its_answers(effect: Effect, contents: Contents, subject: Subject, baseline: RunRow, terms: Terms) -> Effect:
    """With what shows that the recipe ruined the model, or that it answers no better than chance. Only the unedited
    model tells, since an edit may make right answers likelier than the model has them; a gate asks of any run that it
    would replace.
    """
    if not baseline.may_be_baseline and terms.limits_at is None:
        return replace(effect, collapse=())
    place = contents.answers, baseline.run_id, subject.run.run_id, subject.task.task
    signs = collapse_signs(*place)
    doubtful = () if signs else possible_collapse(*place)
    score = subject.score
    answers = of_metric(answers_and_chance(*place), score.metric, score.filter)
    if answers is None or score.higher_is_better is False or score.best_value is not None:
        return replace(effect, collapse=signs, notes=(*doubtful, *effect.notes))
    return replace(
        effect,
        collapse=signs,
        chance=answers.level,
        beats_chance=answers.is_above(answers.counts.after),
        chance_note="" if signs else chance_note(answers),
        notes=(*doubtful, *effect.notes),
    )


def effect_key(run: RunRow, score: ScoreRow, baseline: str, terms: Terms) -> Hashable:
    """What an effect depends on: a run's id is a hash of all that came out of it."""
    return baseline, run.run_id, score.task, score.metric, score.filter, terms


def _found_effect(contents: Contents, subject: Subject, baseline: str, baseline_score: float, terms: Terms) -> Effect:
    run, task, score = subject
    assert score.score is not None
    samples = contents.samples.of(baseline, run.run_id, score)
    pairs = 0 if samples is None else len(samples.recipe)
    counts = [contents.counts.of(run_id, task.task, score.metric, score.filter) for run_id in (baseline, run.run_id)]
    if samples is None or counts != [pairs, pairs]:
        return Effect(pairs, score.score - baseline_score, notes=("not every document bears this metric in both runs",))
    comparison = Comparison(
        score.metric,
        _scored(baseline_score, samples.baseline, samples.baseline_weight, samples.baseline_parts),
        _scored(score.score, samples.recipe, samples.recipe_weight, samples.recipe_parts),
        higher_is_better=score.higher_is_better is not False,
        best_value=score.best_value,
        margin=terms.own_margin or score.margin,
        default_margin=terms.margin,
        clusters=_whole(samples.cluster) if task.cluster_by or samples.copies else None,
        limits_at=terms.limits_at,
        bound=score.bound,
    )
    effect = judge(comparison)
    return replace(effect, notes=(*effect.notes, *_copies_note(samples.copies, comparison.clusters is not None)))


def _copies_note(copies: int, together: bool) -> tuple[str, ...]:
    """What is to be said of documents that a task holds more than once."""
    if not copies:
        return ()
    counted = ", and count as one document in the statistics" if together else ""
    said = f"{copies:,} {'document is a copy' if copies == 1 else 'documents are copies'} of another, word for word"
    return (f"{said}: copies are paired by their scores, not by their order{counted}",)


def _scored(score: float, values: np.ma.MaskedArray, weights: np.ma.MaskedArray, parts: np.ma.MaskedArray) -> Scored:
    texts = _whole(parts)
    numbers = np.ma.filled(values.astype(float), np.nan)
    return Scored(
        score, numbers, _whole(weights.astype(float)), None if texts is None else [str(text) for text in texts]
    )


def _whole(column: np.ndarray) -> np.ndarray | None:
    """The column without its mask; None where anything is missing."""
    return None if np.ma.getmaskarray(column).any() else np.ma.getdata(column)
