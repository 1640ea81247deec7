"""What the pages show: read from the database for a moment, then kept until the file changes.

Notable choices:
- The file is opened read-only for one reading and closed again, so that a writer never waits for a page that is merely open.
- Its modification time and size are its generation: as long as they stand, nothing is read.
- A busy database yields the last good reading, marked as such, never an empty table.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from leaderboard import queries
from leaderboard.advice import DEFAULT_DATABASE
from leaderboard.board import Cell, board
from leaderboard.errors import Busy
from leaderboard.serve import DATABASE_VARIABLE
from leaderboard.store import open_store

_TIMEOUT_S = 2.0
_lock = threading.Lock()
_snapshots: dict[Path, Snapshot] = {}
_details: dict[tuple[Path, object, str], Details] = {}


@dataclass(frozen=True)
class Snapshot:
    """The board at one moment. `busy` is set when the database could not be read just now and this is an earlier reading."""

    cells: list[Cell]
    rejections: list[dict[str, Any]]
    pinned: dict[str, str]
    read_at: datetime
    generation: object
    busy: str | None = None


@dataclass(frozen=True)
class Details:
    """Everything the store holds of one run."""

    run: dict[str, Any]
    scores: list[dict[str, Any]]
    matrices: list[dict[str, Any]]
    calibrations: list[dict[str, Any]]


def database() -> Path:
    """The file that this server shows."""
    return Path(os.environ.get(DATABASE_VARIABLE, DEFAULT_DATABASE))


def generation(path: Path) -> object:
    """A value that changes whenever the file does; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def snapshot() -> Snapshot:
    """The board, as fresh as can be had. Raises what `open_store` raises; `Busy` only where nothing was ever read."""
    path = database()
    with _lock:
        last = _snapshots.get(path)
        current = generation(path)
        if last is not None and last.generation == current:
            return last
        try:
            with open_store(path, read_only=True, timeout_s=_TIMEOUT_S) as store:
                fresh = Snapshot(board(store), queries.rejections(store), queries.pinned_baselines(store), datetime.now(), current)
        except Busy as error:
            if last is None:
                raise
            return replace(last, busy=str(error))
        _snapshots[path] = fresh
        return fresh


def details(run_id: str) -> Details:
    """One run in full, kept as long as the database stands. Raises `UnknownRun` and what `open_store` raises."""
    path = database()
    key = (path, generation(path), run_id)
    with _lock:
        if key in _details:
            return _details[key]
        with open_store(path, read_only=True, timeout_s=_TIMEOUT_S) as store:
            run = queries.run_details(store, run_id)
            full = run["run_id"]
            found = Details(run, queries.run_scores(store, full), queries.run_matrices(store, full), queries.run_calibrations(store, full))
        if len(_details) >= 64:
            _details.clear()
        _details[key] = found
        return found
