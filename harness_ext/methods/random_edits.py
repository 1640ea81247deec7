"""Controls: edits of the same size that carry no information about what matters in a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness_ext.methods import DenseEdit, Edit, Svd, method

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from harness_ext.methods.budget import Keep

Distance = Annotated[float, Field(ge=0)]


@method(summary="Project each matrix onto random orthonormal directions, as many as kept.")
def random_subspace(weight: Tensor, /, *, keep: Keep, generator: Generator) -> Edit:
    """`W' = Q Q^T W` with Q `[m, r]` orthonormal, from the QR decomposition of a Gaussian matrix (uniform over
    subspaces).

    The projection acts on the smaller side (`W' = W Q Q^T` where n < m): r of min(m, n) directions survive, which
    leaves the control as much of the matrix as a random choice can have at this rank, and so makes it the harder one to
    beat.
    """
    import torch

    rows, columns = weight.shape
    rank = keep.rank_for((rows, columns))
    gaussian = torch.randn(min(rows, columns), rank, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(gaussian).Q.to(weight)
    if rows <= columns:
        return Edit(directions, directions.T @ weight)
    return Edit(weight @ directions, directions.T)


@method(summary="Keep the smallest singular components of each matrix.")
def bottom_components(weight: Tensor, /, *, svd: Svd, keep: Keep) -> Edit:
    """`W' = sum_{i > k - r} s_i u_i v_i^T`, k = min(m, n): the worst choice of r components there is. `keep.energy`
    says how many as in truncation: what the largest would need.
    """
    rows, columns = weight.shape
    rank = keep.rank_for((rows, columns), svd.s)
    first = svd.s.shape[0] - rank
    return Edit(svd.u[:, first:] * svd.s[first:], svd.vh[first:])


@method(summary="Add noise of a given size to each matrix, in a random direction.")
def noise(weight: Tensor, /, *, generator: Generator, relative_error: Distance = 0.1) -> DenseEdit:
    """`W' = W + e ||W|| N / ||N||`, Frobenius norms, N Gaussian: a step of length `e ||W||`, e = relative_error,
    uniform over directions. The bias stays.
    """
    import torch

    direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    step = direction * (relative_error * weight.double().norm().cpu() / direction.norm())
    return DenseEdit((weight.double() + step.to(weight.device)).to(weight))
