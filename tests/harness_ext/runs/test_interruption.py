"""Killed anywhere, a run keeps what was complete and leaves no trace of what was not; the same command finishes it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPES = ["laser", "svd", "eigenprune:fraction=0.25,calibration.samples=20"]
LABELS = {"baseline", *RECIPES, *(f"{recipe}+random-subspace" for recipe in RECIPES)}


def command(folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "harness_ext",
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=demo",
        "--tasks",
        "int_mult",
        "--limit",
        "40",
        "--batch_size",
        "8",
        "--device",
        "cpu",
        "--output_path",
        str(folder),
        "--recipe",
        *RECIPES,
        "--control",
        "random-subspace",
    ]


def complete(folder: Path) -> dict[str, int]:
    """The labels of the runs that stand, and when each was written; every one must be whole."""
    found = {}
    for path in folder.glob("demo/[!.]*"):
        receipt = json.loads((path / "receipt.json").read_text())
        assert receipt["status"] == "complete"
        assert len(list(path.glob("results_*.json"))) == 1
        (samples,) = path.glob("samples_int_mult_*.jsonl")
        assert len([json.loads(line) for line in samples.read_text().splitlines()]) == 40
        assert receipt["recipe"]["label"] not in found
        found[receipt["recipe"]["label"]] = path.stat().st_mtime_ns
    return found


def rows_of_store(folder: Path) -> list[tuple[str, int]]:
    import duckdb

    with duckdb.connect(str(folder / "leaderboard.duckdb"), read_only=True) as connection:
        return connection.sql(
            "select v.recipe_label, count(*) from runs r join variants v using (variant_id) group by 1 order by 1"
        ).fetchall()


def kill_after(folder: Path, seconds: float) -> None:
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


def kill_and_finish(folder: Path, kills: int, seed: int) -> None:
    start = time.monotonic()
    subprocess.run([*command(folder / "whole")], check=True, capture_output=True)
    whole = time.monotonic() - start
    generator = random.Random(seed)
    for _ in range(kills):
        before = complete(folder)
        kill_after(folder, generator.uniform(0.3, 1.0) * whole)
        after = complete(folder)
        assert before.items() <= after.items(), "a complete run was lost or written again"
    before = complete(folder)
    subprocess.run(command(folder), check=True, capture_output=True)
    after = complete(folder)
    assert set(after) == LABELS and before.items() <= after.items()
    assert not list(folder.glob("demo/.*")), "something half-written was left"
    assert rows_of_store(folder) == [(label, 1) for label in sorted(LABELS)]


@pytest.mark.slow
def test_killed_at_a_random_point_and_finished(tmp_path: Path) -> None:
    kill_and_finish(tmp_path, kills=1, seed=int(os.environ.get("PYTEST_SEED", "1")))


@pytest.mark.slow
@pytest.mark.long
def test_killed_at_many_random_points_and_finished(tmp_path: Path) -> None:
    kill_and_finish(tmp_path, kills=25, seed=2)


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    said = []
    # A shell that runs the tests in the background makes them, and all that they start, deaf to it.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    with started as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if "laser: evaluating" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 2
    text = "".join(said)
    assert "Traceback" not in text and "interrupted: what was complete is kept" in text
    assert "baseline" in complete(tmp_path) and not list(tmp_path.glob("demo/.*"))
    again = subprocess.run(command(tmp_path), check=True, capture_output=True, text=True)
    assert "baseline: kept from" in again.stderr and set(complete(tmp_path)) == LABELS
