"""Where a run is made: what its receipt says, and which runs made elsewhere a command takes for its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness_ext.errors import UserError
from harness_ext.ranks.group import Group
from harness_ext.ranks.launch import Launch
from harness_ext.runs import ran_on
from harness_ext.runs.ran_on import Here, gathered, here, sweep_name

A100, H100 = "NVIDIA A100", "NVIDIA H100"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the next commands run on a host with such a GPU, none if None."""

    def move(gpu: str | None, host: str = "node1") -> None:
        gpus = [gpu] if gpu else []
        monkeypatch.setattr(ran_on, "here", lambda harness: Here("hf", frozenset(gpus)))
        monkeypatch.setattr(ran_on, "_gpus_of", lambda lm: gpus)
        monkeypatch.setattr(ran_on, "driver", lambda: "570.1")
        monkeypatch.setattr(ran_on.platform, "node", lambda: host)

    return move


def folders(root: Path, label: str) -> list[str]:
    return sorted(path.parent.name for path in root.glob(f"results/demo/{label}-*/receipt.json"))


@pytest.mark.slow
def test_a_run_of_another_gpu_is_made_anew_beside_it(
    demo_run: Any, lm_eval: Any, at: Callable[..., None], tmp_path: Path
) -> None:
    at(A100)
    assert demo_run("--recipe", "svd").code == 0
    (first,) = folders(tmp_path, "baseline")
    assert first.endswith("-NVIDIA_A100")

    at(A100, host="node2")
    again = demo_run("--recipe", "svd")
    assert "baseline: kept from" in again.err and "svd: kept from" in again.err and "made on" not in again.err

    at(H100)
    elsewhere = demo_run("--recipe", "svd")
    assert "kept from" not in elsewhere.err
    for label in ("baseline", "svd"):
        assert (
            f"{label}: the run in results/demo/{folders(tmp_path, label)[0]} was made on {A100} by hf" in elsewhere.err
        )
        assert [name.rpartition("-")[2] for name in folders(tmp_path, label)] == ["NVIDIA_A100", "NVIDIA_H100"]
    assert "incomparable" not in elsewhere.out

    assert demo_run("--recipe", "svd").err.count("kept from") == 2
    at(None)
    without = demo_run("--recipe", "svd")
    assert without.err.count("kept from") == 2 and f"it was made on {A100}, this is a CPU by hf" in without.err

    listed = json.loads(lm_eval("runs", "list", "--gpu", "h100", "--json").out)
    assert {run["gpu"] for run in listed} == {H100} and {run["host"] for run in listed} == {"node1"}
    assert "holds no runs with --gpu B200" in lm_eval("runs", "list", "--gpu", "B200").err
    shown = lm_eval("show", listed[0]["run_id"])
    assert f"made on   node1, {H100} (driver 570.1), hf" in shown.out


@pytest.mark.slow
def test_a_run_of_another_engine_that_lies_in_the_way_stays(
    demo_run: Any, at: Callable[..., None], tmp_path: Path
) -> None:
    at(None)
    assert demo_run("--recipe", "baseline").code == 0
    (path,) = tmp_path.glob("results/demo/baseline-*/receipt.json")
    receipt = json.loads(path.read_text())
    receipt["ran_on"]["engine"] = "vllm"
    path.write_text(json.dumps(receipt))
    ran = demo_run("--recipe", "baseline")
    assert "was made on a CPU by vllm" in ran.err
    assert folders(tmp_path, "baseline") == [path.parent.name, f"{path.parent.name}-hf"]
    assert json.loads(path.read_text()) == receipt


@pytest.mark.slow
def test_a_receipt_without_a_place_is_kept(demo_run: Any, at: Callable[..., None], tmp_path: Path) -> None:
    at(A100)
    assert demo_run("--recipe", "baseline").code == 0
    (path,) = tmp_path.glob("results/demo/baseline-*/receipt.json")
    for said in ("nowhere", {"gpus": 3}, None):
        receipt = json.loads(path.read_text()) | {"ran_on": said}
        path.write_text(json.dumps(receipt))
        at(H100)
        assert "baseline: kept from" in demo_run("--recipe", "baseline").err


