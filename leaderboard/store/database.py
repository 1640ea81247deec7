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
from leaderboard.errors import Busy, ForeignDatabase, Interrupted, MissingDatabase, OlderDatabase, Unwritable
from leaderboard.readers.addresses import local_database
from leaderboard.store import decisions, migrations, trouble
from leaderboard.store.lock import RETRY_SECONDS, SAID_AFTER_SECONDS, check_writable, file_lock
from leaderboard.store.places import RunPlaces

if TYPE_CHECKING:
    import duckdb
    import numpy as np

STORAGE_VERSION = "v1.4.0"
_HEADERS = 3 * 4096  # bytes before the first block
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
        self.places = RunPlaces(path)
        self._schemas: dict[str, dict[str, Any]] = {}

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """The result of a query as one dict a row. parameters: of `?` and `$1` in order, of `$name` by name."""
        cursor = self.connection.execute(sql, parameters if isinstance(parameters, dict) else list(parameters))
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
        count = len(next(iter(columns.values()), ()))
        if count == 0:
            return
        import pyarrow

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

    `database=None` is a fresh store in memory. A writer creates and migrates the file, and takes in what the files of
    decisions beside it hold; a reader never changes it.

    Raises:
        Busy: somebody else holds it for longer than `timeout_s` seconds.
        Unwritable: also where the disk is full, at any point; what was stored before is unharmed.
        NotADatabase: also where it turns out while it is used that the file is damaged.
        MissingDatabase, ForeignDatabase, NewerDatabase, OlderDatabase, Unwritable: as their names say.
    """
    if database is None:
        with _closing(memory_store()) as store:
            yield store
        return
    database = local_database(database)
    deadline = time.monotonic() + timeout_s
    if read_only:
        with trouble.told(database, reading=True), _closing(_open_for_reading(database, deadline)) as store:
            yield store
        return
    with (
        file_lock(database, deadline, "ingest"),
        trouble.told(database),
        _closing(_open_for_writing(database, deadline)) as store,
    ):
        if migrations.latest() >= decisions.SCHEMA:
            decisions.synchronize(store, database)
        yield store


def open_for_writing_unlocked(database: Path, timeout_s: float = 30.0) -> Store:
    """A writer for a caller that holds `file_lock` already, or for a file nobody else knows of. Close its
    connection.
    """
    return _open_for_writing(Path(database), time.monotonic() + timeout_s)


def connect_to_salvage(database: Path) -> duckdb.DuckDBPyConnection | None:
    """A connection that reads what can still be read of a file that `open_store` refuses; None where nothing can. Close
    it.
    """
    import duckdb

    try:
        connection = duckdb.connect(str(database), read_only=True, config=_CONFIG)
        connection.execute("SET enable_external_access = false")
    except duckdb.Error:
        return None
    return connection


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
        raise _nothing_at(database)
    connection = _connect(database, True, deadline)
    try:
        _check_schema(connection, database, read_only=True)
    except BaseException:
        connection.close()
        raise
    return Store(connection, database, read_only=True)


def _nothing_at(database: Path) -> MissingDatabase:
    return MissingDatabase(
        f"there is no leaderboard at {database} yet: run"
        f" `{shlex.join(['lm_eval', 'run', '...', '--recipe', 'NAME', *run_arguments(database)])}`, or"
        f" `{ingest_command(database, 'PATH')}` for results you already have"
    )


def _open_for_writing(database: Path, deadline: float) -> Store:
    check_writable(database)
    if database.exists():
        with suppress(Interrupted):  # which this writer will complete
            _connect(database, True, deadline).close()  # opened for writing, a damaged file would be changed
    with _removed_if_never_begun(database):
        connection = _connect(database, False, deadline)
    try:
        _check_schema(connection, database, read_only=False)
        store = Store(connection, database, read_only=False)
        if migrations.apply(connection) and migrations.latest() >= decisions.SCHEMA:
            decisions.relative_paths(store, store.places)
    except BaseException:
        connection.close()
        raise
    return store


@contextmanager
def _removed_if_never_begun(database: Path) -> Iterator[None]:
    """A file that there was no room to begin would be taken for a damaged one from then on."""
    there = database.exists()
    try:
        yield
    except Unwritable:
        if not there:
            with suppress(OSError):
                database.unlink(missing_ok=True)
        raise


def _check_schema(connection: duckdb.DuckDBPyConnection, database: Path, *, read_only: bool) -> None:
    found, known = migrations.current(connection), migrations.latest()
    if found is None:
        other = database.with_name(f"{database.stem}-2.duckdb")
        raise ForeignDatabase(
            f"{database} is a DuckDB file of something else (no schema_migrations table): give another path,"
            f" `{ingest_command(other)}`"
        )
    if found > known:
        raise trouble.newer(database, f"has schema {found}, this version knows {known}", "upgrade lm-eval-recipes")
    if found == 0 and read_only:  # as a writer that was killed before its first commit leaves it
        raise _nothing_at(database)
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
            try:
                connection.execute("SET enable_external_access = false")
                _check_whole(connection, database)
            except BaseException:
                connection.close()
                raise
            return connection
        except duckdb.Error as error:
            if not _is_conflict(error):
                raise trouble.explained(error, database, reading=read_only) from error
            if time.monotonic() >= deadline:
                raise Busy(f"{database} is busy: {_holder(error)} has it open. Try again in a moment.") from error
            if time.monotonic() >= say_at:
                _log.warning("waiting for %s: %s has it open", database, _holder(error))
                say_at = deadline
        time.sleep(RETRY_SECONDS)


def _check_whole(connection: duckdb.DuckDBPyConnection, database: Path) -> None:
    """Read everything of a file that is shorter than its own header says: only what was cut off the end of it tells
    whether anything is missing. Raises DuckDB's errors.
    """
    ((size,),) = connection.execute("SELECT block_size * total_blocks FROM pragma_database_size()").fetchall()
    if database.stat().st_size >= _HEADERS + size:
        return
    tables = connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()
    for (table,) in tables:
        name = '"' + table.replace('"', '""') + '"'
        connection.execute(f"SELECT bit_xor(hash(t)) FROM {name} t").fetchall()


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
