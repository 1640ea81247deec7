"""A leaderboard of 1,000 and of 10,000 runs: the first page, a board after one run came in, `ingest` of what is known.

Runs are made here (`run_folders`): five tasks of five documents, recipes with controls, failed runs. Processor seconds
stand beside the wall clock, since other processes slow that down, and limits are set to them.

To judge 10,000 runs by their documents takes a quarter of an hour. Here some are judged, and what was found of them is
stored for the others too: what is measured is how boards are made of comparisons that were judged before.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from leaderboard import ingest as ingest_module
from leaderboard.board.board import board
from leaderboard.board.summary import summaries
from leaderboard.compare import verdict_cache
from leaderboard.compare.verdict_cache import Judged
from leaderboard.ingest import ingest
from leaderboard.store.database import Store, open_store
from tests.benchmarks.run_folders import Extent, write_runs
from tests.leaderboard.app.driving import chromium_page, wait_for

pytestmark = pytest.mark.benchmark

TASKS, DOCUMENTS, MANY = 5, 5, 10_000
_WANTED = """
CREATE TEMP TABLE wanted AS
WITH s AS (
    SELECT r.run_id, v.model_key, v.recipe_id, v.recipe_name, v.control, v.control_of, s.task, s.metric, s.filter,
        s.is_primary
    FROM scores s JOIN runs r USING (run_id) JOIN variants v USING (variant_id) WHERE NOT s.is_group
)
SELECT s.run_id, b.run_id AS baseline_run, task, metric, filter FROM s JOIN (
    SELECT DISTINCT run_id, model_key FROM s WHERE recipe_name = 'baseline'
) b USING (model_key) WHERE s.recipe_name <> 'baseline'
UNION ALL
SELECT s.run_id, c.run_id, task, metric, filter FROM s JOIN (
    SELECT DISTINCT run_id, model_key, control_of, task FROM s WHERE control IS NOT NULL
) c USING (model_key, task) WHERE c.control_of = s.recipe_id AND s.control IS NULL AND s.is_primary
"""


class Spent(NamedTuple):
    """Seconds of the wall clock and of the processor."""

    wall: float
    cpu: float


@contextmanager
def said(capsys: pytest.CaptureFixture[str], what: str, most: float | None = None) -> Iterator[None]:
    """Print what a block takes; at most so many processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    report(capsys, what, Spent(time.perf_counter() - wall, time.process_time() - cpu), most)


def report(capsys: pytest.CaptureFixture[str], what: str, spent: Spent, most: float | None = None) -> None:
    with capsys.disabled():
        aim = "" if most is None else f"   (aim {most:g} s)"
        print(f"\n{what:<58} {spent.wall:7.2f} s wall {spent.cpu:7.2f} s processor{aim}", end="", flush=True)
    assert most is None or spent.cpu <= most


def judge_all(database: Path) -> None:
    """Store a comparison for every score that has none, drawn from those that were judged, and the verdicts of all."""
    with open_store(database, read_only=False) as store, store.transaction():
        fill(store)
    ingest_module.judge_outdated(database, 30.0, 600.0)


def fill(store: Store) -> None:
    connection, names = store.connection, ", ".join(Judged._fields)
    connection.execute(_WANTED)
    for (metric,) in connection.execute("SELECT DISTINCT metric FROM wanted").fetchall():
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE pool AS SELECT row_number() OVER () - 1 AS place, count(*) OVER () AS size,"
            f" {names} FROM comparisons WHERE metric = ? AND documents IS NOT NULL",
            [metric],
        )
        connection.execute(
            f"INSERT INTO comparisons BY NAME SELECT w.*, $1 AS code, {names} FROM wanted w JOIN pool p ON p.place ="
            " hash(w.run_id || w.task || w.baseline_run) % (SELECT any_value(size) FROM pool) WHERE w.metric = $2 AND"
            " NOT EXISTS (FROM comparisons c WHERE (c.run_id, c.baseline_run, c.task, c.metric, c.filter) = (w.run_id,"
            " w.baseline_run, w.task, w.metric, w.filter))",
            [verdict_cache.code(), metric],
        )


class Server:
    """A running server, whose processor time can be asked."""

    def __init__(self, database: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "leaderboard", "--database", str(database), "--port", str(port)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        wait_for(self.url, self._process)

    def cpu(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=30)


def filled(root: Path, extent: Extent, capsys: pytest.CaptureFixture[str]) -> Path:
    """A database of so many runs, every board judged; what ingest takes is printed."""
    database = root / "board.duckdb"
    write_runs(root / "runs", extent)
    time.sleep(4)  # files that were written just now are read again
    with said(capsys, f"{extent.runs:,} runs, ingested"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "judge_outdated", lambda *_: None)
        assert len(ingest([root / "runs"], database).added) == extent.runs
    with said(capsys, "some of them judged"):
        ingest_module.judge_outdated(database, 30.0, 10.0)
    with said(capsys, "every board, of comparisons that are known"):
        judge_all(database)
    return database


def test_the_first_page_of_a_thousand_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = filled(tmp_path, Extent(1000, TASKS, DOCUMENTS), capsys)
    with open_store(database) as store, said(capsys, "every model at a glance, in a running process", 0.5):
        assert all(model.judged for model in summaries(store, seconds=0.0).values())
    began = time.perf_counter()
    server = Server(database)
    try:
        with chromium_page() as page:
            server.wait()
            for what, most in (("first page, the server's start with it", 2.0), ("once more, as another reader", 0.5)):
                before = 0.0 if what.startswith("first") else server.cpu()
                began = began if what.startswith("first") else time.perf_counter()
                page.context.clear_cookies()
                page.goto(server.url)
                page.get_by_text("Newest").first.wait_for(timeout=60_000)
                page.wait_for_function("() => !document.querySelector('[data-testid=stStatusWidget]')", timeout=60_000)
                spent = Spent(time.perf_counter() - began, server.cpu() - before)
                report(capsys, f"1,000 runs: {what}", spent, most)
    finally:
        server.stop()


@pytest.mark.parametrize(("models", "most"), [(20, 3.0), (1, None)])
def test_ten_thousand_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], models: int, most: float | None) -> None:
    extent = Extent(MANY, TASKS, DOCUMENTS, models)
    database = filled(tmp_path, extent, capsys)
    of_each = (
        f"{models} models, {extent.runs // models:,} runs each" if models > 1 else f"one model, {extent.runs:,} runs"
    )
    with said(capsys, f"{of_each}: ingest of an unchanged tree", 5.0):
        assert len(ingest([tmp_path / "runs"], database).duplicates) == extent.runs
    write_runs(tmp_path / "runs", extent._replace(runs=extent.runs + 1), first=extent.runs)
    with said(capsys, f"{of_each}: ingest after one more run, not judged"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "judge_outdated", lambda *_: None)
        assert len(ingest([tmp_path / "runs"], database).added) == 1
    with open_store(database) as store:
        (row,) = store.rows("SELECT model_key FROM runs JOIN variants USING (variant_id) ORDER BY started DESC LIMIT 1")
        with said(capsys, f"{of_each}: that model's board", most):
            cells = board(store, models=[row["model_key"]])
        assert len(cells) == TASKS * (extent.runs // models + 1)
        with said(capsys, f"{of_each}: every model at a glance"):
            summaries(store)
