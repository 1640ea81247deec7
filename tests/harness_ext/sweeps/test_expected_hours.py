"""Expected hours: by receipts of like runs, else roughly by sizes, else not at all; nothing is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness_ext.demo import demo_path
from harness_ext.sweeps.expected_hours import (
    CPU_RATE,
    GPU_RATE,
    TOKENS_OF_A_DOCUMENT,
    PastRun,
    Workload,
    hours_of,
    parameters_of,
)

KINDS = {"a": "TASK", "b": "TASK", "suite": "GROUP"}
NAMED = "org/Model-2B"


def past(seconds: float, parameters: float | None = 1e9, limit: float | None = 8, **scored: int) -> PastRun:
    return PastRun(seconds, parameters, scored, limit, True)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8e9),
        ("HuggingFaceTB/SmolLM2-135M", 135e6),
        ("mistralai/Mixtral-8x7B-v0.1", 56e9),
        ("org/model-0.5b", 5e8),
        ("org/phi-2", None),
        ("org/base", None),
        ("7B/model", None),
    ],
)
def test_a_size_by_the_name(
    name: str, parameters: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert parameters_of(name) == parameters


def write_safetensors(path: Path, shapes: Mapping[str, list[int]]) -> None:
    header, place = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(place))


def test_a_size_by_the_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    write_safetensors(tmp_path / "my-7B" / "model-1.safetensors", {"x": [3, 4], "y": [5, 1]})
    write_safetensors(tmp_path / "my-7B" / "model-2.safetensors", {"z": [2, 2]})
    assert parameters_of("my-7B") == 21
    kept = tmp_path / "hub" / "models--org--m" / "snapshots" / "abc"
    write_safetensors(kept / "model.safetensors", {"x": [3, 4]})
    assert parameters_of("org/m") == 12
    (kept / "model.safetensors").write_text("no safetensors file")
    assert parameters_of("org/m") is None
    from safetensors import safe_open

    with safe_open(demo_path() / "model.safetensors", framework="np") as file:
        numbers = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 - no mapping
    assert parameters_of("demo") == numbers


def test_receipts_of_like_runs_win() -> None:
    work = Workload(["a", "b"], 8, KINDS)
    runs = {
        NAMED: [past(3600, 2e9, a=8, b=8), past(1800, 2e9, a=8, b=8), past(9, 2e9, 1, a=1, b=1), past(7, 2e9, a=8)],
        "other": [past(1, 1e9, a=8, b=8)],
    }
    assert hours_of(NAMED, 4, work, runs) == (pytest.approx(4 * 0.75), "receipts")
    # A trial with a small limit tells nothing of a run over all documents, and a group may be any tasks.
    assert not Workload(["a", "b"], None, KINDS).is_of(runs[NAMED][2])
    assert Workload(["suite"], 8, KINDS).is_of(runs[NAMED][0])


def test_rough_by_another_model_and_by_size() -> None:
    work = Workload(["a"], 8, KINDS)
    assert hours_of(NAMED, 3, work, {"other": [past(1800, 1e9, a=8)]}) == (pytest.approx(3.0), "rough")
    # Nothing scored just these tasks: by the documents that are known of each, and a rate.
    runs = {"other": [past(1800, 1e9, a=6, b=8)]}
    for on_gpu, rate in ((True, GPU_RATE), (False, CPU_RATE)):
        work = Workload(["a"], 8, KINDS, on_gpu)
        seconds = 2 * 2e9 * TOKENS_OF_A_DOCUMENT * 6 / rate
        assert hours_of(NAMED, 3, work, runs) == (pytest.approx(3 * seconds / 3600), "rough")
    assert Workload(["a", "b"], 8, KINDS).documents([]) == 16


@pytest.mark.parametrize(
    ("model", "tasks", "limit"),
    [
        ("org/base", ["a"], 8),  # no size
        (NAMED, ["suite"], 8),  # how many tasks a group has is not looked up
        (NAMED, ["a"], None),
        (NAMED, ["a"], 0.5),
    ],
)
def test_nothing_is_known(
    model: str, tasks: list[str], limit: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert hours_of(model, 3, Workload(tasks, limit, KINDS), {}) == (None, None)


@pytest.mark.slow
def test_the_command_tells_what_it_knows_and_how(
    lm_eval: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from harness_ext.lm_eval_adapter.task_index import default_root, saved_rows

    saved_rows(default_root())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    text = "name: s\nmodels: [{pretrained: demo}, {pretrained: org/x}]\ntasks: [int_mult]\nrecipes: [laser]\n"
    (tmp_path / "sweep.yaml").write_text(text)
    said = lm_eval("sweep", "plan", "sweep.yaml")
    assert "hours are unknown" in said.out and "?" in said.out
    (tmp_path / "sweep.yaml").write_text(text + "run: {limit: 1000}\n")
    said = lm_eval("sweep", "plan", "sweep.yaml")
    assert "about" in said.out and "1 of 2 models are a rough estimate by size" in said.out
    assert "1 of 2 models are not known and not counted" in said.out
    rows = json.loads(lm_eval("sweep", "plan", "sweep.yaml", "--json").out)
    demo = parameters_of("demo")
    assert demo is not None
    hours = 2 * 2 * demo * TOKENS_OF_A_DOCUMENT * 1000 / CPU_RATE / 3600
    assert [row["hours_by"] for row in rows] == ["rough", None]
    assert rows[0]["hours"] == pytest.approx(hours, rel=0.05) and rows[1]["hours"] is None
