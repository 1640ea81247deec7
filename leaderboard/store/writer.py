"""Putting runs into an open store: a group of them in one transaction.

Who is rejected here: a run that is in the store already is a duplicate, not an error (also under the id of an earlier
version, whose rows it replaces); a run whose log-likelihoods
equal, to the bit, those of a run of the same model with other weights is an error (a shared request cache makes every
recipe look lossless), or, where the run says that it used no cache, a warning: an edit may concern nothing that these
answers use. Notable choice: it needs *every* log-likelihood task that the two share to be identical, because one cache
serves all of them. Tasks of one name that are known to be two (other code or data, other documents) are not shared,
unless their answers are identical all the same. The check is waived where the edit is within rounding of the weights'
own dtype, or touched no matrix: such an edit, `identity` above all, may change weights without changing one printed
number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.errors import Unreadable
from leaderboard.readers.records import BASELINE, Rejection, Run
from leaderboard.readers.safe_json import clean
from leaderboard.readers.task_identity import differing_parts
from leaderboard.readers.weights_digest import weights_differ
from leaderboard.store import former_ids, noise_floor
from leaderboard.store.database import Store
from leaderboard.store.rows import insert_runs

# Largest relative change of a matrix that rounding to the dtype alone explains: twice its unit in the last place, and
# for
# float32 what a decomposition and its product in float32 leave behind.
ROUNDING = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
_FEWEST_LOG_LIKELIHOODS = 4


def now() -> datetime:
    """The present as naive UTC, as the store keeps it."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


class Added(Enum):
    """What became of a run."""

    NEW = "added"
    KNOWN = "known already"
    DELETED = "deleted"


def add_run(store: Store, run: Run) -> Added:
    """Store a run, unless it is there already or was deleted. Raises `Unreadable` where it contradicts a stored run."""
    (outcome,) = add_runs(store, [run])
    if isinstance(outcome, Unreadable):
        raise outcome
    return outcome


def add_runs(store: Store, runs: Sequence[Run]) -> list[Added | Unreadable]:
    """Store a group of runs, all that are new or none: what became of each, or why it was left out because it
    contradicts a stored run or an earlier one of the group. Of a known one whose files have gone from where they were,
    the new place is noted.
    """
    outcomes: list[Added | Unreadable] = []
    fresh: list[Run] = []
    with store.transaction():
        carried = former_ids.carry_over(store, runs)
        left_out = _left_out(store, [run.run_id for run in runs])
        note_moves(store, [(run.run_id, run.path) for run in runs if left_out.get(run.run_id) is Added.KNOWN])
        answers = _Answers(store, runs)
        for run in runs:
            known = left_out.get(run.run_id)
            copied = None if known else answers.copied(run)
            held = run.run_id in carried and not known
            outcome = known or (copied if isinstance(copied, Unreadable) and not held else Added.NEW)
            outcomes.append(Added.KNOWN if held else outcome)
            if outcome is not Added.NEW:
                continue
            if copied is not None:
                run = replace(run, warnings=[*run.warnings, str(copied)])
            fresh.append(run)
            left_out[run.run_id] = Added.KNOWN
            answers.remember(run)
            if (
                run.status == "complete"
                and (run.variant.recipe_name == BASELINE or noise_floor.unchanging(run.variant.recipe_resolved))
                and any(task.samples for task in run.tasks)
            ):
                insert_runs(store, fresh, now())  # the noise floor is measured against what was stored before
                noise_floor.record(store, run.run_id)
                fresh = []
        insert_runs(store, fresh, now())
    return outcomes


def _left_out(store: Store, run_ids: Sequence[str]) -> dict[str, Added | Unreadable]:
    """Those runs that the store knows, or was told to forget."""
    known = store.rows("SELECT run_id FROM runs WHERE run_id IN (SELECT unnest(?))", [list(run_ids)])
    deleted = store.rows(
        "SELECT run_id, arg_max(deleted, rowid) AS deleted FROM deletions WHERE run_id IN (SELECT unnest(?)) GROUP BY"
        " run_id",
        [list(run_ids)],
    )
    left_out: dict[str, Added | Unreadable] = {row["run_id"]: Added.DELETED for row in deleted if row["deleted"]}
    return left_out | {row["run_id"]: Added.KNOWN for row in known}


