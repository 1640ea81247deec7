"""Two processes of one command, started as a launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SECONDS = 240
"""For a launch on a busy machine; none hangs."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)
"""On a CPU too: with --cpu accelerate starts one process alone, whatever number it is given."""


class Ended(NamedTuple):
    """codes: of each process. said: standard output and error together. apart: seconds between the first to end and the
    last.
    """

    codes: list[int]
    said: str
    apart: float


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def two_ranks(arguments: Sequence[str], more: Mapping[str, str] | None = None) -> list[subprocess.Popen[str]]:
    """Two ranks of `python ARGUMENTS` without a launcher, which would end the other where one ends."""
    together = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **together, **(more or {}), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def ended(processes: Sequence[subprocess.Popen[str]]) -> Ended:
    """Wait for all of them."""
    until = time.monotonic() + SECONDS
    ends: dict[int, float] = {}
    try:
        while len(ends) < len(processes) and time.monotonic() < until:
            for process in processes:
                if process.poll() is not None:
                    ends.setdefault(process.pid, time.monotonic())
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    said = "".join(process.communicate()[0] for process in processes)
    assert len(ends) == len(processes), f"some did not end: {said}"
    return Ended([process.returncode for process in processes], said, max(ends.values()) - min(ends.values()))


def torchrun(*arguments: str, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Two ranks by torchrun."""
    return _launched(TORCHRUN, arguments, more)


def accelerate(*arguments: str, launcher: Sequence[str] = ACCELERATE) -> subprocess.CompletedProcess[str]:
    """Two ranks by `accelerate launch`."""
    return _launched(launcher, arguments)


def _launched(
    launcher: Sequence[str], arguments: Sequence[str], more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        env={**os.environ, **(more or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=SECONDS,
    )
