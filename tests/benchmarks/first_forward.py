"""Run a command line and stop at the model's first forward pass; prints wall and processor seconds since the process
began.

    python first_forward.py lm_eval|harness_ext run --model hf ...

Nothing of the command is changed: a global hook of torch is registered when the first modelling module is about to
load.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from typing import Any

MAIN = {"lm_eval": ("lm_eval.__main__", "cli_evaluate"), "harness_ext": ("harness_ext.cli", "main")}


def seconds_since_start() -> float:
    """Wall time since the kernel made this process (Linux)."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def report_and_stop(module: Any, inputs: Any) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        "FIRST FORWARD " + json.dumps({"wall": seconds_since_start(), "cpu": usage.ru_utime + usage.ru_stime}),
        flush=True,
    )
    os._exit(0)


class HookBeforeModelling:
    """An import finder that finds nothing, but sees when transformers' modelling code begins to load."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.startswith("transformers.models.") and ".modeling_" in name:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            import torch

            torch.nn.modules.module.register_module_forward_pre_hook(report_and_stop)


if __name__ == "__main__":
    module, function = MAIN[sys.argv.pop(1)]
    sys.meta_path.insert(0, HookBeforeModelling())  # type: ignore[arg-type]
    getattr(importlib.import_module(module), function)()