def deleted_runs(store: Store) -> set[str]:
    """The runs that were taken off the board, and are not to come back."""
    rows = store.rows("SELECT run_id FROM deletions GROUP BY run_id HAVING arg_max(deleted, rowid)")
    return {row["run_id"] for row in rows}


def note_moves(store: Store, known: Iterable[tuple[str, Path]]) -> None:
    """Note the place of runs of the store, by id, where the files have gone from where they were. Inside the caller's
    transaction.
    """
    places: dict[str, Path] = {}
    for run_id, path in known:
        places.setdefault(run_id, path)  # of several copies the first
    rows = store.rows("SELECT run_id, path FROM runs WHERE run_id IN (SELECT unnest(?))", [list(places)])
    for run_id, before in ((row["run_id"], row["path"]) for row in rows):
        path = places[run_id]
        place, former = store.places.stored(path), store.places.resolved(before)
        if place != before and (former == path or not former.exists()):
            store.connection.execute("UPDATE runs SET path = ? WHERE run_id = ?", [place, run_id])


def log_rejections(store: Store, rejections: Iterable[Rejection]) -> None:
    """Remember why paths were not taken, each new reason once."""
    asked = {store.places.stored(path): clean(reason) for path, reason in rejections}
    last = store.rows(
        "SELECT path, arg_max(reason, rowid) AS reason FROM ingest_log WHERE outcome = 'rejected' AND path IN"
        " (SELECT unnest(?)) GROUP BY path",
        [list(asked)],
    )
    known = {row["path"]: row["reason"] for row in last}
    new = {path: reason for path, reason in asked.items() if known.get(path) != reason}
    count = len(new)
    columns: dict[str, list[Any]] = {
        "logged_at": [now()] * count,
        "path": list(new),
        "outcome": ["rejected"] * count,
        "run_id": [None] * count,
        "reason": list(new.values()),
    }
    store.insert("ingest_log", columns)


class _AnsweredTask(NamedTuple):
    """The log-likelihoods of one task as a hash, and what the task was."""

    hash: str | None
    documents: str | None
    identity: str | None
    config: str | None

    def is_another(self, other: _AnsweredTask) -> bool:
        """Whether two tasks of one name are known to be two."""
        if self.documents != other.documents:
            return True
        if self.identity and other.identity:
            return self.identity != other.identity
        return bool(self.config and other.config and differing_parts(self.config, other.config))


class _ScoredWeights(NamedTuple):
    """What a run says of the weights that it began from and scored."""

    before: str | None
    after: str | None
    identity: str | None
    dtype: str | None

    @classmethod
    def of(cls, run: Run) -> _ScoredWeights:
        variant = run.variant
        return cls(variant.digest_before, variant.digest_after, variant.identity, variant.dtype)

    def differ(self, other: _ScoredWeights) -> bool:
        """Whether two runs of one model are known to have scored other weights. Where their digests are of two kinds,
        they began from one checkpoint, and one of them edited nothing: whether the other changed what it began from.
        """
        known = weights_differ(self.after, other.after)
        if known is not None or self.identity is None or self[2:] != other[2:]:
            return known is True
        changed = [weights_differ(run.before, run.after) for run in (self, other)]
        return False in changed and True in changed


@dataclass(frozen=True)
class _Answered:
    """The log-likelihoods of one run, by task."""

    run_id: str
    path: str
    weights: _ScoredWeights
    tasks: dict[str, _AnsweredTask]
    changes: Callable[[], list[float | None]]


