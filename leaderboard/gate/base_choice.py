"""Which unedited run each task of a candidate is compared with: the rule of the board (`compare.baselines`), over the
runs of the database and those that lie beside the candidate.

Notable choice: one run is the baseline where it can be. A task that it did not run, or ran in another form, is compared
with another run that did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from leaderboard.compare.baselines import BaselineChoice, Baselines
from leaderboard.compare.comparability import settings_distance
from leaderboard.compare.contents import Contents, read_contents
from leaderboard.compare.pairing import Subject
from leaderboard.readers.records import Run
from leaderboard.store.database import memory_store, open_store
from leaderboard.store.queries import RunRow
from leaderboard.store.rows import insert_runs
from leaderboard.store.writer import now


class BaseChoice(NamedTuple):
    """main: the run that serves most tasks. others: task -> the run that serves it where `main` does not. pinned: the
    id of the pinned run. notes: what is to be said of the choice.
    """

    main: RunRow
    others: dict[str, RunRow]
    pinned: str | None
    notes: tuple[str, ...]


def choose_base(candidate: Run, beside: Sequence[Run], database: Path | None, patience_s: float) -> BaseChoice | None:
    """The unedited runs to compare a candidate with; None where its model has none. beside: unedited runs that the
    database need not hold. Runs whose files are gone are left out, but for the pinned one.
    """
    contents = _contents([candidate, *beside])
    if database is not None and database.exists():
        with open_store(database, read_only=True, timeout_s=patience_s) as store:
            contents = _joined(contents, read_contents(store, models=[candidate.variant.model_key]))
    own = next(row for row in contents.runs if row.run_id == candidate.run_id)
    pinned = contents.pinned.get(own.model_key)
    runs = [row for row in contents.runs if row is own or row.run_id == pinned or Path(row.path).exists()]
    baselines = Baselines(contents, [own, *(row for row in runs if row is not own)])
    chosen = {}
    for task in contents.tasks.get(own.run_id, ()):
        score = contents.primary(own.run_id, task.task)
        if score is not None:
            chosen[task.task] = baselines.choose(Subject(own, task, score))
    main = _main(chosen, runs, own, pinned)
    if main is None:
        return None
    others = {
        task: choice.run
        for task, choice in chosen.items()
        if choice.run is not None and choice.fits and choice.run.run_id != main.run_id
    }
    notes = dict.fromkeys(note for choice in chosen.values() for note in choice.notes)
    return BaseChoice(main, others, pinned, tuple(note.removeprefix("warning: ") for note in notes))


def _main(chosen: dict[str, BaselineChoice], runs: Sequence[RunRow], own: RunRow, pinned: str | None) -> RunRow | None:
    for fits in (True, False):
        served = Counter(choice.run for choice in chosen.values() if choice.run is not None and choice.fits is fits)
        if served:
            return served.most_common(1)[0][0]
    # none has run a task of the candidate: the gate says so of the one that is nearest otherwise
    unedited = [run for run in runs if run.status == "complete" and (run.may_be_baseline or run.run_id == pinned)]
    return min(reversed(unedited), key=lambda run: (run.run_id != pinned, *settings_distance(run, own)), default=None)


def _contents(runs: Sequence[Run]) -> Contents:
    store = memory_store()
    try:
        different = {run.run_id: run for run in reversed(runs)}
        bare = [replace(run, tasks=[replace(task, samples=None) for task in run.tasks]) for run in different.values()]
        insert_runs(store, bare, now())
        return read_contents(store)
    finally:
        store.connection.close()


def _joined(first: Contents, second: Contents) -> Contents:
    """The rows of two stores; of a run that both hold, the first's."""
    known = {run.run_id for run in first.runs}
    runs = [*first.runs, *(run for run in second.runs if run.run_id not in known and run.run_id in second.tasks)]
    return replace(
        first,
        runs=runs,
        tasks={**second.tasks, **first.tasks},
        scores={**second.scores, **first.scores},
        pinned=second.pinned,
        floors=second.floors,
    )
