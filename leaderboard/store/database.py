"""The DuckDB file: opening, locking, and saying clearly why it could not be opened.

Notable choices:
- DuckDB lets one process write *or* several read, and each side shuts the other out. So writers hold the file for less
  than a second behind a lock file with retries, and readers open it for one query and close it again.
- Files are created with the storage format of DuckDB 1.4, so that older installations can read them. Extensions are
  never installed or loaded, and queries cannot reach other files.
"""

from __future__ import annotations

import logging
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboard.commands import ingest_command, run_arguments
from leaderboard.errors import (
    Busy,
    LeaderboardError,
    MissingDatabase,
    NewerDatabase,
    NotADatabase,
    OlderDatabase,
    Unwritable,
)
from leaderboard.store import migrations
from leaderboard.store.lock import RETRY_SECONDS, SAID_AFTER_SECONDS, check_writable, file_lock

if TYPE_CHECKING:
    import duckdb
    import numpy as np

STORAGE_VERSION = "v1.4.0"
_NO_ROOM = ("No space left", "File too large", "Disk quota", "Input/output error")
_log = logging.getLogger("leaderboard")
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "storage_compatibility_version": STORAGE_VERSION,
    "threads": "2",
}


class Store:
    """An open database. Made by `open_store`; all values reach SQL as parameters, never as text."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path | None, read_only: bool) -> None:
        self.connection = connection
        self.path = path
        self.read_only = read_only
        self._schemas: dict[str, dict[str, Any]] = {}

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The result of a query as one dict a row."""
        cursor = self.connection.execute(sql, list(parameters))
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row)) for row in cursor.fetchall()]

    def columns(self, sql: str, parameters: Sequence[Any] = ()) -> dict[str, np.ndarray]:
        """The result of a query as one numpy array a column (masked where SQL has NULL)."""
        return self.connection.execute(sql, list(parameters)).fetchnumpy()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: rolled back on any exception, Ctrl-C included."""
        self.connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            # a connection that lost its disk has no transaction left, and its error says more
            with suppress(Exception):
                self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def insert(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Append rows given as columns, through Arrow (hundreds of times faster than `executemany`).

        `table` and the column names are ours, never input. Types are the table's own.
        """
        import pyarrow

        count = len(next(iter(columns.values()), ()))
        if count == 0:
            return
        schema = self._arrow_schema(table)
        arrays = [pyarrow.array(values, type=schema[name]) for name, values in columns.items()]
        batch = pyarrow.Table.from_arrays(arrays, names=list(columns))
        self.connection.register("incoming", batch)
        try:
            self.connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
        finally:
            self.connection.unregister("incoming")

    def _arrow_schema(self, table: str) -> dict[str, Any]:
        import pyarrow

        types = {
            "VARCHAR": pyarrow.string(),
            "DOUBLE": pyarrow.float64(),
            "BIGINT": pyarrow.int64(),
            "INTEGER": pyarrow.int32(),
            "BOOLEAN": pyarrow.bool_(),
            "TIMESTAMP": pyarrow.timestamp("us"),
        }
        if not self._schemas:  # asked once for all tables: the catalogue takes milliseconds
            for name, column, kind in self.connection.execute(
                "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal"
            ).fetchall():
                self._schemas.setdefault(name, {})[column] = types.get(kind)
        return self._schemas[table]


@contextmanager
def open_store(database: Path | None, read_only: bool = True, timeout_s: float = 30.0) -> Iterator[Store]:
    """Open the database for one piece of work.

    `database=None` is a fresh store in memory. A writer creates and migrates the file; a reader never changes it.

    Raises:
        Busy: somebody else holds it for longer than `timeout_s` seconds.
        Unwritable: also where the disk is full, at any point; what was stored before is unharmed.
        MissingDatabase, NotADatabase, NewerDatabase, OlderDatabase, Unwritable: as their names say.
    """
    if database is None:
        with _closing(memory_store()) as store:
            yield store
        return
    database = Path(database)
    deadline = time.monotonic() + timeout_s
    if read_only:
        with _told_when_cut_short(database), _closing(_open_for_reading(database, deadline)) as store:
            yield store
        return
    with (
        file_lock(database, deadline, "ingest"),
        told_when_full(database),
        _closing(_open_for_writing(database, deadline)) as store,
    ):
        yield store


@contextmanager
def _told_when_cut_short(database: Path) -> Iterator[None]:
    """Turn DuckDB's error of a file that a writer was killed in the middle of into `Busy`: a reader must not mend it,
    and the next writer does so by opening it.
    """
    import duckdb

    try:
        yield
    except duckdb.IOException as error:
        if "Could not read enough bytes" not in str(error):
            raise
        raise Busy(
            f"{database} was left in the middle of a write by a process that was killed; the next writer completes it:"
            f" `{ingest_command(database)}`"
        ) from error


