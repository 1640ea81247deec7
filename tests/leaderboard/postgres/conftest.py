"""A PostgreSQL of the tests' own, and a leaderboard to publish there."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leaderboard.ingest import ingest
from tests.leaderboard.conftest import Fabricator, Task

PASSWORD = "s3cret/of+the#board"


def _programs() -> Path | None:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    there = found[-1] if found else shutil.which("initdb")
    return Path(os.path.realpath(there)).parent if there else None


def _as_postgres(*command: object) -> None:
    """Run a program of PostgreSQL, which refuses to be root."""
    words = [str(word) for word in command]
    if os.getuid() == 0:
        words = ["runuser", "-u", "postgres", "--", *words]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")


def _user() -> str | None:
    """Who a server can run as; None where that is nobody here."""
    try:
        return "postgres" if os.getuid() == 0 and pwd.getpwnam("postgres") and shutil.which("runuser") else None
    except KeyError:
        return None


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """(folder of its socket, port) of a PostgreSQL of the test's own, whose user `board` has a password."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = _programs()
    if programs is None or (os.getuid() == 0 and _user() is None):
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    (folder / "password").write_text(PASSWORD)
    if user := _user():
        for path in (folder, folder / "password"):
            shutil.chown(path, user, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, options = folder / "data", f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    try:
        _as_postgres(
            *(programs / "initdb", "-D", data, "-U", "board", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8"),
            *("--pwfile", folder / "password"),
        )
        _as_postgres(programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        yield str(folder), port
        _as_postgres(programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def address(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of the test's own on the server; the password is in PGPASSWORD."""
    import psycopg

    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    name = f"test{time.monotonic_ns()}"
    with psycopg.connect(f"postgres://board@127.0.0.1:{server[1]}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgres://board@127.0.0.1:{server[1]}/{name}"


@pytest.fixture
def made(tmp_path: Path) -> Fabricator:
    """Two runs and a leaderboard of them, `results/leaderboard.duckdb`."""
    made = Fabricator(tmp_path / "results")
    made.run("baseline", {"sums": Task({"acc": [float(i % 3 > 0) for i in range(60)]})})
    made.run("laser", {"sums": Task({"acc": [float(i % 7 > 0) for i in range(60)]})})
    ingest([tmp_path / "results"], tmp_path / "results" / "leaderboard.duckdb")
    return made
