"""The GPUs of the machine that a sweep is started on. Found without torch."""

from __future__ import annotations

import os
import subprocess

DEVICES = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs that a process started here may use, as `CUDA_VISIBLE_DEVICES` names them; none without a driver."""
    if (given := os.environ.get(DEVICES)) is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    try:
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return told.stdout.split() if told.returncode == 0 else []