@contextmanager
def told_when_full(database: Path) -> Iterator[None]:
    """Turn DuckDB's errors of a disk that takes no more into `Unwritable`."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        if not any(words in str(error) for words in _NO_ROOM):
            raise
        raise Unwritable(_no_room(database, str(error))) from error


def _no_room(database: Path, text: str) -> str:
    return (
        f"{database} could not be written ({text.splitlines()[0][:200]}). What was stored before and the run"
        " directories are unharmed: make room and run the same command again"
    )


def open_for_writing_unlocked(database: Path, timeout_s: float = 30.0) -> Store:
    """A writer for a caller that holds `file_lock` already, or for a file nobody else knows of. Close its
    connection.
    """
    return _open_for_writing(Path(database), time.monotonic() + timeout_s)


@contextmanager
def _closing(store: Store) -> Iterator[Store]:
    try:
        yield store
    finally:
        store.connection.close()


def memory_store() -> Store:
    """A fresh store in memory. Close its connection."""
    import duckdb

    connection = duckdb.connect(":memory:", config=_CONFIG)
    connection.execute("SET enable_external_access = false")
    migrations.apply(connection)
    return Store(connection, None, read_only=False)


def _open_for_reading(database: Path, deadline: float) -> Store:
    if not database.exists():
        raise MissingDatabase(
            f"there is no leaderboard at {database} yet: run"
            f" `{shlex.join(['lm_eval', 'run', '...', '--recipe', 'NAME', *run_arguments(database)])}`, or"
            f" `{ingest_command(database, 'PATH')}` for results you already have"
        )
    connection = _connect(database, True, deadline)
    try:
        _check_schema(connection, database, read_only=True)
    except BaseException:
        connection.close()
        raise
    return Store(connection, database, read_only=True)


def _open_for_writing(database: Path, deadline: float) -> Store:
    check_writable(database)
    with _removed_if_never_begun(database):
        connection = _connect(database, False, deadline)
    try:
        _check_schema(connection, database, read_only=False)
        migrations.apply(connection)
    except BaseException:
        connection.close()
        raise
    return Store(connection, database, read_only=False)


@contextmanager
def _removed_if_never_begun(database: Path) -> Iterator[None]:
    """A file that there was no room to begin would be taken for a damaged one from then on."""
    there = database.exists()
    try:
        yield
    except Unwritable:
        if not there:
            database.unlink(missing_ok=True)
        raise


def _check_schema(connection: duckdb.DuckDBPyConnection, database: Path, *, read_only: bool) -> None:
    found, known = migrations.current(connection), migrations.latest()
    if found is None:
        raise NotADatabase(
            f"{database} is a DuckDB file of something else (no schema_migrations table): give another path"
        )
    if found > known:
        raise NewerDatabase(
            f"{database} has schema {found}, this version knows {known}: upgrade lm-eval-recipes, "
            f"or rebuild the file with `{ingest_command(database, rebuild=True)}`"
        )
    if found < migrations.READABLE and read_only:
        raise OlderDatabase(
            f"{database} has schema {found}, this version needs {known}: `{ingest_command(database)}` brings it up to"
            " date"
        )


def _connect(database: Path, read_only: bool, deadline: float) -> duckdb.DuckDBPyConnection:
    """Connect, trying again while another process has the file, until the deadline."""
    import duckdb

    say_at = time.monotonic() + SAID_AFTER_SECONDS
    while True:
        try:
            connection = duckdb.connect(str(database), read_only=read_only, config=_CONFIG)
            connection.execute("SET enable_external_access = false")
            return connection
        except duckdb.Error as error:
            if not _is_conflict(error):
                raise _explained(error, database) from error
            if time.monotonic() >= deadline:
                raise Busy(f"{database} is busy: {_holder(error)} has it open. Try again in a moment.") from error
            if time.monotonic() >= say_at:
                _log.warning("waiting for %s: %s has it open", database, _holder(error))
                say_at = deadline
        time.sleep(RETRY_SECONDS)


def _is_conflict(error: Exception) -> bool:
    text = str(error)
    return (
        "Could not set lock" in text
        or "different configuration than existing" in text
        or "Unique file handle conflict" in text
    )


def _holder(error: Exception) -> str:
    match = re.search(r"\(PID (\d+)\)", str(error))
    return f"process {match.group(1)}" if match else "another part of this process"


def _explained(error: Exception, database: Path) -> LeaderboardError:
    text = str(error)
    if "not a valid DuckDB database" in text or "Corrupt" in text or "checksum" in text or "directory" in text:
        return NotADatabase(
            f"{database} is not a DuckDB database, or is damaged. The run directories are intact: "
            f"move the file away and run `{ingest_command(database, rebuild=True)}`"
        )
    if "version number" in text or "newer version" in text:
        return NewerDatabase(
            f"{database} was written by a later DuckDB: upgrade duckdb, or rebuild it with"
            f" `{ingest_command(database, rebuild=True)}`"
        )
    if any(words in text for words in _NO_ROOM):
        return Unwritable(_no_room(database, text))
    if "ermission" in text or "Read-only file system" in text or "Cannot open file" in text:
        return Unwritable(f"cannot open {database}: {text.splitlines()[0]}")
    return NotADatabase(f"cannot open {database}: {text.splitlines()[0]}")
