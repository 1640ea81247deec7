"""A baseline and three recipes in one command, against four separate runs of plain lm-eval; on the embedded model, in
one go, so that the ratio holds on a noisy machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness_ext.demo import demo_path
from harness_ext.lm_eval_adapter.task_index import tasks_root

pytestmark = pytest.mark.benchmark

COMMON = (
    "run",
    "--model",
    "hf",
    "--tasks",
    "int_mult,int_sum,pronoun_bias",
    "--device",
    "cpu",
    "--batch_size",
    "64",
    "--log_samples",
    "--output_path",
    "out",
)
RECIPES = ("laser", "svd", "eigenprune")


def seconds(folder: Path, module: str, *arguments: str) -> float:
    folder.mkdir(exist_ok=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - started


def test_a_baseline_and_three_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = [
        seconds(
            tmp_path / f"theirs{number}",
            "lm_eval",
            *COMMON,
            "--model_args",
            f"pretrained={demo_path()}",
            "--include_path",
            str(tasks_root()),
        )
        for number in range(1 + len(RECIPES))
    ]
    ours = [
        seconds(
            tmp_path / f"ours{number}", "harness_ext", *COMMON, "--model_args", "pretrained=demo", "--recipe", *RECIPES
        )
        for number in range(2)
    ]
    again = seconds(tmp_path / "ours1", "harness_ext", *COMMON, "--model_args", "pretrained=demo", "--recipe", *RECIPES)
    with capsys.disabled():
        print(f"\n{1 + len(RECIPES)} separate runs of lm-eval                        {sum(theirs):7.1f} s")
        print(
            f"baseline and {len(RECIPES)} recipes in one command, no index yet {ours[0]:7.1f} s  "
            f" {sum(theirs) / ours[0]:5.1f}x"
        )
        print(f"the same, with the task index                    {ours[1]:7.1f} s   {sum(theirs) / ours[1]:5.1f}x")
        print(f"the same command again, nothing left to do       {again:7.1f} s")
    assert ours[1] < sum(theirs)
