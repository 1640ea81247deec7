"""Second moments `[n, n]`, symmetric and in fp64: with a ridge, and decomposed in their own memory. Of a wide MLP one
of the inner width takes a gigabyte, and copies of it are what an edit holds most of.

LAPACK takes columns, and what is handed to it in rows is copied first; of a symmetric matrix the transpose is the same
matrix, in columns. Results are those of `torch.linalg` to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def least_ridge(trace: float) -> float:
    """What is added to the diagonal of a moment of this trace so that rounding lets it be inverted."""
    return 8 * 2.0**-52 * trace


def ridged(moment: Tensor, ridge: float | Tensor | None) -> Tensor:
    """`C + t I`, a copy, in fp64; the moment itself without a ridge."""
    import torch

    return moment if ridge is None else add_ridge(moment.to(torch.float64, copy=True), ridge)


def add_ridge(moment: Tensor, ridge: float | Tensor) -> Tensor:
    """The same moment, with `t I` added to it."""
    moment.diagonal().add_(ridge)
    return moment


def overwrite_by_cholesky(moment: Tensor) -> Tensor:
    """L of `C = L L^T`, lower; C is overwritten. Raises torch.linalg.LinAlgError where it is not positive definite."""
    import torch

    columns = moment.T
    return torch.linalg.cholesky(columns, out=columns)


def solve_by_cholesky(lower: Tensor, values: Tensor) -> Tensor:
    """`C^-1 B` of `C = L L^T`, for B `[n, k]`: as `torch.cholesky_solve`, which copies L first."""
    import torch

    half_way = torch.linalg.solve_triangular(lower, values, upper=False)
    return torch.linalg.solve_triangular(lower.T, half_way, upper=True)


def overwrite_by_inverse(moment: Tensor) -> Tensor:
    """`C^-1` of a positive definite C, which is overwritten. Raises as `overwrite_by_cholesky`."""
    import torch

    lower = overwrite_by_cholesky(moment)
    return torch.cholesky_inverse(lower, out=lower)


def overwrite_by_eigenvectors(moment: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues, ascending, `[n]`, and vectors, in columns; C is overwritten. Raises torch.linalg.LinAlgError
    where it does not converge.
    """
    import torch

    columns = moment.T
    values = moment.new_empty(len(moment))
    torch.linalg.eigh(columns, out=(values, columns))
    return values, columns
