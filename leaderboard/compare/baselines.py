"""Which run of a model is the baseline of a score.

Notable choices:
- Only an unedited run that is in the score's comparability key (`comparability`) will do: the same task by its code and
  data, the same documents, shots and so on, and an engine and a GPU that it may be compared across (`hardware`). Those
  of the run itself come before others, then runs of the recipe `baseline` before plain ones of lm-eval, those whose
  files say that the model is unedited before those whose files leave it open, the same settings before others, a task
  that is known to be the same before one of which that is not known, and of equals the latest.
- "Latest" goes by when a run was started, which stands in its files. The order of ingest does not: a rebuild reads the
  folders in another order, and archived runs may come in late.
- A pinned run comes first where it will do, edited or not; where another run does and it does not, the reason is said.
- Where no run will do, the pinned one, or else the nearest, is named: the comparison then says what differs.
- An unedited run is measured against the latest one like it of its GPU and engine, whatever the settings: what differs
  between the two is noise. Where that is itself, and a later one ran another task of the same name, it is an older
  baseline.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from leaderboard.compare import comparability, hardware
from leaderboard.compare.contents import Contents
from leaderboard.compare.pairing import Subject
from leaderboard.readers.records import BASELINE
from leaderboard.readers.weights_digest import kind_of
from leaderboard.store.queries import RunRow, RunTaskRow, ScoreRow

_MOST_NAMED = 100  # unedited runs, the latest, among which the nearest is looked for where none will do


class BaselineChoice(NamedTuple):
    """The run to compare with, None where the model has none with this task. fits: whether it is in the score's
    comparability key. notes: what is to be said of the choice.
    """

    run: RunRow | None
    fits: bool = False
    notes: tuple[str, ...] = ()


class _PossibleBaseline(NamedTuple):
    run: RunRow
    task: RunTaskRow


class Baselines:
    """The runs of one model that may be its baseline, by task: found once, because a model may have a thousand runs.

    contents: of the store. runs: all runs of the model.
    """

    def __init__(self, contents: Contents, runs: Sequence[RunRow]) -> None:
        self._contents = contents
        self._pinned_id = contents.pinned.get(runs[0].model_key) if runs else None
        self._pinned: dict[str, _PossibleBaseline] = {}
        self._unedited: dict[str, dict[tuple[object, ...], _PossibleBaseline]] = defaultdict(dict)
        self._asked_alike: dict[tuple[object, ...], list[_PossibleBaseline]] = defaultdict(list)
        self._counted: dict[str, tuple[object, ...]] = {}
        self._chosen: dict[tuple[object, ...], BaselineChoice] = {}
        for run in sorted(runs, key=_age, reverse=True):
            if run.status == "complete" and (run.run_id == self._pinned_id or run.may_be_baseline):
                self._add(run)

    def _add(self, run: RunRow) -> None:
        for row in self._contents.tasks.get(run.run_id, ()):
            if self._contents.primary(run.run_id, row.task) is None:
                continue
            if run.run_id == self._pinned_id:
                self._pinned[row.task] = _PossibleBaseline(run, row)
            if run.may_be_baseline:
                self._add_unedited(run, row)

    def _add_unedited(self, run: RunRow, row: RunTaskRow) -> None:
        """Of runs that cannot be told apart by anything that counts, only the latest is kept."""
        rows = self._contents.scores.get((run.run_id, row.task), ())
        has = tuple((score.metric, score.filter, score.score is None, *_terms(score)) for score in rows)
        alike = (*row[2:], *_counts(run), run.recipe_name == BASELINE, run.edited, has)
        if alike not in self._unedited[row.task]:
            self._unedited[row.task][alike] = _PossibleBaseline(run, row)
            self._asked_alike[_asked(run, row)].append(_PossibleBaseline(run, row))

    def choose(self, subject: Subject) -> BaselineChoice:
        """The run to compare a score with; see the module's notes."""
        run, task, score = subject
        alike = (task[1:], score.metric, score.filter, _terms(score), self._counting(run))
        if alike not in self._chosen:
            self._chosen[alike] = self._choose(subject)
        found = self._chosen[alike]
        own = found.run is not None and found.run.run_id == run.run_id
        return found._replace(notes=self._older(subject)) if own else found

    def _counting(self, run: RunRow) -> tuple[object, ...]:
        """What of a run decides which baseline its scores have."""
        if run.run_id not in self._counted:
            unedited = run.may_be_baseline
            counts = (run.model_key, run.digest_before, run.dtype, run.place) if unedited else _counts(run)
            counts = (comparability.harness(run), *counts)
            self._counted[run.run_id] = (unedited, *counts)
        return self._counted[run.run_id]

    def _choose(self, subject: Subject) -> BaselineChoice:
        pinned = self._pinned.get(subject.task.task)
        unfit = self._differences(pinned, subject) if pinned else []
        if pinned and not unfit:
            return BaselineChoice(pinned.run, True)
        best = self._nearest(self._asked_alike.get(_asked(subject.run, subject.task), ()), subject)
        if best is not None and not self._differences(best, subject):
            reason = f"warning: the pinned baseline does not serve here: {'; '.join(unfit)}"
            return BaselineChoice(best.run, True, (reason,) if pinned else ())
        nearest = pinned or self._nearest(islice(self._unedited[subject.task.task].values(), _MOST_NAMED), subject)
        return BaselineChoice(None if nearest is None else nearest.run)

    def _nearest(self, candidates: Iterable[_PossibleBaseline], subject: Subject) -> _PossibleBaseline | None:
        return min(candidates, key=lambda candidate: self._distance(candidate, subject), default=None)

    def _differences(self, candidate: _PossibleBaseline, subject: Subject) -> list[str]:
        score = self._contents.score(
            candidate.run.run_id, subject.task.task, subject.score.metric, subject.score.filter
        )
        apart = self._contents.hardware(candidate.run, subject.run, subject.score)
        refused = [apart.refusal] if apart is not None and not apart.is_measured else []
        return [*comparability.key_differences((*candidate, score), subject), *refused]

    def _distance(self, candidate: _PossibleBaseline, subject: Subject) -> tuple[object, ...]:
        settings = comparability.settings_distance(candidate.run, subject.run)
        return (
            len(self._differences(candidate, subject)),
            hardware.distance(candidate.run, subject.run),
            candidate.run.recipe_name != BASELINE,
            candidate.run.edited is not False,
            *((False, False) if subject.run.may_be_baseline else settings[:2]),
            comparability.same_task_known(candidate.task, subject.task),
            _of_other_digests(candidate.run, subject.run),
            0 if subject.run.may_be_baseline else settings[2],
        )

    def _older(self, subject: Subject) -> tuple[str, ...]:
        """Of a baseline: that a later one ran another task of this name."""
        for candidate in self._unedited[subject.task.task].values():
            if candidate.run.run_id == subject.run.run_id:
                return ()
            if comparability.task_difference(subject.task, candidate.task):
                return (
                    f"an older baseline: run {candidate.run.run_id[:8]} later ran this task with other code or data",
                )
        return ()


def _of_other_digests(candidate: RunRow, run: RunRow) -> bool:
    """Whether both name the weights that they began from, by digests of two kinds."""
    both = candidate.digest_before and run.digest_before
    return bool(both) and kind_of(candidate.digest_before or "") != kind_of(run.digest_before or "")


def _asked(run: RunRow, task: RunTaskRow) -> tuple[object, ...]:
    """What a run's task and its baseline's have in common, task identity apart."""
    return comparability.harness(run), *comparability.key(task)


def _counts(run: RunRow) -> tuple[object, ...]:
    """What of a run decides which baseline it has, or which it is."""
    reservations = (getattr(run, name) for name in comparability.RESERVATIONS)
    return (
        *(comparability.harness(run), run.model_key, run.settings_id, run.digest_before, run.place),
        *reservations,
    )


def _terms(score: ScoreRow) -> tuple[object, ...]:
    """What two files may say differently of one metric."""
    return score.higher_is_better, score.best_value, score.margin


def _age(run: RunRow) -> tuple[bool, datetime, str]:
    """Order of time, runs without one first."""
    return run.started is not None, run.started or datetime.min, run.run_id
