"""Who of a sweep lives: by its process on this machine, elsewhere by its heartbeat, and never by a file being there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from leaderboard.readers import sweep_state as states
from leaderboard.readers.sweep_life import HeartbeatWatch, host, lives_here, process_start
from leaderboard.readers.sweep_state import CELLS, DRIVER, ENDED, HEARTBEAT, JOB, PLAN, decided_state, sweep_state


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(states, "_UNTOLD_SECONDS", 0.1)


def own() -> dict[str, Any]:
    """The record of a process of this machine that lives."""
    return {"host": host(), "pid": os.getpid(), "process_start": process_start(os.getpid())}


def dead() -> dict[str, Any]:
    """The record of a process of this machine that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        record = {**own(), "pid": process.pid, "process_start": process_start(process.pid)}
        process.communicate(b"\n")
    return record


def sweep(root: Path, driver: dict[str, Any] | None, *jobs: dict[str, Any]) -> Path:
    """A sweep's folder with a cell `c0`, `c1`, ... that began, for each job, and one that waits."""
    keys = [f"c{number}" for number in range(len(jobs) + 1)]
    cells = [{"key": key, "model": "demo", "recipes": ["laser"]} for key in keys]
    (root / PLAN).write_text(json.dumps({"name": "s", "cells": cells}))
    for key, job in zip(keys, jobs):
        (root / CELLS / key).mkdir(parents=True)
        (root / CELLS / key / JOB).write_text(json.dumps(job))
        (root / CELLS / key / HEARTBEAT).write_text("1\n")
    if driver is not None:
        (root / DRIVER).write_text(json.dumps(driver))
    return root


def test_the_dead_of_this_machine_are_told_at_once(tmp_path: Path) -> None:
    gone = dead()
    found = sweep_state(sweep(tmp_path, gone, gone, own()))
    assert found is not None
    assert (found.driver, found.dead) == ("", f"{host()} (process {gone['pid']}) has died")
    assert [cell.state for cell in found.cells] == ["lost", "running", "waiting"]
    assert found.cells[0].reason == "its worker has died: `lm_eval sweep run` runs it again"
    assert found.summary == "0 of 3 cells done, 1 running, 1 lost, 1 waiting"


def test_a_later_process_of_the_same_number_is_not_the_driver(tmp_path: Path) -> None:
    boot = str(process_start(os.getpid())).rpartition(":")[0]
    found = sweep_state(sweep(tmp_path, {**own(), "process_start": f"{boot}:1"}))
    assert found is not None and not found.driver and "has died" in found.dead


def test_the_living_of_this_machine(tmp_path: Path) -> None:
    found = sweep_state(sweep(tmp_path, own(), own(), dead()))
    assert found is not None and found.driver == f"{host()} (process {os.getpid()})" and not found.dead
    assert [cell.state for cell in found.cells] == ["running", "lost", "waiting"]
    assert found.cells[1].reason == "its worker has died: the driver runs it again"


def test_a_worker_that_left_its_last_record_is_not_lost(tmp_path: Path) -> None:
    folder = sweep(tmp_path, None, dead())
    (folder / CELLS / "c0" / ENDED).write_text("{}")
    found = sweep_state(folder)
    assert found is not None and [cell.state for cell in found.cells] == ["waiting", "waiting"]


@pytest.mark.slow
def test_on_another_machine_a_heartbeat_tells(tmp_path: Path) -> None:
    """One cell counts on, the driver and another cell are silent; no clock decides."""
    elsewhere = {"host": "node7", "pid": os.getpid(), "process_start": "another boot:1"}
    folder = sweep(tmp_path, {**elsewhere, "count": 3}, elsewhere, elsewhere)
    at_first = sweep_state(folder)
    assert at_first is not None and at_first.driver and at_first.count("running") == 2  # nobody is dead by one look
    ended, said = threading.Event(), list[str]()

    def count() -> None:
        number = 1
        while not ended.wait(0.02):
            number += 1
            (folder / "new").write_text(f"{number}\n")
            (folder / "new").replace(folder / CELLS / "c0" / HEARTBEAT)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        found = decided_state(folder, said.append, patience_s=1.0)
    finally:
        ended.set()
        counting.join()
    assert found is not None and not found.driver
    assert found.dead == f"node7 (process {os.getpid()}) has given no sign of life for 1 s"
    assert [cell.state for cell in found.cells] == ["running", "lost", "waiting"]
    assert said == ["waits up to 1 s for a sign of life from other machines"]


def test_another_boot_of_a_machine_of_the_same_name_is_not_this_one() -> None:
    assert lives_here({**own(), "process_start": "another boot:1"}) is None
    assert lives_here({**own(), "pid": "1"}) is None and lives_here({}) is None


def test_a_watch_takes_back_what_it_said(tmp_path: Path) -> None:
    watch, path = HeartbeatWatch(patience_s=5), tmp_path / HEARTBEAT
    path.write_text("1")
    assert [watch.beats(path, clock) for clock in (0, 4, 5)] == [None, None, False] and not watch.undecided
    path.write_text("2")
    assert [watch.beats(path, clock) for clock in (6, 10, 11)] == [True, True, False]
