"""Runs scored by an inference engine, with a stand-in for it: what is written, reloaded, checked and refused."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter import engines, running_engine
from harness_ext.runs import engine_scoring
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


@pytest.mark.slow
def test_one_engine_scores_all_variants_as_the_backend_that_edits_does(
    engine_run, demo_run, stand_in, tmp_path: Path
) -> None:
    ran = engine_run("--recipe", "laser", "--control", "random-subspace", "--control", "identity")
    assert ran.code == 0, ran.err
    (engine,) = stand_in.made
    assert "one engine scores all variants" in ran.err and "answered 9 documents as before" in ran.err
    found = receipts(tmp_path)
    assert set(found) == {"baseline", "laser", "laser+random-subspace", "laser+identity"}
    ours = {label: answers(tmp_path, label) for label in found}
    assert ours["laser"] != ours["baseline"] != ours["laser+random-subspace"] and "scores as the baseline" in ran.err
    for receipt in found.values():
        assert receipt["model"]["backend"] == "vllm" and "engine" in receipt["settings"]
        assert receipt["totals"]["tokens_per_second_after"] and receipt["totals"]["tokens_per_second_before"]
    assert Path(engine.arguments["pretrained"], "config.json").is_file() and len(engine.copies.reloaded) >= 5

    theirs = demo_run("--recipe", "laser", "--control", "random-subspace", "--control", "identity", limit=12)
    assert theirs.code == 0 and theirs.err.count("kept from") == 0, "runs of another engine are other runs"
    folders = list((tmp_path / "results" / "demo").glob("[!.]*"))
    assert len(folders) == 8
    by_engine: dict[str, dict[str, Any]] = {"hf": {}, "vllm": {}}
    for folder in folders:
        receipt = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
        (scored,) = folder.glob("samples_*.jsonl")
        lines = [json.loads(line) for line in scored.read_text(encoding="utf-8").splitlines()]
        resps = [line["resps"] for line in lines]
        by_engine[receipt["model"]["backend"]][receipt["recipe"]["label"]] = (resps, receipt["matrices"])
    for label, (resps, matrices) in by_engine["vllm"].items():
        theirs_resps, theirs_matrices = by_engine["hf"][label]
        assert resps == theirs_resps, label
        assert [row["digest_after"] for row in matrices] == [row["digest_after"] for row in theirs_matrices]
    again = engine_run("--recipe", "laser", "--control", "random-subspace", "--control", "identity")
    assert again.err.count("kept from") == 4 and len(stand_in.made) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("drifts", "the original weights, loaded again, answer 9 documents differently"),
        ("does nothing", "loading other weights changed no answer"),
        ("raises", "it did not load other weights (reload_weights is not for this model)"),
        ("keeps its cache", "it did not forget what it had computed with other weights"),
    ],
)
def test_an_engine_that_does_not_reload_exactly_is_made_anew(
    engine_run, stand_in, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, words: str
) -> None:
    monkeypatch.setattr(stand_in, "faults", frozenset({fault}))
    ran = engine_run("--recipe", "laser", "--control", "random-subspace")
    assert ran.code == 0, ran.err
    assert f"vllm: {words}" in ran.err and "so that each variant gets an engine of its own" in ran.err
    original, *others = (engine.arguments for engine in stand_in.made)
    assert len({engine["pretrained"] for engine in others}) == 2
    assert {engine["tokenizer"] for engine in others} == {original["pretrained"]}
    assert answers(tmp_path, "laser") != answers(tmp_path, "baseline")


@pytest.mark.slow
def test_the_original_weights_loaded_again_are_of_the_revision_that_was_asked_for(
    engine_run, stand_in, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """vLLM forgets the revision as it reloads; the main one of this repository has other weights."""
    repository = tmp_path / "hub" / "models--org--model"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository.parent))
    monkeypatch.setenv("HF_HUB_CACHE", str(repository.parent))
    (repository / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("step8", "b" * 40)):
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(demo_path(), repository / "snapshots" / commit)
    weights = repository / "snapshots" / ("a" * 40) / "model.safetensors"
    others = {name: value * 0.5 for name, value in load_file(weights).items()}
    weights.unlink()
    save_file(others, weights, {"format": "pt"})

    ran = engine_run("--recipe", "laser", model_args="pretrained=org/model,revision=step8,dtype=float32")
    assert ran.code == 0, ran.err
    assert "one engine scores all variants" in ran.err and len(stand_in.made) == 1


@pytest.mark.slow
def test_copies_of_the_engine_are_given_the_folder(
    engine_run, stand_in, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines.Engine, "for_cpu", True)
    ran = engine_run("--recipe", "laser", model_args="pretrained=demo,dtype=float32,data_parallel_size=2,seed=7")
    assert ran.code == 0, ran.err
    original, edited = (engine.arguments for engine in stand_in.made)
    assert original["pretrained"] != edited["pretrained"] and original["seed"] == edited["seed"] == 7
    assert answers(tmp_path, "laser") != answers(tmp_path, "baseline")
    assert "engine of its own" not in ran.err


@pytest.mark.slow
def test_the_model_that_edits_is_gone_before_the_engine_starts(engine_run, monkeypatch: pytest.MonkeyPatch) -> None:
    edited: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    free, start = engine_scoring.EngineSession._free_model, StandInEngine.__init__

    def freeing(session: engine_scoring.EngineSession) -> None:
        edited.append(weakref.ref(session.lm.model))
        free(session)

    def starting(self: StandInEngine, *args: Any, **kwargs: Any) -> None:
        alive.append(edited[0]() is not None)
        start(self, *args, **kwargs)

    monkeypatch.setattr(engine_scoring.EngineSession, "_free_model", freeing)
    monkeypatch.setattr(StandInEngine, "__init__", starting)
    assert engine_run("--recipe", "laser").code == 0
    assert alive == [False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("pretrained=demo,quantization=fp8", "quantization=fp8 packs the weights"),
        ("pretrained=demo,lora_local_path=/x", "merge it into the model"),
        ("pretrained=demo,load_format=dummy", "load_format=dummy loads other weights"),
        ("pretrained=demo,tensor_parallel_size=512", "tensor_parallel_size=512 takes 512 GPUs, and there"),
        ("pretrained=demo,gpu_memory_utilization=90", "gpu_memory_utilization=90 must be a number from 0 to 1"),
        ("pretrained=demo,dtype=int8", "dtype=int8 is no dtype"),
        ("dtype=float32", "no model given"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_loaded(
    engine_run, stand_in, arguments: str, words: str
) -> None:
    ran = engine_run("--recipe", "laser", model_args=arguments)
    assert ran.code == 2 and words in ran.err and not stand_in.made


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_an_engine_that_is_not_installed(lm_eval, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(engines.Engine, "installed", False)
    ran = lm_eval("run", "--model", name, "--model_args", "pretrained=demo", "--tasks", "int_mult", "--recipe", "laser")
    assert ran.code == 2 and f"pip install 'lm-eval-recipes[{name}]'" in ran.err


def test_weights_that_no_gpu_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))
    vllm = engines.ENGINES["vllm"]
    engines.check_memory(vllm, {"tensor_parallel_size": 2}, 140 << 30)
    with pytest.raises(
        UserError, match=r"140\.0 GiB, 140\.0 a GPU, and a GPU here has 80\.0: .*tensor_parallel_size=N"
    ):
        engines.check_memory(vllm, {"data_parallel_size": 2}, 140 << 30)


def test_arguments_of_the_model_that_edits() -> None:
    asked = {"pretrained": "M", "revision": "r", "max_model_len": 64, "gpu_memory_utilization": 0.8, "tokenizer": "T"}
    edits = engines.editing_arguments(engines.ENGINES["vllm"], asked)
    assert edits == {"pretrained": "M", "revision": "r", "tokenizer": "T", "max_length": 64}
    assert engines.serving_arguments(engines.ENGINES["vllm"], asked, None) == asked
    served = engines.serving_arguments(engines.ENGINES["vllm"], asked, "F")
    assert served == {"pretrained": "F", "max_model_len": 64, "gpu_memory_utilization": 0.8, "tokenizer": "T"}


@pytest.mark.parametrize(
    ("name", "pretrained", "start_token"),
    [("sglang", "google/Gemma-2-2b", True), ("sglang", "Qwen/Qwen3-8B", None), ("vllm", "google/gemma-2-2b", None)],
)
def test_an_edited_model_reads_the_start_token_that_the_original_reads(
    name: str, pretrained: str, start_token: bool | None
) -> None:
    """lm-eval's class of sglang decides by the name of what it loads, and a folder is named by a digest."""
    served = engines.serving_arguments(engines.ENGINES[name], {"pretrained": pretrained}, "folder")
    assert served.get("add_bos_token") is start_token


