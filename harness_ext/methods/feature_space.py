"""Low rank in the space of a matrix's outputs: what is kept is what the outputs on calibration texts vary along.

`argmin_{rank r} ||W X - W' X||_F = U_r U_r^T W`, with U_r the leading eigenvectors of the outputs' second moment
`W X X^T W^T`. SVD-LLM's truncation-aware whitening, Swift-SVD and feature-space decomposition are this one operator:
they differ in whether the outputs are centred and in how ranks are chosen. The eigenvectors need no Cholesky factor, no
inverse, and no repair of an `X X^T` that is not positive definite.

Everything is in fp64: the eigenvalues of a second moment are squares, and span twice as many orders of magnitude as the
singular values that they stand for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness_ext.linalg.devices import full_rate_fp64
from harness_ext.linalg.moments import overwrite_by_eigenvectors, ridged
from harness_ext.methods import Edit, call, method

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness_ext.methods.budget import Keep

WEIGHT_DIRECTIONS = "weight_directions"
"""The fallback where the texts move the outputs along fewer directions than are to be kept."""

_LEAST_SQUARE = 1e-8
"""Of the largest: what a Gram matrix in fp64 tells to eight digits."""


@method(summary="Keep the directions along which the outputs on calibration texts vary most.", shifts_bias=True)
def feature_space(
    weight: Tensor,
    /,
    *,
    input_second_moment: Tensor,
    input_mean_with_sinks: Tensor,
    keep: Keep,
    remember: Callable[..., tuple[Tensor, ...]] = call,
    centred: bool = True,
    bias: bool = True,
    ridge: Annotated[float, Field(gt=0)] | None = None,
) -> Edit:
    """`W' = U_r U_r^T W`, and with `bias` also `b' = b + (I - U_r U_r^T) W x_mean` (arXiv:2405.13039 centred;
    arXiv:2403.07378 not).

    input_second_moment: `[n, n]`, the mean of `x x^T`. input_mean_with_sinks: `[n]`. Both are over all tokens, sinks
    among them: this is a least-squares fit, and does as it likes with what it is not shown. Five layers of SmolLM2 at
    80 % of their parameters leave a perplexity of WikiData's answers of 984 (of 734), and of 815,000 without the sinks.
    centred: U_r from the covariance of the outputs rather than their second moment. Centred and with the bias, it is
    the best affine map of rank r on these inputs; centred without it is what the released code of arXiv:2405.13039
    does, which loses the mean output. ridge: added to the diagonal of the second moment, as if every input had so much
    noise of its own, by which directions of W count that the texts never show. `keep.energy` is a share of the sum of
    the eigenvalues, the outputs' (co)variance, not of the weight's own energy.

    Where the outputs span fewer directions than are kept, the rest are the leading singular directions of what is left
    of W (ours): recorded as a fallback.
    """
    mean, dense = input_mean_with_sinks.double(), weight.double()
    input_second_moment = ridged(input_second_moment, ridge)
    eigenvalues, eigenvectors = (
        remember(centred_spectrum, weight, input_second_moment, input_mean_with_sinks)
        if centred
        else remember(output_spectrum, weight, input_second_moment)
    )
    rows, columns = weight.shape
    rank = keep.rank_for((rows, columns), eigenvalues.sqrt())
    directions, fallback = leading_directions(dense, eigenvalues, eigenvectors, rank)
    right = directions.T @ dense
    output_mean = dense @ mean
    shift = (output_mean - directions @ (directions.T @ output_mean)).to(weight) if bias else None
    return Edit(directions.to(weight), right.to(weight), shift, fallback)


def leading_directions(
    weight: Tensor, eigenvalues: Tensor, eigenvectors: Tensor, rank: int
) -> tuple[Tensor, str | None]:
    """As many directions `[m, rank]` as asked for, from the spectrum of the outputs of W `[m, n]`, and the fallback
    where that spans fewer. The first of them serve smaller ranks.
    """
    count = spanned(eigenvalues)
    if rank <= count:
        return eigenvectors[:, :rank], None
    return _completed(weight, eigenvectors[:, :count], rank), WEIGHT_DIRECTIONS


def spanned(eigenvalues: Tensor) -> int:
    """How many directions outputs span, of a descending spectrum `[r]` in fp64: those beyond have no size but
    rounding.
    """
    return int((eigenvalues > eigenvalues[0] * len(eigenvalues) * 1e-15).sum())


def centred_spectrum(weight: Tensor, moment: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """`output_spectrum` for the covariance of the inputs, from their second moment `[n, n]` and mean `[n]`."""
    mean = mean.double()
    return output_spectrum(weight, moment.double() - mean.outer(mean))


def output_spectrum(weight: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """In fp64, the leading min(m, n) eigenvalues `[r]`, descending and not negative, and eigenvectors `[m, r]` of
    `W S W^T`, for W `[m, n]` and S `[n, n]`.

    Of a tall matrix, those of `R S R^T` with `W = Q R`, turned by Q: the eigenproblem has the smaller side.
    """
    import torch

    (rows, columns), basis = weight.shape, None
    weight, spread = weight.double(), spread.double()
    if rows > columns:
        basis, weight = torch.linalg.qr(weight)
    moment = weight @ spread @ weight.T
    # Rounding leaves the product a little asymmetric, and eigh reads one triangle only.
    eigenvalues, eigenvectors = overwrite_by_eigenvectors((moment + moment.T) / 2)
    eigenvalues, eigenvectors = eigenvalues.flip(0).clamp(min=0), eigenvectors.flip(1)
    return eigenvalues, eigenvectors if basis is None else basis @ eigenvectors


def _completed(weight: Tensor, directions: Tensor, rank: int) -> Tensor:
    """Add to orthonormal directions `[m, k]` the leading left singular vectors of what they leave of W, up to `[m,
    rank]`.
    """
    import torch

    count = rank - directions.shape[1]
    # What is left has no name: it is let go before the next step, which takes as much.
    more = _left_singular_vectors(weight - directions @ (directions.T @ weight), count)
    # Those of a rest that has vanished may lean on the directions already there.
    return torch.linalg.qr(torch.cat([directions, more], dim=1)).Q


def _left_singular_vectors(matrix: Tensor, count: int) -> Tensor:
    """The leading ones `[m, count]` of an fp64 `[m, n]`. Where the device is fast in fp64, from the Gram matrix of the
    smaller side, if all of them are far enough above its rounding; else from the full decomposition, whose last bits
    the directions of a rest without a gap depend on.
    """
    import torch

    if not full_rate_fp64(matrix.device):
        return torch.linalg.svd(matrix, full_matrices=False).U[:, :count]
    rows, columns = matrix.shape
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if rows <= columns else matrix.T @ matrix)
    squares, vectors = squares.flip(0)[:count], vectors.flip(1)[:, :count]
    if not bool(squares[-1] > _LEAST_SQUARE * squares[0]):
        return torch.linalg.svd(matrix, full_matrices=False).U[:, :count]
    return vectors if rows <= columns else (matrix @ vectors) / squares.sqrt()
