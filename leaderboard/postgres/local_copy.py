"""A published board as a local database file, kept fresh: all pages work on it, and none knows of PostgreSQL.

The copy is a new file that is renamed into the place of the last one, so a page reads one or the other, whole. What it
holds is the published tables; verdicts that they lack are judged here, as for any board.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboard.errors import LeaderboardError, NewerDatabase
from leaderboard.postgres.address import PostgresAddress, PostgresError, connected
from leaderboard.postgres.publish import MARKER, PublishedTable, statement, tables_of
from leaderboard.readers.safe_json import clean
from leaderboard.store import migrations
from leaderboard.store.database import Store, open_for_writing_unlocked
from leaderboard.store.decision_files import folder_of
from leaderboard.store.lock import file_lock

if TYPE_CHECKING:
    import psycopg

FRESH_SECONDS = 30.0
_ROWS_AT_ONCE = 20_000
_log = logging.getLogger("leaderboard")


@contextmanager
def local_copy(address: PostgresAddress, fresh_s: float = FRESH_SECONDS) -> Iterator[Path]:
    """A database file with the published board, for the block; every `fresh_s` seconds it is asked whether there is a
    newer one. Raises PostgresError where there is none at the start; later troubles are logged.
    """
    with tempfile.TemporaryDirectory(prefix="lm-eval-board-") as folder:
        path, done = Path(folder) / "leaderboard.duckdb", threading.Event()
        state = pull(address, path)
        keeper = threading.Thread(target=_keep_fresh, args=(address, path, state, done, fresh_s), daemon=True)
        keeper.start()
        try:
            yield path
        finally:
            done.set()
            keeper.join()


def _keep_fresh(address: PostgresAddress, path: Path, state: object, done: threading.Event, fresh_s: float) -> None:
    while not done.wait(fresh_s):
        try:
            state = pull(address, path, state)
        except LeaderboardError as trouble:
            _log.warning("the board shown is the last one that could be had: %s", trouble)


def pull(address: PostgresAddress, path: Path, known: object = None) -> object:
    """Make the file anew from what is published, unless its state is the one known. Returns the state.

    Raises PostgresError, NewerDatabase and what a writer raises.
    """
    with connected(address, read_only=True) as connection:
        state = _state(connection, address)
        if state == known:
            return state
        new = path.with_name("incoming.duckdb")
        new.unlink(missing_ok=True)
        store = open_for_writing_unlocked(new)
        try:
            with store.transaction():
                for table in tables_of(store):
                    if not table.is_view:
                        _take(connection, address.schema, store, table)
        finally:
            store.connection.close()
    with file_lock(path, time.monotonic() + FRESH_SECONDS, "leaderboard"):
        # Files of decisions follow from the board of before, and would be taken into this one.
        shutil.rmtree(folder_of(path), ignore_errors=True)
        Path(f"{path}.wal").unlink(missing_ok=True)
        os.replace(new, path)
    return state


def _state(connection: psycopg.Connection, address: PostgresAddress) -> object:
    """What tells one published board from another. Raises PostgresError where there is none."""
    found = connection.execute("SELECT to_regclass(%s)", [f"{address.schema}.{MARKER}"]).fetchone()
    if found is None or found[0] is None:
        raise PostgresError(
            f"{address} has no board in the schema {address.schema}: `lm_eval publish --to ...` writes one there"
        )
    rows = connection.execute(
        statement("SELECT name, digest, store_schema FROM {}.{} ORDER BY name", address.schema, MARKER)
    ).fetchall()
    newest = max((row[2] for row in rows), default=0)
    if newest > migrations.latest():
        raise NewerDatabase(f"{address} has schema {newest}: upgrade lm-eval-recipes")
    return rows


def _take(connection: psycopg.Connection, schema: str, store: Store, table: PublishedTable) -> None:
    """Copy the rows of one table, of the columns that both sides have."""
    there = connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s",
        [schema, table.name],
    )
    published = {row[0] for row in there}
    names = [name for name, _ in table.columns if name in published]
    if not names:
        return
    store.connection.execute(f'DELETE FROM "{table.name}"')
    places = ", ".join("{}" for _ in names)
    with connection.cursor(f"rows of {table.name}") as cursor:
        cursor.execute(statement(f"SELECT {places} FROM {{}}.{{}}", *names, schema, table.name))
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            store.insert(table.name, {name: _column(values) for name, values in zip(names, zip(*rows))})


def _column(values: tuple[Any, ...]) -> list[Any]:
    return [clean(value) if isinstance(value, str) else value for value in values]