def test_lm_evals_classes_decide_by_a_models_name_where_we_say_so() -> None:
    for name, module in (("vllm", "vllm_causallms"), ("sglang", "sglang_causallms")):
        found = importlib.util.find_spec(f"lm_eval.models.{module}")
        assert found is not None and found.origin is not None
        lowered = re.findall(r'"(\w+)" in pretrained\.lower\(\)', Path(found.origin).read_text(encoding="utf-8"))
        word = engines.ENGINES[name].start_token_by_name
        assert lowered == ([] if word is None else [word])


# Commands that are killed


KILLED = """
import os, signal, sys
from harness_ext.cli import main
from harness_ext.lm_eval_adapter import engines, running_engine
from harness_ext.runs import engine_scoring, export
from tests.harness_ext.runs.stand_in_engine import StandInEngine

engines.Engine.installed = True
running_engine.backend_class = lambda name: StandInEngine
where, call, *sys.argv[1:] = sys.argv[1:]
owner = {"save": export, "_scored": engine_scoring.EngineSession}[where]
work, calls = getattr(owner, where), []

def killing(*arguments):
    calls.append(where)
    result = work(*arguments)
    if len(calls) == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, where, killing)
main()
"""
RECIPES = ("--recipe", "laser", "--control", "random-subspace")


