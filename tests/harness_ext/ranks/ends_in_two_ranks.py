"""One of two ranks fails or is killed while the other waits for it or computes: run by a test in two processes."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from harness_ext.cli.together import together
from harness_ext.errors import UserError
from harness_ext.ranks.group import current


def fail(how: str) -> None:
    if how == "mistake":
        raise UserError("a mistake in one place")
    if how == "bug":
        raise KeyError("a bug in one place")
    if how == "runtime":
        raise RuntimeError("an error of the runtime")
    if how == "exit":
        sys.exit(7)
    os.kill(os.getpid(), signal.SIGTERM if how == "term" else signal.SIGKILL)
    time.sleep(60)


def wait(how: str) -> None:
    if how == "message":
        current().exchange("answers")
    elif how == "collective":
        torch.distributed.all_reduce(torch.zeros(4))
    else:
        time.sleep(60)


def watch_the_end() -> None:
    """Abort where the process is taken down, as threads of messages may; what Python is to do at exit is done."""
    libc = ctypes.CDLL(None)
    libc.__cxa_atexit(libc.abort, None, None)
    atexit.register(Path(tempfile.gettempdir(), f"cleaned-{os.environ['RANK']}").touch)


def main() -> None:
    how, waiting, rank = sys.argv[1:]
    with together():
        print(f"rank {current().rank} prints", flush=True)
        if how != "nothing":
            watch_the_end()
        if how == "both":
            raise UserError("the same mistake")
        if how != "nothing":
            current().exchange("begun")
            fail(how) if current().rank == int(rank) else wait(waiting)


main()
