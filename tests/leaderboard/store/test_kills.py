"""Writers that are killed at any moment, full disks and folders that may not be written: whole runs only, each once,
and a message.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.board import board
from leaderboard.errors import Busy, LeaderboardError, MissingDatabase
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from tests.leaderboard.processes import child

WRITERS, DOCUMENTS, BIG = 8, 40, 2000
WRITE = (
    "import sys; from pathlib import Path; from leaderboard.ingest import ingest\nfor path in sys.argv[2:]:"
    " ingest([Path(path)], Path(sys.argv[1]), timeout_s=60)"
)
LIMITED = (
    "import resource, signal, sys; from pathlib import Path; from leaderboard.errors import LeaderboardError; from"
    " leaderboard.ingest import ingest\nsignal.signal(signal.SIGXFSZ,"
    " signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\ntry:\n   "
    " print(len(ingest([Path(sys.argv[3])], Path(sys.argv[1]), rebuild=sys.argv[4] == 'rebuild').added))\nexcept"
    " LeaderboardError as error:\n    print(f'error: {error}')\n    sys.exit(2)"
)


def write_runs(made: Any, kit: Any, count: int) -> list[Path]:
    """A baseline and `count - 1` recipes."""
    paths = []
    for k in range(count):
        task = kit.Task(
            {"acc": [float((i + k) % 3 == 0) for i in range(DOCUMENTS)]}, log_likelihoods=kit.likelihoods(DOCUMENTS, k)
        )
        paths.append(
            made.run(
                "baseline" if k == 0 else f"svd:rank={k}",
                {"sums": task},
                folder=f"{'baseline' if k == 0 else 'svd'}-{k:03}",
            )
        )
    return paths


def check_whole(database: Path) -> int:
    """Every run that is there is there once and in full; how many there are."""
    with open_store(database, read_only=True, timeout_s=60) as store:
        rows = store.rows(
            "SELECT r.run_id, count(*) AS times, any_value(t.n) AS tasks, any_value(s.n) AS scores, any_value(a.n) AS"
            " samples, any_value(b.n) AS sample_scores, any_value(l.n) AS logged FROM runs r LEFT JOIN (SELECT run_id,"
            " count(*) AS n FROM run_tasks GROUP BY ALL) t USING (run_id) LEFT JOIN (SELECT run_id, count(*) AS n FROM"
            " scores GROUP BY ALL) s USING (run_id) LEFT JOIN (SELECT run_id, count(*) AS n FROM samples GROUP BY ALL)"
            " a USING (run_id) LEFT JOIN (SELECT run_id, count(*) AS n FROM sample_scores GROUP BY ALL) b USING"
            " (run_id) LEFT JOIN (SELECT run_id, count(*) AS n FROM ingest_log GROUP BY ALL) l USING (run_id) GROUP BY"
            " r.run_id"
        )
        for row in rows:
            assert (row["times"], row["tasks"], row["scores"], row["samples"], row["sample_scores"], row["logged"]) == (
                1,
                1,
                1,
                DOCUMENTS,
                DOCUMENTS,
                1,
            ), row
        for table in ("run_tasks", "scores", "samples", "sample_scores", "receipts"):
            assert (
                store.rows(f"SELECT count(*) AS n FROM {table} WHERE run_id NOT IN (SELECT run_id FROM runs)")[0]["n"]
                == 0
            )
        return len(rows)


def write_and_kill(made: Any, kit: Any, database: Path, seconds: float, runs: int) -> None:
    paths = write_runs(made, kit, runs)
    generator = random.Random(1)
    until, seen, killed, busy = time.monotonic() + seconds, [0], 0, 0
    writers: list[subprocess.Popen[str]] = []
    said: list[str] = []
    while time.monotonic() < until:
        while len(writers) < WRITERS:
            writers.append(child(WRITE, database, *generator.sample(paths, len(paths))))
        try:
            with open_store(database, read_only=True, timeout_s=0.2) as store:
                seen.append(len({cell.run_id for cell in board(store)}))
        except (Busy, MissingDatabase):
            busy += 1
        except BaseException:
            for writer in writers:
                writer.kill()
                writer.communicate()
            raise
        time.sleep(generator.uniform(0, seconds / 50))
        victim = generator.choice(writers)
        victim.send_signal(signal.SIGKILL)
        killed += victim.wait() == -signal.SIGKILL
        said += [
            line for writer in writers if writer.poll() is not None for line in writer.communicate()[1].splitlines()
        ]
        writers = [writer for writer in writers if writer.poll() is None]
    for writer in writers:
        writer.kill()
        writer.communicate()
    assert [line for line in said if not line.startswith("waiting for ")] == []
    assert killed >= 5 and seen == sorted(seen), (killed, busy, seen)
    before = check_whole(database) if database.exists() else 0
    assert before >= max(seen)
    ingest(paths, database)
    assert check_whole(database) == runs


@pytest.mark.slow
def test_eight_writers_and_a_reader_with_random_kills(made: Any, kit: Any, database: Path) -> None:
    write_and_kill(made, kit, database, seconds=10, runs=30)


@pytest.mark.slow
def test_eight_writers_and_a_reader_with_random_kills_for_two_minutes(made: Any, kit: Any, database: Path) -> None:
    write_and_kill(made, kit, database, seconds=120, runs=400)


@pytest.mark.parametrize("how", ["add", "rebuild"])
@pytest.mark.parametrize(
    "room", [None, *(pytest.param(room, marks=pytest.mark.slow) for room in (0, 5_000, 100_000, 300_000, 700_000))]
)
def test_a_full_disk_gives_a_message_and_loses_nothing(
    made: Any, kit: Any, database: Path, room: int | None, how: str
) -> None:
    paths = write_runs(made, kit, 3)
    ingest(paths[:2], database)
    big = kit.pair(BIG, BIG // 2, lost=3)[1]
    made.run("laser", {"more": big})
    limit = 2_000 if room is None else room + (database.stat().st_size if how == "add" else 0)
    process = child(LIMITED, database, limit, made.root, how)
    out, err = process.communicate()
    assert "Traceback" not in err and process.returncode in (0, 2), err
    assert room is not None or process.returncode == 2, out
    if process.returncode == 2:
        assert "error:" in out and ("make room" in out or "cannot" in out), out
    with open_store(database) as store:
        assert store.rows("SELECT count(*) AS n FROM runs")[0]["n"] >= 2
    ingest([made.root], database)
    with open_store(database) as store:
        assert store.rows("SELECT count(*) AS n FROM runs")[0]["n"] == 4
        assert store.rows("SELECT count(*) AS n FROM samples")[0]["n"] == 3 * DOCUMENTS + BIG
    assert not list(made.root.glob(".*rebuilding*"))


@pytest.mark.slow
def test_a_database_that_had_no_room_to_begin_is_no_obstacle_later(made: Any, kit: Any, database: Path) -> None:
    write_runs(made, kit, 2)
    for limit in (0, 9_000):
        process = child(LIMITED, database, limit, made.root, "add")
        out, err = process.communicate()
        assert process.returncode == 2 and "make room" in out and "Traceback" not in err, (limit, out, err)
    assert len(ingest([made.root], database).added) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["add", "rebuild"])
def test_a_folder_that_may_not_be_written(
    made: Any, kit: Any, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not bind the superuser, so the system's answer is stood in for."""
    paths = write_runs(made, kit, 2)
    folder = tmp_path / "board"
    ingest(paths[:1], folder / "leaderboard.duckdb")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(LeaderboardError, match="no permission to write"):
        ingest(paths, folder / "leaderboard.duckdb", rebuild=how == "rebuild")
    with open_store(folder / "leaderboard.duckdb") as store:
        assert store.rows("SELECT count(*) AS n FROM runs")[0]["n"] == 1
