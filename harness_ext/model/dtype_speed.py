"""Whether a processor computes in two-byte numbers much more slowly than in float32: those without instructions for
them convert each product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SLOW = 2.0
"""A dtype that takes as many times of what float32 takes is told of."""
_TOKENS, _WIDTH = 256, 512
_TIMES = 5


def slower_than_float32(dtype: torch.dtype, device: torch.device) -> float | None:
    """How many times of float32's seconds a product takes in this dtype on this device, measured in a fraction of a
    second; None on a GPU, and of a dtype that is none of two bytes. What else the machine does may hide a difference.
    """
    import torch

    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return None
    inputs, weight = torch.ones(_TOKENS, _WIDTH), torch.ones(_WIDTH, _WIDTH)

    def taken(kind: torch.dtype) -> float:
        one, other = inputs.to(kind), weight.to(kind)
        return min(_seconds(lambda: torch.nn.functional.linear(one, other)) for _ in range(_TIMES))

    with torch.inference_mode():
        return taken(dtype) / taken(torch.float32)


def _seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def advice(dtype: torch.dtype, device: torch.device) -> str | None:
    """What to tell a user whose processor is slow in this dtype; None where it is not."""
    times = slower_than_float32(dtype, device)
    if times is None or times < SLOW:
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"this processor takes {times:.1f} times as long in {name} as in float32: dtype=float32 in --model_args is"
        " quicker here; it takes twice the memory, and its scores are rounded differently"
    )
