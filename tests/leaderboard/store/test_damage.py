"""A store that cannot be used: everybody gets one sentence, and the command in it works as printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

import leaderboard
from leaderboard.board.board import board
from leaderboard.errors import Busy, LeaderboardError
from leaderboard.gate.policy import policy_from
from leaderboard.gate.report import judge_candidate
from leaderboard.gate.report import record as record_gate
from leaderboard.gate.runs import read_named
from leaderboard.ingest import ingest
from leaderboard.store import migrations, queries
from leaderboard.store.database import open_store
from leaderboard.store.deletions import delete, deletions
from leaderboard.store.pins import pin, pins

LEFT_LOG = (
    "import duckdb, os, sys\nconnection = duckdb.connect(sys.argv[1])\n"
    "connection.execute(\"SET wal_autocheckpoint = '1TB'\")\nconnection.execute(sys.argv[2])\nos._exit(0)"
)


@pytest.fixture(scope="module")
def filled_once(made_once: Any, kit: Any) -> Path:
    """A folder with a database of a pinned run, an edited one and a deleted one."""
    database = made_once.root / "leaderboard.duckdb"
    before, after = kit.pair(2000, 1000, lost=40)
    made_once.run("baseline", {"sums": before}, folder="baseline")
    made_once.run("laser", {"sums": after}, folder="laser")
    made_once.run("svd", {"sums": kit.pair(2000, 1000, lost=4)[1]}, folder="svd", settings_id="x")
    (made_once.root / "tiny" / "svd" / "receipt.json").unlink()
    ingest([made_once.root], database)
    pin(database, str(made_once.root / "tiny" / "baseline"), "x")
    delete(database, str(next((made_once.root / "tiny" / "svd").glob("results_*"))), "z")
    return Path(made_once.root)


@pytest.fixture
def filled(filled_once: Path, made: Any, database: Path) -> Path:
    """The database of a copy of that folder."""
    shutil.copytree(filled_once, made.root, dirs_exist_ok=True)
    return database


def command(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int | str | None:
    """Run `lm_eval` with these words; the exit code, None where it ended by itself."""
    pytest.importorskip("lm_eval")
    from harness_ext.cli import main

    monkeypatch.setattr(sys, "argv", words)
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return None


def cut(share: float) -> Callable[[Path], None]:
    def harm(database: Path) -> None:
        os.truncate(database, int(database.stat().st_size * share))

    return harm


def cut_to(size: int) -> Callable[[Path], None]:
    return lambda database: os.truncate(database, size)


def without_its_last_byte(database: Path) -> None:
    os.truncate(database, database.stat().st_size - 1)


def text(database: Path) -> None:
    database.write_text("hello\n" * 2000, encoding="utf-8")


def scribbled(at: float) -> Callable[[Path], None]:
    def harm(database: Path) -> None:
        data = bytearray(database.read_bytes())
        for block in range(12288 + int(at * 1000), len(data), 262144):
            data[block : block + 64] = b"\xa5" * 64
        database.write_bytes(bytes(data))

    return harm


def half_with_its_log(database: Path) -> None:
    subprocess.run([sys.executable, "-c", LEFT_LOG, str(database), "DELETE FROM ingest_log"], check=True)
    assert Path(f"{database}.wal").exists()
    cut(0.5)(database)


def log_of_another(database: Path) -> None:
    other = database.with_name("other.duckdb")
    with duckdb.connect(str(other)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
    subprocess.run([sys.executable, "-c", LEFT_LOG, str(other), "INSERT INTO t VALUES (2)"], check=True)
    shutil.move(f"{other}.wal", f"{database}.wal")
    other.unlink()


def later_schema(database: Path) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (99, 'a later version', now())")


def later_duckdb(database: Path) -> None:
    data = bytearray(database.read_bytes())
    data[12:20] = struct.pack("<Q", 9999)
    database.write_bytes(bytes(data))


HARMS = {
    "zero bytes": cut_to(0), "one byte": cut_to(1), "part of a header": cut_to(100), "one header": cut_to(4096),
    "headers alone": cut_to(12288), "a quarter": cut(0.25), "half": cut(0.5), "nearly all": cut(0.97),
    "all but a byte": without_its_last_byte, "a text": text, "scribbled over": scribbled(0),
    "scribbled over further on": scribbled(9), "half, with its log": half_with_its_log,
    "the log of another": log_of_another, "a later schema": later_schema, "a later DuckDB": later_duckdb,
}  # fmt: skip

ONLY_PARTS = ("nearly all", "all but a byte", "scribbled over", "scribbled over further on")
"""Harms that only those notice who read the part that is gone."""


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMS)
def test_one_sentence_and_its_command_works(
    made: Any, filled: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = policy_from({"tasks": {"sums": {"margin": 0.9}}}, "a test")
    laser = read_named(str(made.root / "tiny" / "laser"), filled, "candidate")
    report = judge_candidate(laser, policy, (), filled)
    with open_store(filled) as store:
        before = [row.run_id for row in queries.runs(store)]
    HARMS[name](filled)
    said = []
    users: list[Callable[[], object]] = [
        lambda: pins(filled),
        lambda: leaderboard.board(filled),
        lambda: read_named(report.candidate[:9], filled, "candidate"),
        lambda: ingest([made.root], filled),
        lambda: pin(filled, str(made.root / "tiny" / "laser"), "x"),
    ]
    for use in users:
        try:
            use()
        except LeaderboardError as error:
            said.append(str(error))
    if name not in ONLY_PARTS:
        assert len(said) == len(users) and "not recorded" in str(record_gate(report, policy, filled))
    assert said
    for sentence in said:
        words = [shlex.split(found) for found in re.findall(r"`(lm_eval ingest [^`]*)`", sentence)]
        assert words == [["lm_eval", "ingest", "--rebuild", str(made.root), "--database", str(filled)]], sentence
    assert command(monkeypatch, words[0]) is None
    out = capsys.readouterr()
    assert f"kept as {filled}.before-rebuild-1" in out.out and out.err == ""
    with open_store(filled) as store:
        assert [row.run_id for row in queries.runs(store)] == before and len(board(store)) == 2
    assert {entry.reason for entry in pins(filled)} == {"x"} and [entry.reason for entry in deletions(filled)] == ["z"]
    assert ingest([made.root], filled).added == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero bytes", "half", "a later schema", "the log of another"])
def test_the_commands_say_it_without_a_traceback(
    made: Any, filled: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    HARMS[name](filled)
    where = ["--database", str(filled)]
    for words in (["runs", "list"], ["ingest", str(made.root)], ["baseline", "list"], ["runs", "list", "--deleted"]):
        assert command(monkeypatch, ["lm_eval", *words, *where]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and "`lm_eval ingest --rebuild" in err, err


@pytest.mark.slow
def test_a_log_of_its_own_is_no_damage(made: Any, filled: Path) -> None:
    """A writer was killed after it had written: DuckDB completes it."""
    subprocess.run([sys.executable, "-c", LEFT_LOG, str(filled), "UPDATE ingest_log SET reason = 'r'"], check=True)
    with open_store(filled) as store:
        assert len(board(store)) == 2
    assert ingest([made.root], filled).added == []


@pytest.mark.slow
@pytest.mark.parametrize("make", ["folder", "something else"])
def test_what_is_not_ours_is_left_alone_and_another_file_works(
    made: Any, kit: Any, database: Path, make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.run("baseline", {"sums": kit.pair(9, 3)[0]})
    if make == "folder":
        database.mkdir()
        (database / "precious").write_text("x", encoding="utf-8")
    else:
        with duckdb.connect(str(database)) as connection:
            connection.execute("CREATE TABLE precious (n INTEGER)")
    said = set()
    for use in (
        lambda: pins(database),
        lambda: ingest([made.root], database),
        lambda: ingest([made.root], database, rebuild=True),
    ):
        with pytest.raises(LeaderboardError) as error:
            use()
        said.add(str(error.value))
    (sentence,) = said
    (found,) = re.findall(r"`([^`]*)`", sentence)
    assert command(monkeypatch, shlex.split(found)) is None
    assert len(leaderboard.board(made.root / "leaderboard-2.duckdb").cells) == 1
    assert (database / "precious").exists() if make == "folder" else database.is_file()


@pytest.mark.slow
def test_a_file_that_may_not_be_opened(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind the superuser, so the system's answer is stood in for."""

    def refused(*_: Any, **__: Any) -> None:
        raise duckdb.IOException(f'IO Error: Cannot open file "{filled}": Permission denied')

    monkeypatch.setattr(duckdb, "connect", refused)
    with pytest.raises(LeaderboardError, match=f"no permission to open .*`chmod u\\+rw {filled}`"):
        pins(filled)