@pytest.mark.slow
def test_the_sweep_is_in_the_receipt(
    demo_run: Any, lm_eval: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LM_EVAL_SWEEP", "low-rank")
    monkeypatch.setenv("LM_EVAL_SWEEP_CELL", "demo-3")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert demo_run("--recipe", "baseline").code == 0
    (path,) = tmp_path.glob("results/demo/baseline-*/receipt.json")
    said = json.loads(path.read_text())["ran_on"]
    assert (said["sweep"], said["cell"], said["ranks"], said["engine"]) == ("low-rank", "demo-3", 1, "hf")
    assert said["engine_version"] == json.loads(path.read_text())["versions"]["transformers"]
    (run,) = json.loads(lm_eval("runs", "list", "--sweep", "low-rank", "--json").out)
    assert run["sweep_cell"] == "demo-3"
    assert json.loads(lm_eval("runs", "list", "--sweep", "low", "--json").out or "[]") == []


@pytest.mark.parametrize("text", ["x" * 101, "a\nb", "\x1b[31mred"])
def test_a_name_of_a_sweep_is_short_and_printable(
    demo_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv("LM_EVAL_SWEEP_CELL", text)
    with pytest.raises(UserError, match="LM_EVAL_SWEEP_CELL must be at most 100 printable characters"):
        sweep_name("LM_EVAL_SWEEP_CELL")
    assert demo_run("--recipe", "baseline").code == 2 and not list(tmp_path.glob("results/demo/*"))


@pytest.mark.parametrize(
    ("said", "gpus", "where"),
    [
        ({"engine": "hf", "gpus": [A100]}, {A100}, None),
        ({"engine": "hf", "gpus": [A100]}, {A100, H100}, None),
        ({"engine": "hf", "gpus": [A100, H100]}, {A100}, "NVIDIA A100, NVIDIA H100 by hf"),
        ({"engine": "hf", "gpus": [A100]}, set(), None),
        ({"engine": "hf", "gpus": []}, {A100}, "a CPU by hf"),
        ({"engine": "hf", "gpus": []}, set(), None),
        ({"engine": "vllm", "gpus": [A100]}, {A100}, "NVIDIA A100 by vllm"),
        (None, {A100}, None),
    ],
)
def test_which_receipts_are_of_another_place(said: Any, gpus: set[str], where: str | None) -> None:
    assert Here("hf", frozenset(gpus)).is_not_of({"ran_on": said}) == where


def test_a_device_that_hides_its_gpu_may_be_of_this_place() -> None:
    receipt = {"ran_on": {"engine": "hf", "gpus": []}, "model": {"device": "cuda:0"}}
    assert Here("hf", frozenset({A100})).is_not_of(receipt) is None


def harness(device: str | None, model: str = "hf", **model_args: Any) -> Any:
    return SimpleNamespace(device=device, model=model, model_args=model_args)


def test_the_gpus_that_a_device_means(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [A100, H100]
    monkeypatch.setattr(ran_on, "_may_have_gpus", lambda: True)
    monkeypatch.setattr(ran_on, "_names", lambda places: there if places is None else [there[p] for p in places])
    assert here(harness("cuda:1")) == Here("hf", frozenset({H100}))
    assert here(harness(None, "vllm")) == Here("vllm", frozenset(there))
    assert here(harness("cuda:1", parallelize=True)).gpus == frozenset(there)
    assert here(harness("cpu")).gpus == frozenset() == here(harness("mps")).gpus


def test_engine_and_gpus_of_a_model_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ran_on, "_may_have_gpus", lambda: True)
    monkeypatch.setattr(ran_on, "_names", lambda places: [f"GPU {place}" for place in places])
    engine = type("Engine", (), {"tensor_parallel_size": 2, "data_parallel_size": 2})
    engine.__module__ = "lm_eval.models.vllm_causallms"
    found = gathered(type("Editable", (engine,), {})())
    assert (found.engine, found.gpus) == ("vllm", ["GPU 0", "GPU 1", "GPU 2", "GPU 3"])
    devices = [SimpleNamespace(device=torch.device("cuda", index)) for index in (1, 0, 1)]
    model = SimpleNamespace(model=SimpleNamespace(parameters=lambda: devices))
    assert gathered(model).gpus == ["GPU 0", "GPU 1"] and gathered(model).engine is None
    monkeypatch.setattr(ran_on, "current", lambda: Group(Launch(0, 4)))
    assert gathered(model).gpus == [f"GPU {place}" for place in range(4)] and gathered(model).ranks == 4


def test_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(ran_on, "_DRIVER_FILE", file)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="570.2\n570.2\n"))
    assert ran_on.driver() == "570.2"
    file.write_text("570.1\n")
    assert ran_on.driver() == "570.1"
    file.unlink()

    def gone(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", gone)
    assert ran_on.driver() is None
