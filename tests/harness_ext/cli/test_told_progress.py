"""Every kind of long work of a run tells how far it is: with no time between lines, each has its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness_ext import progress


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("svd", [r"svd: editing: \d+ of 14 matrices"]),
        ("svd-llm", [r"svd-llm: editing \d+/14: calibrating: 1 of 2 layers", r"editing: 3 of 14 matrices"]),
        ("fwsvd", [r"editing 0/14: calibrating: 2 of 4 layers", "measuring the loss: .* of .* documents"]),
        (
            "laser-search",
            [
                r"searching 0/48: scoring all documents: \d+ of \d+ batches",
                r"searching 8/48: trying 8: \d+ of \d+ batches, .*; best \S+ % right \(unedited \S+ %\): \S+ rank_",
            ],
        ),
        (
            "eigenprune-greedy",
            [r"searching: \d of 8 rounds at most, .*; best loss \S+ nats \(before \S+\), \d+ removed"],
        ),
        ("ablation-prune", [r"trying removals: \d+ of 64 trials at most"]),
        (
            "basis-selection:training.keeping_epochs=1,training.pruning_times=1,training.post_epochs=1",
            [r"training: \d+ of \S+ documents, .* so far; loss \S+ nats in epoch 2, pruning"],
        ),
    ],
)
def test_long_work_tells_how_far_it_is(talkative: None, demo_run: Any, recipe: str, words: list[str]) -> None:
    ran = demo_run("--recipe", recipe, limit=4)
    assert ran.code == 0, ran.err
    label = recipe.partition(":")[0]
    for expected in (
        r"\[1/2\] baseline: evaluating: choices: [1-9]\d* of \d+ requests",
        rf"\[2/2\] {label}.*: evaluating: choices: [1-9]\d* of \d+ requests",
        *words,
    ):
        assert re.search(expected, ran.err), f"{expected}\n{ran.err}"
    assert "so far" not in ran.out


@pytest.mark.slow
def test_no_library_draws_bars_of_its_own(repository: Path, tmp_path: Path) -> None:
    """In a process of its own, as a command is: where a test before has loaded tqdm, it is too late to turn it off."""
    arguments = "--model hf --model_args pretrained=demo --tasks int_mult --limit 4 --batch_size 16 --device cpu"
    ran = subprocess.run(
        [sys.executable, "-m", "harness_ext", "run", *arguments.split(), "--recipe", "svd-llm"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
        | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "svd-llm: done in" in ran.stderr and "so far" not in ran.stdout
    for bar in ("it/s", "s/it", "%|", "Loading weights"):
        assert bar not in ran.stdout + ran.stderr, ran.stderr


@pytest.mark.slow
def test_quiet_runs_tell_nothing(talkative: None, demo_run: Any) -> None:
    ran = demo_run("--recipe", "svd", "--verbosity", "ERROR", limit=4)
    assert ran.code == 0 and "so far" not in ran.err and ran.out.startswith("Model demo")
