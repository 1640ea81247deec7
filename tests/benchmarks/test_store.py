"""The store at scale, on run folders made here: 10 models of equal share, 50 tasks, answers drawn with a fixed seed.

Measured are ingest with and without samples, the pages' data in a fresh process and in one that runs, and whether a
rebuild gives the same content. Both wall and processor seconds are printed and the limits are set to processor seconds,
because other processes slow the wall clock down; ingest reads and writes side by side, so that on two free cores its
wall is the shorter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from tests.benchmarks.run_folders import Extent, write_runs

pytestmark = pytest.mark.benchmark

RUNS, TASKS, DOCUMENTS = 1000, 50, 20
PLAIN = {"matrices": 24, "failed_every": 0}
TABLES = {
    "variants": "",
    "runs": "EXCLUDE (ingested_at)",
    "run_tasks": "",
    "scores": "",
    "docs": "",
    "samples": "",
    "sample_scores": "",
    "receipts": "",
    "calibrations": "",
    "noise_floors": "",
    "baselines": "",
    "deletions": "",
}
PAGE = """
import os, sys, time
started = time.time(), time.process_time()
os.environ["HF_HUB_OFFLINE"] = "1"
from leaderboard.app.serve import DATABASE_VARIABLE
os.environ[DATABASE_VARIABLE] = sys.argv[1]
from leaderboard.app import data
def say(what, since):
    print(f"{what}|{time.time() - since[0]:.3f}|{time.process_time() - since[1]:.3f}", flush=True)
    return time.time(), time.process_time()
names = data.overview().value.names
key = min(names, key=names.get)
cells = data.cells_of(key).value
now = say(f"first page, fresh process, {len(cells)} cells", started)
data.overview(), data.cells_of(key)
now = say("the same page again", now)
data.forget()
data.overview(), data.cells_of(key)
now = say("the same page after the database changed", now)
shown = [cell for cell in data.cells_of(key).value if cell.task in ("task01", "task07") or cell.recipe.endswith("9")]
now = say("a filter", now)
cells = data.cells_of(*names).value
now = say(f"all models at once, {len(cells)} cells", now)
"""


@contextmanager
def timed(
    capsys: pytest.CaptureFixture[str], what: str, unit: str, count: int, least: float | None = None
) -> Iterator[None]:
    """Print wall and processor seconds and rates; at least so many a processor second."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with capsys.disabled():
        print(
            f"\n{what:<45} {wall:7.1f} s wall {cpu:7.1f} s processor {count / wall:9.0f} {unit}/s wall"
            f" {count / cpu:9.0f} {unit}/s processor"
        )
    assert least is None or count / cpu >= least


def fingerprint(database: Path) -> dict[str, tuple[int, int]]:
    """Of every table: its number of rows, and a hash of them that does not depend on their order."""
    with open_store(database) as store:
        found = {}
        for table, but in TABLES.items():
            (row,) = store.rows(
                "SELECT count(*) AS n, coalesce(sum(hash(row_text)::HUGEINT), 0) AS total FROM (SELECT (SELECT"
                f" to_json(t)::VARCHAR) AS row_text FROM (SELECT * {but} FROM {table}) t)"
            )
            found[table] = (row["n"], int(row["total"]))
        return found


def test_ingest_without_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path / "runs", Extent(500, 10, 0, **PLAIN))
    with timed(capsys, "500 runs of ten tasks, no samples", "runs", 500, least=50):
        assert len(ingest([tmp_path / "runs"], tmp_path / "board.duckdb").added) == 500


def test_ingest_of_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path / "runs", Extent(20, 10, 1000, **PLAIN))
    with timed(capsys, "20 runs of ten tasks, 1,000 samples a task", "rows", 200_000, least=30_000):
        assert len(ingest([tmp_path / "runs"], tmp_path / "board.duckdb").added) == 20


def test_a_thousand_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, database, rows = tmp_path / "runs", tmp_path / "board.duckdb", RUNS * TASKS * DOCUMENTS
    write_runs(runs, Extent(RUNS, TASKS, DOCUMENTS, **PLAIN))
    with timed(capsys, f"{RUNS} runs, {TASKS} tasks, {rows} samples", "rows", rows):
        assert len(ingest([runs], database).added) == RUNS
    before = fingerprint(database)
    with timed(capsys, "rebuild, everything judged", "rows", rows):
        assert len(ingest([runs], database, rebuild=True).added) == RUNS
    assert fingerprint(database) == before and before["samples"][0] == rows
    out = subprocess.run(
        [sys.executable, "-c", PAGE, str(database)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ).stdout
    spent = [line.split("|") for line in out.splitlines()]
    with capsys.disabled():
        print(
            "".join(
                f"\n{what:<45} {float(wall):7.2f} s wall {float(cpu):7.2f} s processor" for what, wall, cpu in spent
            )
        )
    for (_, _, cpu), limit in zip(spent, (3.0, 1.0, 1.0, 0.5), strict=False):
        assert float(cpu) < limit
