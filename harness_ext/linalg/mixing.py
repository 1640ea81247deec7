"""What mixes the dimensions of attention heads: moments of what a head makes, and mixtures that waste no precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.linalg.moments import least_ridge, overwrite_by_cholesky, ridged

if TYPE_CHECKING:
    from torch import Tensor


def moments_by_head(weight: Tensor, bias: Tensor | None, moment: Tensor, mean: Tensor, heads: int) -> Tensor:
    """The mean of `y y^T` of every head, `[heads, d, d]` in fp64, `y = W x + b`, W `[heads d, n]` and b `[heads d]`,
    from the inputs' second moment `[n, n]` and mean `[n]`.
    """
    made = weight.double().unflatten(0, (heads, -1))
    squares = made @ moment @ made.mT
    if bias is None:
        return squares
    shift = bias.double().unflatten(0, (heads, -1))
    crossed = (made @ mean)[:, :, None] * shift[:, None]
    return squares + crossed + crossed.mT + shift[:, :, None] * shift[:, None]


def root_of(moment: Tensor, ridge: float) -> Tensor:
    """L of `C + t I`, `[d, d]`, lower, t the ridge as a share of the mean of its diagonal, no less than rounding asks
    for; I of what is zero.
    """
    import torch

    trace = float(moment.diagonal().sum())
    pull = max(ridge * trace / len(moment), least_ridge(trace))
    if pull > 0:
        return overwrite_by_cholesky(ridged(moment, pull))
    return torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def orthonormal(mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Of a mixture `X [d, r]`, `B [r, d]` with orthonormal rows that spans the same, as near to the first r unit
    vectors as it can be, and `Y [r, r]` with `Y B = X^T`.
    """
    import torch

    basis, triangle = torch.linalg.qr(mixture)
    left, _, right = torch.linalg.svd(basis[: mixture.shape[1]].T)
    turn = left @ right
    return (basis @ turn).T, triangle.T @ turn
