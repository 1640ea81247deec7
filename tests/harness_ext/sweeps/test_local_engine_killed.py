"""Drivers, workers and commands killed at random times: every cell gets done, and never twice at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness_ext.sweeps.job_files import read_record
from leaderboard.readers.sweep_state import ENDED, JOB

CELLS = ("a", "b", "c", "d")
# A cell holds a lock while it works: a second one at the same time would say so.
CELL = """
import fcntl, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "lock").open("w") as lock:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (folder / "twice").touch()
    time.sleep(0.3)
    (folder / "result").write_text("whole")
"""
DRIVER = f"""
import sys, time
from pathlib import Path
from harness_ext.sweeps.engines.base import Job
from harness_ext.sweeps.engines.local import LocalEngine
from harness_ext.sweeps.job_files import ENDED, read_record
root = Path(sys.argv[1])
local = LocalEngine(jobs=2, gpus=[])
jobs = {{cell: Job(cell, (sys.executable, "-c", {CELL!r}, str(root / cell)), {{}}, root / cell, 0, 60)
        for cell in {CELLS!r}}}
while True:
    alive = local.alive()
    left = [job for cell, job in jobs.items()
            if cell not in alive and (read_record(job.folder / ENDED) or {{}}).get("exit_code") != 0]
    if left:
        local.submit(left)
    elif not alive:
        break
    time.sleep(0.02)
"""


def victims(root: Path) -> Iterator[int]:
    """Workers, and the commands that are their children."""
    for cell in CELLS:
        job = read_record(root / cell / JOB)
        if job is None:
            continue
        yield job["pid"]
        with suppress(OSError):
            children = Path(f"/proc/{job['pid']}/task/{job['pid']}/children").read_text()
            yield from map(int, children.split())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and ends commands with their workers")
@pytest.mark.parametrize("seed", range(12))
def test_every_cell_gets_done_and_never_twice_at_once(tmp_path: Path, seed: int) -> None:
    drawn = random.Random(seed)
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    driver = subprocess.Popen(command, start_new_session=True)
    for _ in range(6):
        time.sleep(drawn.uniform(0.05, 0.6))
        if drawn.random() < 0.5:
            driver.kill()
            driver.wait()
            driver = subprocess.Popen(command, start_new_session=True)
        elif ours := [process for process in victims(tmp_path) if is_of(process, tmp_path)]:
            with suppress(ProcessLookupError):
                os.kill(drawn.choice(ours), signal.SIGKILL)
    assert driver.wait(60) == 0
    for cell in CELLS:
        assert (tmp_path / cell / "result").read_text() == "whole" and not (tmp_path / cell / "twice").exists()
        assert (read_record(tmp_path / cell / ENDED) or {})["exit_code"] == 0


def is_of(process: int, root: Path) -> bool:
    """Whether a process works on a cell of this test, and not on somebody else's in a number that was used again."""
    try:
        return str(root) in Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return False
