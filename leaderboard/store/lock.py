"""The writers' lock file, `<database>.lock`.

It is held with `flock`, which the kernel releases when a process dies, so there is no stale lock. Its text says who
holds it since when, for the message of whoever waits. The file itself stays: removing it would let two writers lock two
files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from leaderboard.errors import Busy, Unwritable
from leaderboard.store.places import file_of

RETRY_SECONDS = 0.01
SAID_AFTER_SECONDS = 1.0  # of waiting, it is said for whom

_log = logging.getLogger("leaderboard")


def check_writable(database: Path) -> None:
    """Find out before DuckDB does, because its own message names neither the reason nor the remedy. Raises
    `Unwritable`.
    """
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"cannot create the folder {database.parent} for the leaderboard: {error.strerror}") from error
    target = database if database.exists() else database.parent
    if not os.access(target, os.W_OK):
        raise Unwritable(
            f"no permission to write {target}: name another with --database (--output_path for a run), or change its"
            " permissions"
        )


@contextmanager
def file_lock(database: Path, deadline: float, what: str) -> Iterator[None]:
    """Hold `<database>.lock` exclusively; raises `Busy` with the holder's own words after the deadline.

    On systems without `fcntl` DuckDB's own lock, which `_connect` waits for, is the only one.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover - not on Linux or macOS
        yield
        return
    path = Path(f"{file_of(database)}.lock")  # one lock, whatever link leads to the database
    check_writable(database)
    try:
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, after the lock is given back
    except OSError as error:
        raise Unwritable(f"cannot create {path}: {error.strerror}") from error
    with handle:
        say_at = time.monotonic() + SAID_AFTER_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise Busy(f"{database} is busy: {_read_holder(path)}. Try again in a moment.") from error
            if time.monotonic() >= say_at:
                _log.warning("waiting for %s: %s", database, _read_holder(path))
                say_at = deadline
            time.sleep(RETRY_SECONDS)
        _say_holder(
            path, json.dumps({"process": os.getpid(), "what": what, "since": datetime.now(timezone.utc).isoformat()})
        )
        try:
            yield
        finally:
            _say_holder(path, "")


def _say_holder(path: Path, text: str) -> None:
    """Best effort: on a full disk the lock itself still holds, and only the words for those who wait are missing."""
    with contextlib.suppress(OSError):
        path.write_text(text, encoding="utf-8")


def _read_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        since = datetime.fromisoformat(holder["since"]).astimezone()
        return f"{holder['what']} by process {holder['process']} since {since:%H:%M:%S}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process is writing"
