"""`lm_eval publish`: the tables of a board, and what its views show, as tables of a PostgreSQL.

Notable choices:
- One transaction: readers see the board of before until it ends, and then all of the new one.
- Nothing is dropped and no lock keeps readers out: rows are exchanged, missing columns added. Views that a team has
  made of our tables stay as they are.
- All lies in a schema of its own, with a table `published` that says what is ours. A schema that holds other tables is
  refused.
- DuckDB's views are in its own dialect, so their rows are written, not their text.
- A table whose rows are those of the last time is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from leaderboard.judging import judge_outdated
from leaderboard.postgres.address import PostgresAddress, PostgresError, connected
from leaderboard.readers.safe_json import clean
from leaderboard.store import migrations
from leaderboard.store.database import Store, open_store

if TYPE_CHECKING:
    import psycopg

MARKER = "published"
TYPES = {
    "VARCHAR": "text",
    "DOUBLE": "double precision",
    "BIGINT": "bigint",
    "INTEGER": "integer",
    "BOOLEAN": "boolean",
    "TIMESTAMP": "timestamp",
}
"""Of DuckDB, those that the store's columns have; anything else is written as text."""
_JUDGING_SECONDS = 60.0
_ROWS_AT_ONCE = 20_000


class PublishedBoard(NamedTuple):
    """What was written. tables: of how many; changed: how many of them were not as before; rows: in all."""

    tables: int
    changed: int
    rows: int


class PublishedTable(NamedTuple):
    """A table or view of the store. columns: name and type, in order; digest: of its rows, whatever their order."""

    name: str
    is_view: bool
    columns: tuple[tuple[str, str], ...]
    rows: int
    digest: str


def publish(database: Path, address: PostgresAddress, *, timeout_s: float = 30.0) -> PublishedBoard:
    """Write the board to the PostgreSQL. Doing it again without news changes nothing but the time.

    Raises PostgresError, and what `open_store` raises.
    """
    with open_store(database, read_only=True, timeout_s=timeout_s):
        pass  # a database that cannot be used is told before it is judged
    judge_outdated(database, timeout_s, _JUDGING_SECONDS)
    with (
        connected(address, read_only=False) as connection,
        open_store(database, read_only=True, timeout_s=timeout_s) as store,
    ):
        tables = tables_of(store)
        before = _prepare(connection, address.schema)
        changed = [table for table in tables if before.get(table.name) != table.digest]
        for table in changed:
            _exchange(connection, address.schema, store, table)
        _mark(connection, address.schema, tables)
    return PublishedBoard(len(tables), len(changed), sum(table.rows for table in tables))


def tables_of(store: Store) -> list[PublishedTable]:
    """Every table and view of the store but the list of migrations, in order of their names."""
    columns: dict[str, list[tuple[str, str]]] = {}
    for row in store.rows(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY 1, column_index"
    ):
        columns.setdefault(row["table_name"], []).append((row["column_name"], row["data_type"]))
    views = {row["view_name"] for row in store.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal")}
    return [
        _described(store, name, name in views, tuple(found))
        for name, found in sorted(columns.items())
        if name != "schema_migrations"
    ]


def _described(store: Store, name: str, is_view: bool, columns: tuple[tuple[str, str], ...]) -> PublishedTable:
    (facts,) = store.rows(f'SELECT count(*) AS rows, sum(hash(t))::VARCHAR AS digest FROM "{name}" t')
    # A column more changes the table even where its rows are none.
    digest = f"{facts['rows']}-{facts['digest']}-{' '.join(column for column, _ in columns)}"
    return PublishedTable(name, is_view, columns, facts["rows"], digest)


def _prepare(connection: psycopg.Connection, schema: str) -> dict[str, str]:
    """See to the schema and lock it against other publishers. Returns the digests of the last time by table. Raises
    PostgresError for a schema that is somebody else's, and one of a later version.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"lm_eval publish {schema}"])
    connection.execute(statement("CREATE SCHEMA IF NOT EXISTS {}", schema))
    found = connection.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s AND relkind = 'r'",
        [schema],
    )
    there = {row[0] for row in found}
    if there and MARKER not in there:
        raise PostgresError(
            f"schema {schema} holds tables of something else ({', '.join(sorted(there)[:3])}): give another, --schema"
            f" {schema}_board"
        )
    connection.execute(
        statement(
            "CREATE TABLE IF NOT EXISTS {}.{} (name text PRIMARY KEY, is_view boolean NOT NULL, digest text NOT NULL,"
            " store_schema integer NOT NULL, published_at timestamptz NOT NULL)",
            *(schema, MARKER),
        )
    )
    rows = connection.execute(statement("SELECT name, digest, store_schema FROM {}.{}", schema, MARKER)).fetchall()
    if max((row[2] for row in rows), default=0) > migrations.latest():
        raise PostgresError(f"schema {schema} was published by a later version: upgrade lm-eval-recipes")
    return {row[0]: row[1] for row in rows}


def _exchange(connection: psycopg.Connection, schema: str, store: Store, table: PublishedTable) -> None:
    """Put the rows of a table in the place of those that were there."""
    connection.execute(statement("CREATE TABLE IF NOT EXISTS {}.{} ()", schema, table.name))
    for column, kind in table.columns:
        connection.execute(
            statement(
                f"ALTER TABLE {{}}.{{}} ADD COLUMN IF NOT EXISTS {{}} {TYPES.get(kind, 'text')}",
                schema,
                table.name,
                column,
            )
        )
    connection.execute(statement("DELETE FROM {}.{}", schema, table.name))
    names = [column for column, _ in table.columns]
    places = ", ".join("{}" for _ in names)
    into = statement(f"COPY {{}}.{{}} ({places}) FROM STDIN", schema, table.name, *names)
    with connection.cursor().copy(into) as copy:
        for row in _rows(store, table):
            copy.write_row(row)


def _rows(store: Store, table: PublishedTable) -> Iterator[list[Any]]:
    shown = ", ".join(f'"{name}"' if kind in TYPES else f'"{name}"::VARCHAR' for name, kind in table.columns)
    cursor = store.connection.execute(f'SELECT {shown} FROM "{table.name}"')
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        for row in rows:
            yield [clean(value) if isinstance(value, str) else value for value in row]


def _mark(connection: psycopg.Connection, schema: str, tables: list[PublishedTable]) -> None:
    connection.execute(statement("DELETE FROM {}.{}", schema, MARKER))
    with connection.cursor() as cursor:
        cursor.executemany(
            statement("INSERT INTO {}.{} VALUES (%s, %s, %s, %s, now())", schema, MARKER),
            [(table.name, table.is_view, table.digest, migrations.latest()) for table in tables],
        )


def statement(text: str, *names: str) -> Any:
    """A statement with names in it, quoted."""
    from psycopg import sql

    return sql.SQL(text).format(*map(sql.Identifier, names))
