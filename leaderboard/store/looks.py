"""What `ingest` found when it last looked, so that what has not changed since is not read again.

What was found is known by its place, and by the state of its files and of the code that reads them (`file_stamps`).
Kept are the runs that reading it gave, or why it could not be read. Notable choices:
- What became of a run follows from the store as it is now: one that is no longer in it, and was not deleted, is read.
- A run that was left out because it contradicts another is read again as soon as anything else is, or the store holds
  other runs: what it contradicts may have gone.
- What could not be opened is not kept: the next time it may be readable, without a trace in its files.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.readers.discovery import Candidate
from leaderboard.readers.file_stamps import stamp_of
from leaderboard.readers.orphan_samples import looks_like_samples
from leaderboard.readers.records import Run
from leaderboard.store.database import Store
from leaderboard.store.places import RunPlaces
from leaderboard.store.writer import deleted_runs


class FoundRun(NamedTuple):
    """A run that reading gave. path: where it lies. contradiction: why it was left out beside those of the store."""

    run_id: str
    path: Path
    contradiction: str | None = None


class EarlierLook(NamedTuple):
    """What reading gave: runs, or why nothing could be read."""

    runs: tuple[FoundRun, ...] = ()
    reason: str | None = None

    @property
    def rests_on_others(self) -> bool:
        """Whether it rests on other runs of the store."""
        return any(run.contradiction for run in self.runs)


class _Stored(NamedTuple):
    stamp: str
    outcomes: dict[str, Any]
    runs: str | None = None


class Looks:
    """What was found before, as far as it holds, and what is found now. database: the store's file, there or not.
    roots: where runs are looked for.
    """

    def __init__(self, database: Path, roots: Iterable[Path]) -> None:
        self.places = RunPlaces(database)
        self._roots = {str(root.resolve()) for root in roots}
        self._lock = threading.Lock()  # one thread reads, another writes
        self.present: dict[str, str] = {}
        self.deleted: set[str] = set()
        self._state = ""
        self._stored: dict[str, _Stored] = {}
        self._stamps: dict[str, str | None] = {}
        self._new: dict[str, _Stored] = {}
        self._read: dict[str, tuple[Candidate, list[tuple[str, Path]]]] = {}
        self._outcomes: dict[tuple[str, Path], str | None] = {}

    @property
    def has_news(self) -> bool:
        """Whether there is anything to store."""
        return bool(self._new or self._read or self._gone())

    def recall(self, store: Store) -> None:
        """Take in what the store knows of earlier looks, and which runs it holds and is to leave out."""
        self.present = dict(store.connection.execute("SELECT run_id, path FROM runs").fetchall())
        self.deleted = deleted_runs(store)
        self._state = _state(store)
        rows = store.connection.execute("SELECT place, stamp, outcomes, runs FROM looks").fetchall()
        self._stored = {place: _Stored(stamp, json.loads(text), runs) for place, stamp, text, runs in rows}

    def is_samples(self, file: Path) -> bool:
        """`looks_like_samples`, without opening a file that has not changed."""
        candidate = Candidate(file, None, None, (file,))
        held = self._held(candidate)
        if held is not None:
            return bool(held.outcomes.get("samples", True))
        found = looks_like_samples(file)
        self._note(candidate, {"samples": found})
        return found

    def unchanged(self, candidates: Sequence[Candidate]) -> list[EarlierLook | None]:
        """Of each, what reading it again would give; None where it has to be read."""
        found = [self._look(candidate) for candidate in candidates]
        if None in found:
            return [None if look is None or look.rests_on_others else look for look in found]
        return found

    def was_read(self, candidate: Candidate, runs: list[Run]) -> None:
        """Take down which runs a candidate gave; what becomes of each is told later."""
        self._read[self.places.stored(candidate.path)] = candidate, [(run.run_id, run.path) for run in runs]

    def was_refused(self, candidate: Candidate, error: BaseException) -> None:
        """Take down why a candidate could not be read."""
        if not isinstance(error.__cause__, OSError):
            self._note(candidate, {"reason": str(error)})

    def became(self, run: Run, contradiction: str | None = None) -> None:
        """Take down what became of a run."""
        self._outcomes[run.run_id, run.path] = contradiction

    def write(self, store: Store, *, last: bool = False) -> None:
        """Store what is known by now. last: nothing will be added to the store any more, so that what rests on its
        other runs can be kept too.
        """
        for place, (candidate, keys) in list(self._read.items()):
            if all(key in self._outcomes for key in keys):
                said = [self._outcomes[key] for key in keys]
                if last or not any(said):
                    del self._read[place]
                    self._note(candidate, {"runs": [_row(candidate, *row) for row in zip(keys, said)]})
        with self._lock:
            new, self._new = self._new, {}
        gone = self._gone() if last else []
        if not new and not gone:
            return
        state = _state(store) if last else ""
        with store.transaction():
            store.connection.execute("DELETE FROM looks WHERE place IN (SELECT unnest(?))", [[*new, *gone]])
            store.insert("looks", _columns(new, state))

    def _look(self, candidate: Candidate) -> EarlierLook | None:
        held = self._held(candidate)
        if held is None or held.outcomes.keys() <= {"samples"}:
            return None
        runs = tuple(
            FoundRun(run_id, candidate.path if number is None else candidate.files[number], contradiction)
            for run_id, number, contradiction in held.outcomes.get("runs", ())
        )
        look = EarlierLook(runs, held.outcomes.get("reason"))
        known = all(run.contradiction or run.run_id in self.present or run.run_id in self.deleted for run in runs)
        return look if known and (held.runs == self._state or not look.rests_on_others) else None

    def _held(self, candidate: Candidate) -> _Stored | None:
        """What is stored of a candidate, if it is as it was."""
        place = self.places.stored(candidate.path)
        stamp = self._stamps[place] = stamp_of(candidate)
        held = self._stored.get(place)
        return held if held is not None and held.stamp == stamp else None

    def _note(self, candidate: Candidate, outcomes: dict[str, Any]) -> None:
        place = self.places.stored(candidate.path)
        stamp = self._stamps.get(place)
        if stamp is not None:
            with self._lock:
                self._new[place] = _Stored(stamp, outcomes)

    def _gone(self) -> list[str]:
        """What is stored of places below the roots where nothing was found now."""
        folder = self.places.folder
        inside = folder is not None and not self._roots.isdisjoint(map(str, (folder, *folder.parents)))
        return [
            place
            for place in self._stored.keys() - self._stamps.keys()
            if (inside and not os.path.isabs(place)) or self._is_below_a_root(place)
        ]

    def _is_below_a_root(self, place: str) -> bool:
        """Texts are compared, because a store has ten thousand places."""
        path = place if self.places.folder is None else os.path.join(self.places.folder, place)
        while path not in self._roots:
            path, separator, _ = path.rpartition(os.sep)
            if not separator:
                return False
        return True


def _row(candidate: Candidate, key: tuple[str, Path], contradiction: str | None) -> tuple[str, int | None, str | None]:
    """A run as it is stored: its id, the number of its file if it lies at one, and what it contradicts."""
    run_id, path = key
    return run_id, None if path == candidate.path else candidate.files.index(path), contradiction


def _state(store: Store) -> str:
    """Of all runs and where they lie, as one text."""
    sql = "SELECT coalesce(md5(string_agg(run_id || ' ' || path, ' ' ORDER BY run_id)), '') FROM runs"
    return str(store.connection.execute(sql).fetchall()[0][0])


def _columns(new: dict[str, _Stored], state: str) -> dict[str, list[Any]]:
    rests = [any(row[2] for row in found.outcomes.get("runs", ())) for found in new.values()]
    return {
        "place": list(new),
        "stamp": [found.stamp for found in new.values()],
        "outcomes": [json.dumps(found.outcomes) for found in new.values()],
        "runs": [state if on_others else None for on_others in rests],
    }
