"""Controls: edits of the same size that carry no information about what matters in a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.methods import Edit, method

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from harness_ext.recipe import Keep


@method(summary="Project each matrix onto random orthonormal directions, as many as kept.")
def random_subspace(weight: Tensor, /, *, keep: Keep, generator: Generator) -> Edit:
    """`W' = Q Q^T W` with Q `[m, r]` orthonormal, from the QR decomposition of a Gaussian matrix (uniform over subspaces).

    The projection acts on the smaller side (`W' = W Q Q^T` where n < m): r of min(m, n) directions survive, which leaves the control
    as much of the matrix as a random choice can have at this rank, and so makes it the harder one to beat.
    """
    import torch

    rows, columns = weight.shape
    rank = keep.rank_for((rows, columns))
    gaussian = torch.randn(min(rows, columns), rank, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(gaussian).Q.to(weight)
    if rows <= columns:
        return Edit(directions, directions.T @ weight)
    return Edit(weight @ directions, directions.T)
