"""Reading the spread over seeds from run directories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_ext.demo_training import spread


def _run(folder: Path, seed: int, recipe: str, score: float, status: str = "complete") -> None:
    folder.mkdir(parents=True)
    results = {task: {spread.PRIMARY[task]: score} for task in spread.TASKS}
    (folder / "results_2026.json").write_text(json.dumps({"results": results}))
    receipt = {"status": status, "recipe": {"label": recipe}, "model": {"pretrained": f"/anywhere/seed-{seed}"}}
    (folder / "receipt.json").write_text(json.dumps(receipt))


def test_baseline_comes_first_and_other_seeds_and_failures_are_left_out(tmp_path):
    _run(tmp_path / "m" / "a", 2, "laser", 0.5)
    _run(tmp_path / "m" / "b", 2, "baseline", 0.25)
    _run(tmp_path / "n" / "c", 1, "baseline", 0.125)
    _run(tmp_path / "n" / "d", 9, "baseline", 1.0)
    _run(tmp_path / "n" / "e", 1, "laser", 1.0, status="failed")
    rows = spread.collect(tmp_path, [1, 2])
    assert [(row["seed"], row["recipe"], row["scores"]["int_sum"]) for row in rows] == [
        (1, "baseline", 0.125),
        (2, "baseline", 0.25),
        (2, "laser", 0.5),
    ]


def test_a_run_without_results_is_an_error(tmp_path):
    with pytest.raises(ValueError):
        spread.scores(tmp_path)


def test_the_command_names_model_tasks_and_recipes(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(spread.subprocess, "run", lambda command, check: commands.append(command))
    spread.evaluate(tmp_path / "seed-3", tmp_path / "results", ["laser", "eigenprune:fraction=0.1"])
    spread.evaluate(tmp_path / "seed-3", tmp_path / "results", [])
    first, second = (" ".join(command) for command in commands)
    assert f"pretrained={tmp_path / 'seed-3'}" in first and "--tasks " + ",".join(spread.TASKS) in first
    assert first.endswith(
        "--recipe laser --recipe eigenprune:fraction=0.1 --control random-subspace"
    ) and second.endswith("--recipe baseline")
