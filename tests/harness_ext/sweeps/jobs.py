"""Cells of a few lines of Python, and waiting for engines to run them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness_ext.sweeps.engines.base import Job, SweepEngine
from harness_ext.sweeps.job_files import read_record
from leaderboard.readers.sweep_state import ENDED


def job(folder: Path, code: str, *, gpus: int = 1, after: tuple[str, ...] = (), timeout_s: float | None = None) -> Job:
    """A cell named after its folder that runs a few lines of Python."""
    environment = {"LM_EVAL_SWEEP": "low-rank", "LM_EVAL_SWEEP_CELL": folder.name}
    return Job(folder.name, (sys.executable, "-c", code), environment, folder, gpus, timeout_s, after)


def drain(engine: SweepEngine, seconds: float = 60) -> list[set[str]]:
    """What was alive, from look to look, until nothing is."""
    seen, end = [engine.alive()], time.monotonic() + seconds
    while seen[-1]:
        assert time.monotonic() < end, f"still alive: {seen[-1]}"
        time.sleep(0.02)
        seen.append(engine.alive())
    return seen


def until(true: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def ended(folder: Path) -> dict[str, Any]:
    """What a cell's worker wrote down at its end."""
    record = read_record(folder / ENDED)
    assert record is not None
    return record
