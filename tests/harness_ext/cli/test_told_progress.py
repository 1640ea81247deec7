"""Every kind of long work of a run tells how far it is: with no time between lines, each has its own."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness_ext import progress


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)


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
    assert "so far" not in ran.out and "it/s" not in ran.err


def test_quiet_runs_tell_nothing(talkative: None, demo_run: Any) -> None:
    ran = demo_run("--recipe", "svd", "--verbosity", "ERROR", limit=4)
    assert ran.code == 0 and "so far" not in ran.err and ran.out.startswith("Model demo")
