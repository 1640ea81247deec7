"""Numbered, append-only migrations: one SQL file each, applied in order, all that a store lacks in one transaction.

A file is named `NNNN_words.sql`. Released files are never edited. `apply` is called by writers only: a reader that
meets an older or newer schema says so instead of changing the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import duckdb


READABLE = 17
"""The oldest schema that this code can read: later migrations add what only writers and SQL users need."""

CONTENTS = 17
"""The last schema that added something that is read from the files of a run: what was stored before lacks it."""


class Migration(NamedTuple):
    """One step of the schema."""

    number: int
    name: str
    sql: str


@cache
def all_migrations() -> tuple[Migration, ...]:
    """Every migration shipped with this version, in order of number."""
    paths = sorted(Path(__file__).parent.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return tuple(Migration(int(path.name[:4]), path.stem, path.read_text(encoding="utf-8")) for path in paths)


def latest() -> int:
    """The schema number this code knows."""
    return all_migrations()[-1].number


def current(connection: duckdb.DuckDBPyConnection) -> int | None:
    """The schema number of a database: 0 when it is empty, None when it holds somebody else's tables."""
    tables = {
        row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()
    }
    if not tables:
        return 0
    if "schema_migrations" not in tables:
        return None
    row = connection.execute("SELECT max(number) FROM schema_migrations").fetchone()
    return int(row[0] or 0) if row else 0


def runs_before_contents(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> int:
    """How many of these runs were stored before the schema had a place for all that is read of a run today."""
    row = connection.execute(
        "SELECT count(*) FROM runs WHERE run_id IN (SELECT unnest(?)) AND ingested_at <"
        " (SELECT max(applied_at) FROM schema_migrations WHERE number <= ?)",
        [list(run_ids), CONTENTS],
    ).fetchone()
    return int(row[0]) if row else 0


def apply(connection: duckdb.DuckDBPyConnection) -> list[Migration]:
    """Bring the database up to `latest()`, in one transaction: no kill leaves part of the tables. Returns what was
    applied.
    """
    done = current(connection) or 0
    pending = [migration for migration in all_migrations() if migration.number > done]
    if not pending:
        return []
    connection.execute("BEGIN")
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations "
            "(number INTEGER PRIMARY KEY, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL)"
        )
        # SQL's now() may need an extension for time zones
        applied_at = datetime.now(timezone.utc).replace(tzinfo=None)
        for migration in pending:
            connection.execute(migration.sql)
            connection.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, ?)", [migration.number, migration.name, applied_at]
            )
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return pending
