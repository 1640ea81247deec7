"""Which decomposition is tried first, by the device that computes it.

A Gram matrix in fp32 loses what lies far below the largest component, and then all has to be done again in fp64. Where
fp64 costs about what fp32 costs, fp64 comes at once: on the data-centre GPUs of `_FULL_RATE`, which compute it at half
the rate of fp32 or better, and where eigenvectors take as long in either (on an H200, 0.11 s for 4096 rows). Other
GPUs compute it at 1/32 or 1/64 of the rate, CPUs at half.

The order depends on the device and the matrix alone, so that an edit is the same whatever a cache holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, device

SVD = "svd"
GRAM_FP32 = "gram_fp32"
GRAM_FP64 = "gram_fp64"

_FULL_RATE = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})
"""Compute capabilities of P100, V100, A100, H100 and H200, B200 (CUDA programming guide, arithmetic instructions)."""
_FULL_RATE_AMD = ("gfx908", "gfx90a", "gfx942", "gfx950")
"""Instinct MI100, MI200, MI300, MI350."""


def full_rate_fp64(on: device) -> bool:
    """Whether a device computes in fp64 about as fast as in fp32."""
    import torch

    if on.type != "cuda":
        return False
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(on).gcnArchName).startswith(_FULL_RATE_AMD)
    return torch.cuda.get_device_capability(on) in _FULL_RATE


def gram_attempts(matrix: Tensor) -> tuple[str, ...]:
    """The kinds of Gram matrix to try for a matrix, in order."""
    import torch

    if matrix.dtype == torch.float64 or full_rate_fp64(matrix.device):
        return (GRAM_FP64,)
    return (GRAM_FP32, GRAM_FP64)


def full_by_gram(matrix: Tensor) -> bool:
    """Whether the full decomposition of an fp32 matrix comes from a Gram matrix in fp64, which is several times quicker
    than the device's own where fp64 is. On a CPU LAPACK's comes: a square matrix takes it less (576 x 576 on one core:
    36 ms against 60), only a long one more (1024 x 4096: 1.33 s against 0.46), and its rounding, thirty times as large,
    shows in what keeps the smallest components: there edits stay what they have been.
    """
    import torch

    return matrix.dtype == torch.float32 and full_rate_fp64(matrix.device)


def usable_device(flag: str, name: str) -> device:
    """The device of that name. Raises UserError where torch knows none, or has none here; flag: what named it."""
    import torch

    try:
        found = torch.device(name)
    except RuntimeError:
        raise UserError(f"{flag} {name} is no device that torch knows: name cpu, cuda, cuda:1 or mps") from None
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"{flag} {name} cannot be used here: {reason}") from None
    return found
