"""A sweep of two models by four recipes with controls leaves what one serial run of each model leaves, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

RECIPES = (
    "laser",
    "laser:layers=0",
    "svd:keep.rank_fraction=0.5",
    "svd-llm:keep.param_fraction=0.6,calibration.samples=8",
)
CONTROLS = ("random-subspace", "bottom-k")
FLAGS = ("--tasks", "int_mult", "--batch_size", "8", "--limit", "8", "--device", "cpu")


def command(folder: Path, *words: object) -> None:
    """Our command in a process of its own, in a folder; anything but success is told with its output."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run(
        [sys.executable, "-m", "harness_ext", *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    logs = [path.read_text(errors="replace")[-3000:] for path in folder.glob("results/sweeps/*/cells/*/output.log")]
    assert ran.returncode == 0, "\n".join([ran.stdout, ran.stderr, *logs])


def left_by(root: Path) -> dict[tuple[str, str], Any]:
    """By model and recipe: what was asked, the digest of the weights, all scores, and the samples as bytes."""
    found = {}
    for path in root.glob("*/*/receipt.json"):
        receipt = json.loads(path.read_text())
        (results,) = path.parent.glob("results_*.json")
        samples = {file.name.rpartition("_")[0]: file.read_bytes() for file in path.parent.glob("samples_*.jsonl")}
        assert len(samples) == len(receipt["tasks"]) and receipt["status"] == "complete", receipt["failure"]
        scores = json.loads(results.read_text())["results"]
        key = receipt["model"]["name"], receipt["recipe"]["label"]
        assert key not in found
        found[key] = receipt["spec_id"], receipt["weights"]["digest_after"], scores, samples
    return found


@pytest.fixture(scope="module", params=["stories260K", pytest.param("smollm2", marks=pytest.mark.long)])
def two_models(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Any]:
    """The embedded model and a real one, and what one run of each leaves."""
    real = request.getfixturevalue("smollm2") if request.param == "smollm2" else shared / "data/models" / request.param
    if not real.is_dir():
        pytest.skip(f"{real} is absent")
    models = ["demo", str(real)]
    folder = tmp_path_factory.mktemp("serial")
    for model in models:
        asked = ("--model", "hf", "--model_args", f"pretrained={model}", *FLAGS, "--recipe", *RECIPES)
        command(folder, "run", *asked, "--control", *CONTROLS, "--output_path", "results")
    return models, left_by(folder / "results")


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    ["local", pytest.param("ray", marks=pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"))],
)
def test_a_sweep_equals_serial_runs_to_the_bit(two_models: tuple[list[str], Any], engine: str, tmp_path: Path) -> None:
    models, serial = two_models
    file = {
        "name": "parity",
        "models": [{"pretrained": model} for model in models],
        "tasks": ["int_mult"],
        "recipes": list(RECIPES),
        "controls": list(CONTROLS),
        "run": {"batch_size": 8, "limit": 8, "device": "cpu"},
        "cells": {"recipes_per_cell": 2, "retries": 0},
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(file))  # JSON is YAML
    jobs = ("--jobs", 2) if engine == "local" else ()
    command(tmp_path, "sweep", "run", "sweep.yaml", "--on", engine, *jobs)
    swept = left_by(tmp_path / "results")
    assert len(serial) == len(models) * (1 + len(RECIPES) * (1 + len(CONTROLS)))
    assert swept.keys() == serial.keys()
    assert {key for key in serial if swept[key] != serial[key]} == set()