@pytest.mark.slow
def test_damage_that_shows_only_in_use(filled: Path) -> None:
    for said in ("IO Error: Corrupt database file", "INTERNAL Error: x", "FATAL Error: y", "Serialization Error: z"):
        for read_only in (True, False):
            with (
                pytest.raises(LeaderboardError, match="damaged: `lm_eval ingest --rebuild"),
                open_store(filled, read_only=read_only),
            ):
                raise duckdb.Error(said)
    with pytest.raises(duckdb.Error, match="Binder"), open_store(filled):
        raise duckdb.Error("Binder Error: a mistake of ours")


@pytest.mark.slow
def test_a_file_that_is_short_but_whole_is_read(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may count blocks that were never written: only reading tells."""
    monkeypatch.setattr("leaderboard.store.database._HEADERS", 2**40)
    with open_store(filled) as store:
        assert len(board(store)) == 2


@pytest.mark.slow
def test_a_run_whose_store_breaks_meanwhile_still_has_its_results(made: Any, filled: Path) -> None:
    pytest.importorskip("lm_eval")
    from harness_ext.runs.execution import cells_from_runs, cells_from_store, check_database

    paths = [made.root / "tiny" / "baseline", made.root / "tiny" / "laser"]
    cut(0.5)(filled)
    with pytest.raises(LeaderboardError, match="--rebuild"):
        check_database(filled)
    with pytest.raises(LeaderboardError, match="--rebuild"):
        cells_from_store(paths, filled, None)  # type: ignore[arg-type]
    assert [cell.recipe for cell in cells_from_runs(paths)] == ["baseline", "laser"]


def test_all_tables_of_a_new_store_come_in_one_transaction(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between two migrations would leave part of them."""
    shipped = migrations.all_migrations()
    broken = [*shipped, migrations.Migration(len(shipped) + 1, "broken", "SELECT nonsense;")]
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "all_migrations", lambda: broken)
        with pytest.raises(duckdb.Error), open_store(database, read_only=False):
            pass
    with duckdb.connect(str(database), read_only=True) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == []
    with open_store(database, read_only=False) as store:
        assert store.rows("SELECT count(*) AS n FROM schema_migrations") == [{"n": len(shipped)}]


@pytest.mark.slow
def test_a_full_disk_keeps_the_old_store(made: Any, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = filled.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("leaderboard.ingest.os.replace", full)
        with pytest.raises(LeaderboardError, match="could not be replaced"):
            ingest([made.root], filled, rebuild=True)
    assert filled.read_bytes() == before
    assert not list(made.root.glob(".*rebuilding*"))
    assert len(ingest([made.root], filled, rebuild=True).added) == 2


@pytest.mark.slow
def test_a_rebuild_goes_on_where_a_killed_writer_stopped(made: Any, filled: Path) -> None:
    """The reader's sentence for it advises the rebuild."""
    half_with_its_log(filled)
    with pytest.raises(Busy, match=r"`lm_eval ingest --rebuild"), open_store(filled):
        pass
    assert len(ingest([made.root], filled, rebuild=True).added) == 2
