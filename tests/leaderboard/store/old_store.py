"""A store as the version before the files of decisions left it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import duckdb

from leaderboard.store import decision_files, migrations
from leaderboard.store.decisions import SCHEMA


def make_old(database: Path) -> None:
    """Put a store of the schema before `SCHEMA` with the same rows in a store's place, without files of decisions."""
    old = Path(f"{database}.old")
    with duckdb.connect(str(old)) as connection:
        connection.execute(
            "CREATE TABLE schema_migrations (number INTEGER PRIMARY KEY, name VARCHAR, applied_at TIMESTAMP)"
        )
        for migration in migrations.all_migrations():
            if migration.number < SCHEMA:
                connection.execute(migration.sql)
                connection.execute("INSERT INTO schema_migrations VALUES (?, 'x', now())", [migration.number])
        columns = connection.execute(
            "SELECT table_name, string_agg(column_name, ', ') FROM duckdb_columns() JOIN duckdb_tables() USING"
            " (table_name) WHERE table_name <> 'schema_migrations' GROUP BY ALL"
        ).fetchall()
        connection.execute(f"ATTACH '{database}' AS present (READ_ONLY)")
        for table, names in columns:
            connection.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM present.{table} ORDER BY rowid")
    os.replace(old, database)
    shutil.rmtree(decision_files.folder_of(database))
