"""Runs scored by an inference engine, with a stand-in for it: what is written, reloaded, checked and refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness_ext.lm_eval_adapter import engines, running_engine
from tests.harness_ext.runs.outputs import receipts, samples
from tests.harness_ext.runs.stand_in_engine import StandInEngine


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[StandInEngine]]:
    """vLLM is there, and is the stand-in; its folders are the test's own."""
    monkeypatch.setattr(engines.Engine, "installed", True)
    monkeypatch.setattr(running_engine, "backend_class", lambda name: StandInEngine)
    monkeypatch.setattr(StandInEngine, "made", [])
    monkeypatch.setattr(StandInEngine, "faults", frozenset())
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "cache"))
    return StandInEngine


@pytest.fixture
def engine_run(lm_eval, stand_in):
    """A small run on the embedded model by the stand-in."""

    def run(*arguments: object, model_args: str = "pretrained=demo,dtype=float32", tasks: str = "int_mult"):
        given = ("--model", "vllm", "--model_args", model_args, "--tasks", tasks, "--limit", 12, "--batch_size", 16)
        return lm_eval("run", *given, *arguments)

    return run


def answers(root: Path, label: str) -> list[Any]:
    return [sample["resps"] for sample in samples(root, label, "int_mult")]


def test_one_engine_scores_all_variants_as_the_backend_that_edits_does(
    engine_run, demo_run, stand_in, tmp_path: Path
) -> None:
    ran = engine_run("--recipe", "laser", "--control", "random-subspace", "--control", "identity")
    assert ran.code == 0, ran.err
    (engine,) = stand_in.made
    assert "one engine scores all variants" in ran.err and "answered 2 documents as before" in ran.err
    found = receipts(tmp_path)
    assert set(found) == {"baseline", "laser", "laser+random-subspace", "laser+identity"}
    ours = {label: answers(tmp_path, label) for label in found}
    assert ours["laser"] != ours["baseline"] != ours["laser+random-subspace"] and "scores as the baseline" in ran.err
    for receipt in found.values():
        assert receipt["model"]["backend"] == "vllm" and "engine" in receipt["settings"]
        assert receipt["totals"]["tokens_per_second_after"] and receipt["totals"]["tokens_per_second_before"]
    assert engine.arguments["pretrained"].endswith("demo/model") or "demo" in engine.arguments["pretrained"]

    theirs = demo_run("--recipe", "laser", "--control", "random-subspace", "--control", "identity", limit=12)
    assert theirs.code == 0 and theirs.err.count("kept from") == 0, "runs of another engine are other runs"
    by_hf = {
        path.name.rpartition("-")[0]: path
        for path in (tmp_path / "results" / "demo").iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }
    assert len(list((tmp_path / "results" / "demo").glob("[!.]*"))) == 8 and by_hf
