"""A board in a PostgreSQL: published whole, again, beside others' tables; read back as the same board."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard.api import board
from leaderboard.errors import LeaderboardError
from leaderboard.ingest import ingest
from leaderboard.postgres.address import PostgresAddress, PostgresError
from leaderboard.postgres.local_copy import local_copy, pull
from leaderboard.postgres.publish import publish, tables_of
from leaderboard.store.database import open_store
from tests.leaderboard.conftest import Fabricator, Task
from tests.leaderboard.postgres.conftest import PASSWORD


def _asked(address: str, query: str) -> list[tuple]:
    import psycopg

    with psycopg.connect(address) as connection:
        return connection.execute(query).fetchall()


def _shown(database: Path) -> list[tuple]:
    return [
        (cell.recipe, cell.task, cell.verdict, cell.delta, cell.low, cell.q_value) for cell in board(database).cells
    ]


@pytest.mark.slow
def test_tables_and_views_are_those_of_the_file(address: str, made: Fabricator, tmp_path: Path) -> None:
    database = tmp_path / "results" / "leaderboard.duckdb"
    written = publish(database, PostgresAddress(address))
    with open_store(database) as store:
        for table in tables_of(store):
            ((count,),) = _asked(address, f'SELECT count(*) FROM lm_eval."{table.name}"')
            assert count == table.rows, table.name
        ours = store.rows("SELECT recipe, task, verdict, delta, started FROM v_verdicts ORDER BY 1, 2, 4")
    theirs = _asked(address, "SELECT recipe, task, verdict, delta, started FROM lm_eval.v_verdicts ORDER BY 1, 2, 4")
    assert [tuple(row.values()) for row in ours] == theirs and written.rows > 100

    again = publish(database, PostgresAddress(address))
    assert again.changed == 0 and again.rows == written.rows
    made.run("noise", {"sums": Task({"acc": [0.0] * 60})})
    ingest([tmp_path / "results"], database)
    more = publish(database, PostgresAddress(address))
    assert 0 < more.changed < more.tables
    assert _asked(address, "SELECT count(*) FROM lm_eval.runs") == [(3,)]


@pytest.mark.slow
def test_the_copy_shows_the_same_board_and_is_kept_fresh(address: str, made: Fabricator, tmp_path: Path) -> None:
    database = tmp_path / "results" / "leaderboard.duckdb"
    with pytest.raises(PostgresError, match="has no board in the schema lm_eval"):
        pull(PostgresAddress(address), tmp_path / "copy.duckdb")
    publish(database, PostgresAddress(address))
    with local_copy(PostgresAddress(address), fresh_s=0.05) as copy:
        assert _shown(copy) == _shown(database)
        inode = copy.stat().st_ino
        time.sleep(0.3)
        assert copy.stat().st_ino == inode, "without news the file stays"
        made.run("noise", {"sums": Task({"acc": [0.0] * 60})})
        ingest([tmp_path / "results"], database)
        publish(database, PostgresAddress(address))
        for _ in range(200):
            if _shown(copy) == _shown(database):
                break
            time.sleep(0.05)
        assert _shown(copy) == _shown(database) and len(_shown(copy)) > 2
    assert not copy.exists()


@pytest.mark.slow
def test_what_others_have_stays(address: str, made: Fabricator, tmp_path: Path) -> None:
    import psycopg

    database = tmp_path / "results" / "leaderboard.duckdb"
    with psycopg.connect(address) as connection:
        connection.execute("CREATE SCHEMA theirs; CREATE TABLE theirs.runs AS SELECT 7 AS seven")
    with pytest.raises(PostgresError, match=r"schema theirs holds tables of something else \(runs\).*--schema"):
        publish(database, PostgresAddress(address, "theirs"))
    publish(database, PostgresAddress(address))
    with psycopg.connect(address) as connection:
        connection.execute("CREATE VIEW public.best AS SELECT recipe, delta FROM lm_eval.v_verdicts")
        connection.execute("ALTER TABLE lm_eval.runs ADD COLUMN a_remark text")
    made.run("noise", {"sums": Task({"acc": [0.0] * 60})})
    ingest([tmp_path / "results"], database)
    publish(database, PostgresAddress(address))
    assert len(_asked(address, "SELECT * FROM public.best")) == len(_asked(address, "TABLE lm_eval.v_verdicts"))
    assert _asked(address, "SELECT seven FROM theirs.runs") == [(7,)]


@pytest.mark.slow
def test_a_failure_on_the_way_changes_nothing(
    address: str, made: Fabricator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "results" / "leaderboard.duckdb"
    publish(database, PostgresAddress(address))
    made.run("noise", {"sums": Task({"acc": [0.0] * 60})})
    ingest([tmp_path / "results"], database)

    def full(*_: object) -> None:
        raise OSError("no space")

    with monkeypatch.context() as broken:
        broken.setattr("leaderboard.postgres.publish._mark", full)
        with pytest.raises(OSError, match="no space"):
            publish(database, PostgresAddress(address))
    assert _asked(address, "SELECT count(*) FROM lm_eval.runs") == [(2,)]
    publish(database, PostgresAddress(address))
    assert _asked(address, "SELECT count(*) FROM lm_eval.runs") == [(3,)]


@pytest.mark.slow
def test_a_password_is_told_to_nobody(
    address: str, made: Fabricator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable
) -> None:
    from urllib.parse import quote

    database = tmp_path / "results" / "leaderboard.duckdb"
    monkeypatch.delenv("PGPASSWORD")
    held = address.replace("board@", f"board:{quote(PASSWORD, safe='')}@")
    good, wrong, garbled = (
        cli("publish", "--database", database, "--to", url)
        for url in (held, held.replace("3cret", "4cret"), address.replace("board@", f"board:{PASSWORD}@"))
    )
    assert good.returncode == 0 and "postgres://***@127.0.0.1" in good.stdout, good.stderr
    assert wrong.returncode == 2 and "password authentication failed" in wrong.stderr
    none = cli("publish", "--database", database, "--to", address)
    assert none.returncode == 2
    assert all("libpq takes the password from PGPASSWORD or from ~/.pgpass" in ran.stderr for ran in (wrong, none))
    assert garbled.returncode == 2
    for ran in (good, wrong, garbled):
        assert "cret" not in ran.stdout + ran.stderr and "Traceback" not in ran.stderr
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"127.0.0.1:*:*:board:{PASSWORD}\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    assert cli("publish", "--database", database, "--to", address).returncode == 0


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Our `lm_eval` in a process of its own."""
    import sys

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness_ext", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_addresses_that_are_none() -> None:
    for url in ("mysql://host/db", "postgres://"):
        with pytest.raises(PostgresError, match="must be like postgres://"):
            PostgresAddress(url)
    for schema in ("pg_own", 'a"b', "Upper", ""):
        with pytest.raises(PostgresError, match="no plain name"):
            PostgresAddress("postgres://host/db", schema)
    held = PostgresAddress("postgres://me:p%40ss/w@rd@host/db?password=other&x=1")
    assert str(held) == "postgres://***@host/db?password=***&x=1"
    assert "p%40ss" not in repr(held) and held.printable("libpq read p@ss/w@rd") == "libpq read ***"


@pytest.mark.slow
def test_without_the_client_it_is_named(tmp_path: Path, made: Fabricator, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(LeaderboardError, match=r"pip install 'lm-eval-recipes\[postgres\]'"):
        publish(tmp_path / "results" / "leaderboard.duckdb", PostgresAddress("postgres://host/db"))
