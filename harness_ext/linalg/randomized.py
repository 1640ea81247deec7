"""The leading components of a large matrix at a small rank, from random directions (Halko, Martinsson and Tropp 2011,
doi:10.1137/090771806).

Subspace iteration on `r + max(10, r)` Gaussian directions, orthonormalised after each product, then the best r
components within what they span. The iterations are as many as it takes: 4, and twice as many until doubling
them lowers the error by less than `SETTLED`. Iterating converges at least as fast as one over their number (on a flat
spectrum that is about its rate, on a falling one it is far faster), and then what is left to gain is
less than what the last doubling gained. That gain is the estimate of the excess error; where 64 iterations do not
settle it, nothing is returned.

Everything is drawn from the generator that is given, on the CPU, so that a seed means the same on every device. The
error is measured on the matrix itself, in fp64 sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.linalg.edits import Edit

if TYPE_CHECKING:
    from torch import Generator, Tensor

RANDOMISED = "randomised"
SETTLED = 0.0025
"""The gain of the last doubling, as a share of the error, at which the iteration ends; the error is to be within 1 % of
the least.
"""
_ITERATIONS = (4, 8, 16, 32, 64)
_OVERSAMPLING = 10


def truncate(matrix: Tensor, rank: int, generator: Generator) -> Edit | None:
    """An approximation of `[m, n]` at this rank; None where the rank is too large for this to be worth while, or the
    error does not settle.
    """
    import torch

    rows, columns = matrix.shape
    width = rank + max(_OVERSAMPLING, rank)
    if rank == 0 or 4 * width > min(rows, columns):
        return None
    basis = torch.linalg.qr(matrix @ torch.randn(columns, width, generator=generator, dtype=torch.float64).to(matrix)).Q
    negligible = torch.finfo(matrix.dtype).eps * float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    done, error = 0, float("inf")
    for iterations in _ITERATIONS:
        for _ in range(iterations - done):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        left, right = _best_within(matrix, basis, rank)
        done, before = iterations, error
        error = float(torch.linalg.vector_norm(torch.addmm(matrix, left, right, alpha=-1), dtype=torch.float64))
        gained = before - error if before - error > negligible else 0.0
        if gained <= SETTLED * error:
            return Edit(left, right, decomposition=RANDOMISED, excess_error=gained / error if gained else 0.0)
    return None


def _best_within(matrix: Tensor, basis: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors `[m, r]` and `[r, n]` of the best approximation whose columns lie in the span of basis `[m, l]`; its
    small eigenproblem `[l, l]` is solved in fp64.
    """
    import torch

    inside = basis.T @ matrix
    squares = inside.double() @ inside.double().T
    turn = torch.linalg.eigh(squares).eigenvectors.flip(1)[:, :rank].to(matrix)
    return basis @ turn, turn.T @ inside
