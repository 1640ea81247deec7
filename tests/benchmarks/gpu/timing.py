"""Seconds, bytes and the floor: the least that any implementation must spend on the same device in the same minutes."""

from __future__ import annotations

import ctypes
import re
import resource
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

GIB = 2**30


class TimeUp(BaseException):
    """A measurement took longer than it may; no handler of ordinary errors must swallow it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeUp in this block after so many seconds, between two operations of Python."""

    rung = False

    def ring(*_: object) -> None:
        nonlocal rung
        rung = True
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    # Again after a minute: what is raised where Python ignores errors, in a finaliser, is lost.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 60)
    try:
        yield
    except Exception as error:
        # Some libraries turn whatever is raised in a callback into an error of their own.
        if rung:
            raise TimeUp from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clock(device: torch.device) -> float:
    """Seconds of the wall on a GPU; on a CPU of the processor, which others at work change less."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, work: Callable[[], Any], repeats: int = 1) -> float:
    """The median of the seconds that some work takes, the device's part included."""
    taken = []
    for _ in range(repeats):
        settle(device)
        started = clock(device)
        work()
        settle(device)
        taken.append(clock(device) - started)
    return statistics.median(taken)


class Peak:
    """The memory in use at most, in bytes more than at the beginning: of the GPU as PyTorch allocates it, or resident
    in RAM.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            with suppress(OSError, AttributeError):  # what is free goes back, and the kernel forgets the peak of before
                ctypes.CDLL("libc.so.6").malloc_trim(0)
                Path("/proc/self/clear_refs").write_text("5")
            self._before = _resident("VmRSS")

    def more(self) -> int:
        """Bytes more than at the beginning, at most so far."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return max(0, _resident("VmHWM") - self._before)


def _resident(what: str) -> int:
    try:
        found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


class Floor:
    """The parts of the floor, each measured once. model: whose documents a pass goes through, `[b, t]` tokens each."""

    def __init__(self, model: Any, batches: list[torch.Tensor]) -> None:
        self.model, self._batches = model, batches
        self._device: torch.device = model.device
        self.eigenvectors = cache(self._eigenvectors)
        self.passes = cache(self._pass)
        self.rate = cache(self._copy_rate)

    def _eigenvectors(self, rows: int, columns: int) -> float:
        """Seconds of a Gram matrix of the smaller side and its eigenvectors, in fp64."""
        weight = torch.randn(rows, columns, device=self._device)

        def decompose() -> None:
            wide = (weight if rows <= columns else weight.T).double()
            torch.linalg.eigh(wide @ wide.T)

        decompose()  # the library sets itself up
        return seconds(self._device, decompose, 3)

    def _pass(self, gradients: bool) -> float:
        """Seconds of one pass over the documents, without the head; with gradients, with the head, there and back."""

        def forward() -> None:
            for tokens in self._batches:
                if gradients:
                    self.model(input_ids=tokens, labels=tokens).loss.backward()
                    self.model.zero_grad(set_to_none=True)
                else:
                    with torch.inference_mode():
                        self.model.model(input_ids=tokens, use_cache=False)

        forward()
        return seconds(self._device, forward, 2)

    def _copy_rate(self) -> float:
        """Bytes a second from the device to memory that is locked for it; within RAM where there is no device."""
        size = 2**28 if self._device.type == "cuda" else 2**24
        source = torch.empty(size, dtype=torch.uint8, device=self._device)
        target = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        target.copy_(source)
        return size / seconds(self._device, lambda: target.copy_(source), 5)
