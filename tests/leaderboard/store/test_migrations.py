"""A store of every earlier version opens, and is brought up to date by the next writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.errors import MissingDatabase
from leaderboard.ingest import ingest
from leaderboard.store import migrations
from leaderboard.store.database import open_store
from leaderboard.store.queries import runs

SHIPPED = migrations.all_migrations()


@pytest.mark.slow
@pytest.mark.parametrize("number", [migration.number for migration in SHIPPED[:-1]])
def test_a_store_of_an_earlier_version_opens(
    made: Any, kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    database = tmp_path / "old.duckdb"
    with monkeypatch.context() as earlier:
        earlier.setattr(migrations, "all_migrations", lambda: SHIPPED[:number])
        with open_store(database, read_only=False) as store:
            rows = store.rows("SELECT max(number) AS number FROM schema_migrations")
            assert rows == [{"number": number}]
    before, after = kit.pair(20, 10, lost=1)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after})
    assert len(ingest([made.root], database).added) == 2
    with open_store(database) as store:
        assert len(runs(store)) == 2
        assert store.rows("SELECT max(number) AS number FROM schema_migrations") == [{"number": SHIPPED[-1].number}]


def test_a_store_whose_first_writer_was_killed_is_not_there_yet(made: Any, kit: Any, tmp_path: Path) -> None:
    database = tmp_path / "begun.duckdb"
    duckdb.connect(str(database)).close()
    with pytest.raises(MissingDatabase, match="there is no leaderboard at"), open_store(database):
        pass
    made.run("baseline", {"sums": kit.pair(20, 10, lost=1)[0]})
    ingest([made.root], database)
    with open_store(database) as store:
        assert len(runs(store)) == 1


def test_runs_that_an_earlier_version_took_in_are_told_until_a_rebuild(made: Any, kit: Any, tmp_path: Path) -> None:
    database = tmp_path / "old.duckdb"
    before, after = kit.pair(20, 10, lost=1)
    made.run("baseline", {"sums": before})
    assert ingest([made.root], database).notes == [] == ingest([made.root], database).notes
    later = "UPDATE schema_migrations SET applied_at = applied_at + INTERVAL 1 HOUR WHERE number = ?"
    with open_store(database, read_only=False) as store:
        store.connection.execute(later, [migrations.CONTENTS + 1])
    assert ingest([made.root], database).notes == [], "what only writers and SQL users need is missed by no run"
    with open_store(database, read_only=False) as store:
        store.connection.execute("UPDATE runs SET ingested_at = ingested_at - INTERVAL 1 HOUR")
    made.run("laser", {"sums": after})
    (note,) = ingest([made.root], database).notes
    assert "read less of a run: 1 of these." in note and f"--rebuild {made.root}" in note
    ingest([made.root], database, rebuild=True)
    assert ingest([made.root], database).notes == []
