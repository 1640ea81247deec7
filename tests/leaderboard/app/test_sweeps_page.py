"""The page of sweeps, by Streamlit's own test driver: what it says of the files that drivers and cells leave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from leaderboard.readers.sweep_life import host, process_start
from leaderboard.readers.sweep_state import CELLS, DRIVER, JOB, OUTCOME, PLAN, SWEEPS
from tests.leaderboard.app.driving import page, page_database, texts

pytest.importorskip("streamlit")
HOSTILE = "![x](http://example.org/x.png) <script>alert(1)</script>"


def write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")


def sweep(root: Path, name: str, states: dict[str, str]) -> Path:
    """A sweep's folder. states: of its cells, by key."""
    folder = root / SWEEPS / name
    write(
        folder / PLAN, {"name": name, "cells": [{"key": key, "model": "demo", "recipes": ["laser"]} for key in states]}
    )
    for key, state in states.items():
        if state in ("done", "failed"):
            why = "" if state == "done" else HOSTILE
            tries = [{"why": why, "host": "node7", "seconds": 120.0}]
            write(folder / CELLS / key / OUTCOME, {"state": state, "runs": [], "tries": tries})
        elif state == "running":
            write(folder / CELLS / key / JOB, {"cell": key, "host": "node8", "pid": 1})
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results folder, in which there is no database yet."""
    return page_database(tmp_path / "results", monkeypatch).parent


def test_without_a_sweep_it_says_how_to_begin_one(root: Path) -> None:
    app = page("sweeps")
    assert "No sweep has its results in" in texts(app) and "lm_eval sweep run sweep.yaml" in texts(app, "code")


def test_a_sweep_is_told_by_its_cells(root: Path) -> None:
    states = {"a": "done", "b": "failed", "c": "running", "d": "waiting", "e": "waiting"}
    write(sweep(root, "low-rank", states) / DRIVER, {"host": "login1", "pid": 4711})
    app = page("sweeps")
    said = texts(app, "text")
    assert "1 of 5 cells done, 1 running, 1 failed, 2 waiting." in said
    assert "About 5 minutes left" in said and "Driven by login1 (process 4711)." in said
    table = app.dataframe[0].value
    assert list(table["State"]) == ["done", "failed", "running", "waiting", "waiting"]
    assert list(table["Host"][:3]) == ["node7", "node7", "node8"]
    assert "alert(1)" in table["Why"][1] and "script" not in texts(app, "markdown")


@pytest.mark.slow
def test_states_and_sweeps_are_chosen_in_the_url(root: Path) -> None:
    sweep(root, "one", {"a": "done"})
    sweep(root, "two", {"a": "done", "b": "failed"})
    app = page("sweeps", sweep="two", state="failed")
    assert list(app.dataframe[0].value["Cell"]) == ["b"] and "1 of 2 cells done, 1 failed" in texts(app, "text")
    assert "No driver" not in texts(app)


def test_a_sweep_that_nobody_drives_says_so(root: Path) -> None:
    sweep(root, "one", {"a": "done", "b": "waiting"})
    assert "No driver watches it: `lm_eval sweep run FILE` goes on." in texts(page("sweeps"), "text")


def test_a_driver_that_died_is_told(root: Path) -> None:
    boot = str(process_start(os.getpid())).rpartition(":")[0]
    gone = {"host": host(), "pid": os.getpid(), "process_start": f"{boot}:1"}
    folder = sweep(root, "one", {"a": "done", "b": "running"})
    write(folder / DRIVER, gone)
    write(folder / CELLS / "b" / JOB, gone)
    app = page("sweeps")
    said = texts(app, "text")
    assert "1 of 2 cells done, 1 lost." in said and "Driven by" not in said
    assert f"Its driver, {host()} (process {os.getpid()}) has died: start `lm_eval sweep run FILE` again." in said
    assert list(app.dataframe[0].value["State"]) == ["done", "lost"]


@pytest.mark.parametrize("plan", ["", "[]", '{"cells": 3}', '{"name": 3, "cells": [{"key": "../x"}, 7]}'])
def test_a_plan_of_nonsense_is_no_error(root: Path, plan: str) -> None:
    (root / SWEEPS / "odd").mkdir(parents=True)
    (root / SWEEPS / "odd" / PLAN).write_text(plan)
    assert not page("sweeps").dataframe
