"""One command with `svd-llm` at three budgets against three commands with one each, on a random Llama of six layers
made here.

The separate commands share a results folder, so that the second and third take the baseline from the first, as a user's
would. Processor seconds stand beside the wall clock, since other processes slow that down.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from harness_ext.demo import demo_path

pytestmark = pytest.mark.benchmark

BUDGETS = tuple(f"svd-llm:keep.param_fraction={share}" for share in (0.8, 0.6, 0.4))


class Taken(NamedTuple):
    """Wall and processor seconds."""

    wall: float
    cpu: float


def taken(folder: Path, model: Path, *recipes: str) -> Taken:
    arguments = (
        "run",
        "--model",
        "hf",
        "--tasks",
        "int_mult",
        "--device",
        "cpu",
        "--batch_size",
        "64",
        "--model_args",
        f"pretrained={model}",
        "--output_path",
        "out",
        "--recipe",
        *recipes,
    )
    folder.mkdir(exist_ok=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "harness_ext", *arguments], check=True, capture_output=True, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(time.perf_counter() - started, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def small_llama(folder: Path) -> Path:
    """Six layers, d 512, 19 million parameters, with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=6,
            num_attention_heads=8,
            tie_word_embeddings=True,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edits(folder: Path) -> dict[str, dict]:
    """The receipts of a folder's edited variants, by label."""
    found = [json.loads(path.read_text()) for path in folder.glob("out/*/*/receipt.json")]
    return {receipt["recipe"]["label"]: receipt for receipt in found if receipt["matrices"]}


def test_three_budgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_llama(tmp_path / "model")
    taken(tmp_path / "warm", model, "baseline")
    apart = [taken(tmp_path / "apart", model, budget) for budget in BUDGETS]
    together = taken(tmp_path / "together", model, *BUDGETS)
    one, each = edits(tmp_path / "together"), edits(tmp_path / "apart")
    assert {label: receipt["weights"] for label, receipt in one.items()} == {
        label: receipt["weights"] for label, receipt in each.items()
    }
    learning = [
        sum(receipt["seconds"]["calibrate"] + receipt["seconds"]["edit"] for receipt in receipts.values())
        for receipts in (each, one)
    ]
    wall, cpu = (sum(values) for values in zip(*apart, strict=True))
    with capsys.disabled():
        print(f"\nthree commands, a budget each        {wall:7.1f} s wall {cpu:7.1f} s processor")
        print(
            f"one command, three budgets           {together.wall:7.1f} s wall {together.cpu:7.1f} s processor  "
            f" {wall / together.wall:4.1f}x wall {cpu / together.cpu:4.1f}x processor"
        )
        print(
            f"of that, learning and editing        {learning[0]:7.1f} s and {learning[1]:.1f} s"
            f" {learning[0] / learning[1]:34.1f}x wall"
        )
        for label in BUDGETS:
            spent = one[label]["seconds"]
            print(
                f"  {label:<35} {spent['calibrate']:6.1f} s to learn {spent['edit']:6.1f} s to edit"
                f" {spent['evaluate']:6.1f} s to score"
            )
    assert together.cpu < cpu
    first, *others = (one[label]["seconds"]["calibrate"] + one[label]["seconds"]["edit"] for label in BUDGETS)
    assert max(others) < first / 2
