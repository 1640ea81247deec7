"""How long it takes until something happens: our command against lm-eval's, on this machine as it is.

Printed, with little asserted: other processes slow a wall-clock time down, so the processor time stands beside it. Each
figure is the least of several runs, after one that is not counted (file caches, byte code, the task index).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from harness_ext.demo import demo_path
from harness_ext.lm_eval_adapter.task_index import tasks_root

pytestmark = pytest.mark.benchmark

REPEATS = 3
RUN = ("run", "--model", "hf", "--tasks", "int_mult", "--device", "cpu", "--batch_size", "64")
THEIRS = (*RUN, "--model_args", f"pretrained={demo_path()}", "--include_path", str(tasks_root()))
OURS = (*RUN, "--model_args", "pretrained=demo")


class Seconds(NamedTuple):
    """Wall and processor seconds."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:6.2f} s wall {self.cpu:6.2f} s processor"


def least(values: list[Seconds]) -> Seconds:
    return Seconds(min(value.wall for value in values), min(value.cpu for value in values))


def first_forward(module: str, arguments: tuple[str, ...], folder: Path) -> Seconds:
    """From the start of the process to the first forward pass."""
    script = Path(__file__).with_name("first_forward.py")
    done = subprocess.run(
        [sys.executable, script, module, *arguments], capture_output=True, text=True, check=True, cwd=folder
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FIRST FORWARD ")]
    return Seconds(**json.loads(line.removeprefix("FIRST FORWARD ")))


def whole_command(module: str, arguments: tuple[str, ...], folder: Path) -> Seconds:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, check=True, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(time.perf_counter() - start, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def test_startup(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "cache"))
    rows: dict[str, Seconds] = {}

    def measure(name: str, measured, module: str, arguments: tuple[str, ...], repeats: int = REPEATS) -> None:
        folders = [tmp_path / f"{name}-{number}" for number in range(repeats + 1)]
        for folder in folders:
            folder.mkdir()
        values = [measured(module, arguments, folder) for folder in folders]
        rows[name] = least(values[1:])
        if name == "to first forward, ours without --recipe":
            rows["to first forward, ours, very first start (makes the index)"] = values[0]

    measure("--help, lm-eval", whole_command, "lm_eval", ("--help",))
    measure("--help, ours", whole_command, "harness_ext", ("--help",))
    measure("recipes, ours", whole_command, "harness_ext", ("recipes",))
    measure("to first forward, lm-eval", first_forward, "lm_eval", THEIRS, repeats=2)
    measure("to first forward, ours without --recipe", first_forward, "harness_ext", OURS)
    measure("to first forward, ours with --recipe laser", first_forward, "harness_ext", (*OURS, "--recipe", "laser"))

    with capsys.disabled():
        print(
            f"\n\nStart-up, least of {REPEATS}; load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()}"
            " cores"
        )
        for name, seconds in rows.items():
            print(f"  {name:<62}{seconds}")
    assert rows["to first forward, ours with --recipe laser"].cpu < rows["to first forward, lm-eval"].cpu / 2
