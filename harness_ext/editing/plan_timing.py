"""The seconds that some work takes, and the most bytes that its tensors hold at once: what a plan is measured by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

PATIENCE_SECONDS = 2.0
"""Work that may take longer than this is not begun again, nor on what is larger."""
MEASURED_SECONDS = 0.1
MOST_ATTEMPTS = 50


def timed(work: Callable[[], object], device: str, *, in_threads: bool = False) -> float:
    """The median of some, after one that makes things ready. in_threads: whether other threads do it."""
    first = seconds_of(work, device, in_threads=in_threads)
    if first > PATIENCE_SECONDS / 2:
        return first
    return settled(lambda: seconds_of(work, device, in_threads=in_threads), 3)


def settled(measure: Callable[[], float], least: int) -> float:
    """The median of as many seconds as there is patience for, `least` at least."""
    seconds: list[float] = []
    while len(seconds) < least or (len(seconds) < MOST_ATTEMPTS and sum(seconds) < MEASURED_SECONDS):
        seconds.append(measure())
    return median(seconds)


def seconds_of(work: Callable[[], object], device: str, *, in_threads: bool = False) -> float:
    """On a CPU those that this thread, or this process, computes: what else the machine does is none of them."""
    import torch

    on_card = device.startswith("cuda")
    clock = time.perf_counter if on_card else time.process_time if in_threads else time.thread_time
    started = clock()
    work()
    if on_card:
        torch.cuda.synchronize()
    return clock() - started


def live_bytes(work: Callable[[], object]) -> int:
    """The most bytes that tensors made while `work` runs held at once, with what decompositions hold inside
    (`_workspace`); what libraries hold else is not seen.
    """
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    held: dict[int, tuple[Any, int]] = {}
    peak = 0

    def storages(values: Any) -> list[Any]:
        found = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
        return [value.untyped_storage() for value in found if value.device.type != "meta"]

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            made = function(*args, **(kwargs or {}))
            for key in [key for key, (reference, _) in held.items() if reference.expired()]:
                del held[key]
            # What was there before, such as the model's weights, shows up again in views of it.
            given = {storage._cdata for storage in storages((args, kwargs))}
            for storage in storages(made):
                if storage._cdata not in given:
                    held.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
            peak = max(peak, sum(size for _, size in held.values()) + _workspace(str(function), args))
            return made

    with Watching():
        work()
    return peak


def _workspace(function: str, given: Sequence[Any]) -> int:
    """Bytes that LAPACK works in during a decomposition, by the least that its documentation asks for: `syevd` with
    vectors `1 + 6 n + 2 n^2` numbers, `gesdd` of the first vectors `4 k^2 + 7 k`, k the smaller side, and the copy of
    the matrix that it destroys. A solution by a Cholesky factor is worked out in copies of both.
    """
    if function.startswith("aten.cholesky_solve"):
        return sum(int(value.numel() * value.element_size()) for value in given[:2])
    if not function.startswith(("aten._linalg_eigh", "aten._linalg_svd")):
        return 0
    side = min(given[0].shape[-2:])
    numbers = 1 + 6 * side + 2 * side**2 if "eigh" in function else 7 * side + 4 * side**2 + given[0].numel()
    return int(numbers * given[0].element_size())
