"""Sweeps by the thousand: planning 1,000 cells, the status of 10,000, and what a cell costs beyond its command.

Processor seconds are asserted, since other processes slow a wall clock down; wall seconds are printed beside them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness_ext.lm_eval_adapter.task_index import default_root, saved_rows
from harness_ext.sweeps.engines.base import Job
from harness_ext.sweeps.engines.local import LocalEngine
from harness_ext.sweeps.plan import expectations, plan_of
from harness_ext.sweeps.sweep_file import read_sweep
from leaderboard.readers.sweep_state import CELLS, JOB, OUTCOME, PLAN, rows, sweep_state

pytestmark = pytest.mark.benchmark

EMPTY = 20


def processor_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the processor seconds that it took; both figures are printed."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    taken = time.process_time() - cpu
    print(f"{time.perf_counter() - wall:.2f} s wall, {taken:.2f} s processor")
    return found, taken


def large_sweep(folder: Path) -> Path:
    """A file of ten models by 399 recipes: 1,010 cells."""
    shares = ",".join(str(place / 1000) for place in range(1, 400))
    models = "".join(f"  - {{pretrained: org/model-{number}}}\n" for number in range(10))
    file = folder / "sweep.yaml"
    file.write_text(
        f"name: large\noutput_path: {folder}/results\nmodels:\n{models}tasks: [int_mult]\n"
        f"recipes: ['svd:keep.rank_fraction=[{shares}]']\ncontrols: [random-subspace]\n"
        "run: {batch_size: 16}\ncells: {recipes_per_cell: 4}\n"
    )
    return file


def test_planning_a_thousand_cells(tmp_path: Path) -> None:
    file = large_sweep(tmp_path)
    plan, taken = processor_seconds(lambda: plan_of(read_sweep(file), tmp_path))
    lines, more = processor_seconds(lambda: expectations(plan))
    assert len(plan.cells) == 10 * (1 + 100) and sum(line.cells for line in lines) == len(plan.cells)
    assert taken + more < 2


def test_the_plan_command_on_a_thousand_cells(tmp_path: Path) -> None:
    """All of it: the interpreter's start, the check of the tasks, the table."""
    command = [sys.executable, "-m", "harness_ext", "sweep", "plan", str(large_sweep(tmp_path))]
    saved_rows(default_root())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran, _ = processor_seconds(lambda: subprocess.run(command, capture_output=True, text=True, check=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{taken:.2f} s processor of the command")
    assert "1010 of 1010 cells to run" in ran.stdout and taken < 2


def test_the_status_of_ten_thousand_cells(tmp_path: Path) -> None:
    keys = [f"model-laser-{number:05}" for number in range(10_000)]
    for number, key in enumerate(keys):
        if number % 4 == 3:
            continue
        place = tmp_path / CELLS / key
        place.mkdir(parents=True)
        if number % 4 == 2:
            (place / JOB).write_text(json.dumps({"cell": key, "host": "node1", "pid": 1}))
            continue
        tries = [{"why": "" if number % 2 else "killed", "host": "node1", "seconds": 60.0}]
        state = "done" if number % 2 else "failed"
        (place / OUTCOME).write_text(json.dumps({"state": state, "runs": [], "tries": tries}))
    cells = [{"key": key, "model": "org/model", "recipes": ["laser"]} for key in keys]
    (tmp_path / PLAN).write_text(json.dumps({"name": "large", "cells": cells}))
    found, taken = processor_seconds(lambda: sweep_state(tmp_path))
    assert found is not None and len(rows(found, ("failed",))) == 2500
    assert taken < 2


def test_what_a_cell_costs_beyond_its_command(tmp_path: Path) -> None:
    """Commands that do nothing, one after the other, through the engine and its workers."""
    jobs = [
        Job(f"c{number}", (sys.executable, "-c", ""), {}, tmp_path / f"c{number}", 0, None) for number in range(EMPTY)
    ]
    engine = LocalEngine(gpus=[])
    begun = time.perf_counter()
    engine.submit(jobs)
    while engine.alive():
        time.sleep(0.02)
    each = (time.perf_counter() - begun) / EMPTY
    print(f"{each:.2f} s wall a cell")
    assert each < 2