class _Answers:
    """The runs of the models at hand that share the log-likelihoods of a task with a run of the group."""

    def __init__(self, store: Store, runs: Iterable[Run]) -> None:
        self._by_model: dict[str, list[_Answered]] = defaultdict(list)
        asked = [run for run in runs if run.variant.digest_after is not None and _hashes(run)]
        if not asked:
            return
        rows = store.rows(
            "SELECT v.model_key, r.run_id, r.path, v.digest_before, v.digest_after, v.identity, v.dtype, t.task,"
            " t.log_likelihoods_hash AS hash, t.documents_hash AS documents, t.identity AS task_identity,"
            " t.config_hash AS config"
            " FROM run_tasks t JOIN runs r USING (run_id) JOIN variants v USING (variant_id) WHERE v.digest_after IS"
            " NOT NULL AND t.log_likelihoods >= $1 AND t.run_id IN (SELECT run_id FROM run_tasks WHERE"
            " log_likelihoods_hash IN (SELECT unnest($2))) ORDER BY r.run_id",
            [_FEWEST_LOG_LIKELIHOODS, [task.hash for run in asked for task in _hashes(run).values()]],
        )
        by_run: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_run[row["run_id"]].append(row)
        for run_id, of_run in by_run.items():
            first = of_run[0]
            names = ("hash", "documents", "task_identity", "config")
            tasks = {row["task"]: _AnsweredTask(*(row[name] for name in names)) for row in of_run}
            weights = _ScoredWeights(*(first[name] for name in ("digest_before", "digest_after", "identity", "dtype")))
            path = str(store.places.resolved(first["path"]))
            self._by_model[first["model_key"]].append(
                _Answered(run_id, path, weights, tasks, _stored_changes(store, run_id))
            )

    def remember(self, run: Run) -> None:
        """Take a run of the group for stored."""
        if run.variant.digest_after is not None and (hashes := _hashes(run)):
            changes = [matrix.relative_error for matrix in run.matrices]
            self._by_model[run.variant.model_key].append(
                _Answered(run.run_id, str(run.path), _ScoredWeights.of(run), hashes, lambda: changes)
            )

    def copied(self, run: Run) -> Unreadable | str | None:
        """Of a run whose every answer is to the bit that of a run with other weights: why it cannot be what it says,
        or, where no cache can have served both, what is to be said of it.
        """
        mine = _hashes(run)
        if run.variant.digest_after is None or not mine:
            return None
        limit = ROUNDING.get(run.variant.dtype or "float32", ROUNDING["float32"])
        for other in self._by_model[run.variant.model_key]:
            if not other.weights.differ(_ScoredWeights.of(run)):
                continue
            shared = _shared(mine, other.tasks)
            if not shared or any(other.tasks[task].hash != mine[task].hash for task in shared):
                continue
            changes = [matrix.relative_error for matrix in run.matrices] + other.changes()
            if all(change is not None and change <= limit for change in changes):
                continue
            finding = (
                f"every log-likelihood of {', '.join(shared)} equals to the bit that of {other.path}, although the"
                " weights differ"
            )
            if run.request_cache is False:
                return (
                    f"{finding}: what was edited has no part in these answers (an expert that no token is sent to,"
                    " say), or the edit did not take effect"
                )
            return Unreadable(
                f"{finding}: the two were probably served by one request cache. Run it again without --use_cache"
            )
        return None


def _shared(mine: dict[str, _AnsweredTask], others: dict[str, _AnsweredTask]) -> list[str]:
    return sorted(
        task
        for task in mine.keys() & others.keys()
        if mine[task].hash == others[task].hash or not mine[task].is_another(others[task])
    )


def _hashes(run: Run) -> dict[str, _AnsweredTask]:
    return {
        task.task: _AnsweredTask(task.log_likelihoods_hash, task.documents_hash, task.identity, task.config_hash)
        for task in run.tasks
        if task.log_likelihoods >= _FEWEST_LOG_LIKELIHOODS
    }


def _stored_changes(store: Store, run_id: str) -> Callable[[], list[float | None]]:
    return lambda: [
        row["relative_error"] for row in store.rows("SELECT relative_error FROM receipts WHERE run_id = ?", [run_id])
    ]
