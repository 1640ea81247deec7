"""What DuckDB's errors about a file mean for who uses it: one sentence each, with a command that works.

Notable choice: whatever is wrong with the file itself, the command is the rebuild. It keeps the old file, and what
follows from no run folder (pins, blessings, gates, deletions) lies in files beside the store.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leaderboard.commands import ingest_command
from leaderboard.errors import Interrupted, LeaderboardError, NewerDatabase, NotADatabase, Unwritable

_NO_ROOM = ("No space left", "File too large", "Disk quota", "Input/output error")
_DAMAGED = ("IO Error", "INTERNAL Error", "FATAL Error", "Serialization Error", "Corrupt")
"""How DuckDB's errors begin that a sound file does not give."""


@contextmanager
def told(database: Path, *, reading: bool = False) -> Iterator[None]:
    """Turn DuckDB's errors of a file that is damaged, or on a disk that takes no more, into ours."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        if (explanation := _of_use(error, database, interrupted=reading)) is None:
            raise
        raise explanation from error


def _of_use(error: Exception, database: Path, *, interrupted: bool) -> LeaderboardError | None:
    text = str(error)
    if any(words in text for words in _NO_ROOM):
        return no_room(database, text)
    if not text.startswith(_DAMAGED):
        return None
    if interrupted and "Could not read enough bytes" in text:  # the next writer completes it; a rebuild does so too
        return Interrupted(
            f"{database} was left in the middle of a write by a process that was killed; this completes it:"
            f" `{ingest_command(database, rebuild=True)}`"
        )
    return damaged(database)


def damaged(database: Path) -> NotADatabase:
    """Of a file that is there and cannot be read."""
    return NotADatabase(
        f"{database} is not a DuckDB database, or is damaged: `{ingest_command(database, rebuild=True)}` makes it anew"
        " from the run folders and keeps the old file"
    )


def no_room(database: Path, text: str) -> Unwritable:
    """Of a disk that takes no more, or answers with errors. text: DuckDB's."""
    return Unwritable(
        f"{database} could not be written ({text.splitlines()[0][:200]}). What was stored before and the run"
        " directories are unharmed: make room and run the same command again"
    )


def newer(database: Path, what: str, cure: str) -> NewerDatabase:
    """Of a file of a later version."""
    return NewerDatabase(
        f"{database} {what}: {cure}, or rebuild the file with `{ingest_command(database, rebuild=True)}`"
    )


def no_folder(database: Path) -> NotADatabase:
    """Of a folder in the file's place, which is never moved: it may be anything."""
    other = database.parent / f"{database.stem or 'leaderboard'}-2.duckdb"  # `.` has no name
    return NotADatabase(
        f"{database} is a folder, and a database is a file: move the folder away, or name another file,"
        f" `{ingest_command(other)}`"
    )


def explained(error: Exception, database: Path, *, reading: bool) -> LeaderboardError:
    """Why a file could not be opened."""
    text = str(error)
    if database.is_dir():
        return no_folder(database)
    if "version number" in text or "newer version" in text:
        return newer(database, "was written by a later DuckDB", "upgrade duckdb")
    if any(words in text for words in _NO_ROOM):
        return no_room(database, text)
    if "ermission" in text or "Read-only file system" in text:
        return Unwritable(
            f"no permission to open {database}: `chmod u+rw {shlex.quote(str(database))}` gives it to the file's owner"
        )
    interrupted = reading and Path(f"{database}.wal").exists()  # the log that is to complete it
    return _of_use(error, database, interrupted=interrupted) or damaged(database)