def undisturbed(receipt: dict[str, Any]) -> dict[str, Any]:
    """What a receipt says but for times, speeds, and what the command was called."""
    matrices = [{**matrix, "seconds": 0} for matrix in receipt["matrices"]]
    timely = {"started", "finished", "seconds", "speed", "files", "command", "matrices", "totals"}
    totals = {name: value for name, value in receipt["totals"].items() if "per_second" not in name}
    return {name: receipt[name] for name in receipt.keys() - timely} | {"matrices": matrices, "totals": totals}


def all_of(root: Path) -> dict[str, Any]:
    """Receipt and answers of every variant, by label."""
    return {label: (undisturbed(receipt), answers(root, label)) for label, receipt in receipts(root).items()}


@pytest.mark.slow
def test_what_an_ended_command_has_edited_is_not_edited_again(
    engine_run, stand_in, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as ending:
        ending.setattr(engine_scoring.EngineSession, "_scored", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert engine_run(*RECIPES).code != 0
    assert not receipts(tmp_path) and len(list(tmp_path.glob("results/demo/.*.work"))) == 3
    kept = sorted(tmp_path.glob("cache/weights/*"))
    with monkeypatch.context() as again:
        again.setattr(engine_scoring.EngineSession, "_edit", lambda *_: pytest.fail("it is edited"))
        ran = engine_run(*RECIPES)
    assert ran.code == 0 and ran.err.count("an earlier command has edited it") == 2, ran.err
    assert not list(tmp_path.glob("results/demo/.*")) and sorted(tmp_path.glob("cache/weights/*")) == kept
    found = all_of(tmp_path)
    shutil.rmtree(tmp_path / "results")
    assert engine_run(*RECIPES).code == 0
    assert all_of(tmp_path) == found and set(found) == {"baseline", "laser", "laser+random-subspace"}


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["the weights", "the record"])
def test_an_edit_of_which_something_is_lost_is_made_anew(
    engine_run, stand_in, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: str
) -> None:
    with monkeypatch.context() as ending:
        ending.setattr(engine_scoring.EngineSession, "_scored", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert engine_run("--recipe", "laser").code != 0
    (weights,) = tmp_path.glob("cache/weights/*")
    (record,) = tmp_path.glob("results/demo/.laser*.work/edited.jsonl")
    if lost == "the weights":
        (weights / "model.safetensors").write_bytes(b"half")
    else:
        record.write_text(record.read_text().replace(f'"{weights.name}"', '"../elsewhere"'))
    ran = engine_run("--recipe", "laser")
    assert ran.code == 0 and "has edited it" not in ran.err, ran.err
    assert set(receipts(tmp_path)) == {"baseline", "laser"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "call", "edited", "scored"),
    [("save", 2, 1, 0), ("_scored", 1, 2, 1), ("_scored", 2, 1, 2)],
    ids=["as the second folder is written", "after one score", "after two scores"],
)
def test_a_killed_command_goes_on_as_if_it_had_not_been(
    engine_run, stand_in, tmp_path: Path, where: str, call: int, edited: int, scored: int
) -> None:
    wanted = ("run", "--model", "vllm", "--model_args", "pretrained=demo,dtype=float32", "--tasks", "int_mult",
              "--limit", "12", "--batch_size", "16", *RECIPES)  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, where, str(call), *wanted],
        check=False, capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    before = all_of(tmp_path)
    assert len(before) == scored
    ran = engine_run(*RECIPES)
    assert ran.code == 0 and ran.err.count("kept from") == scored, ran.err
    assert ran.err.count("an earlier command has edited it") == edited
    found = all_of(tmp_path)
    assert before.items() <= found.items() and not list(tmp_path.glob("results/demo/.*"))

    made_old = time.time() - 3600
    for path in tmp_path.glob("cache/weights/.*"):
        os.utime(path, (made_old, made_old))
    shutil.rmtree(tmp_path / "results")
    assert engine_run(*RECIPES).code == 0
    assert all_of(tmp_path) == found and len(found) == 3
    assert len(list(tmp_path.glob("cache/weights/*"))) == 2 and not list(tmp_path.glob("cache/weights/.*"))
