"""Low rank for inputs that earlier edits have shifted, aimed at the outputs of the unedited model.

Everything before a matrix may have been compressed, so that it no longer sees its inputs X `[n, N]` but X'. With
`C' = X' X'^T`, `K = X X'^T` (the original first) and the target outputs `W (a X + (1 - a) X')`, anchor a,

    W* = (W K_a + l W) (C' + l I)^-1,    K_a = a K + (1 - a) C'
    U_r = leading r eigenvectors of W* (C' + l I) W*^T,    W' = U_r U_r^T W*

is `argmin_{rank r} ||W (a X + (1 - a) X') - W' X'||_F^2 + l ||W - W'||_F^2`, up to a constant: a reduced-rank
regression. The ridge `l` pulls to the weights and not to zero, so that directions which the texts never show keep what
W does there (ours). a = 1 is the published objective (arXiv:2604.02119, its fourth), a = 0 its third, which SVD-LLM's
closed-form update approaches; values between are the first part of SAES-SVD (arXiv:2602.03051), and `aces` is its
second, which chooses one for each matrix.

At full rank the result is W*, not W: the identity is no control of this. Where nothing before was edited, X' = X and
W* = W, and the result is that of `feature_space`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness_ext.linalg.moments import overwrite_by_cholesky, ridged, solve_by_cholesky
from harness_ext.methods import Edit, method
from harness_ext.methods.feature_space import leading_directions, output_spectrum

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.methods.budget import Keep

REFITTED = "refitted to shifted inputs"
"""Where the factors are from, in the receipt: a matrix so edited was changed beyond truncation."""


@method(summary="Refit to the unedited model's outputs on shifted inputs, at a lower rank.", shifts_bias=True)
def anchored(
    weight: Tensor,
    /,
    *,
    input_second_moment: Tensor,
    input_cross_moment: Tensor,
    input_mean_with_sinks: Tensor,
    original_input_mean: Tensor,
    keep: Keep,
    anchor: Annotated[float, Field(ge=0, le=1)] | Literal["aces"] = 1.0,
    ridge: Annotated[float, Field(gt=0, le=1)] = 0.01,
    centred: bool = False,
    bias: bool = False,
) -> Edit:
    """`W' = U_r U_r^T W*`, and with `bias` also `b' = b + W x_target - W' x'_mean`; see the module.

    input_second_moment: `[n, n]`, the mean of `x' x'^T` of the inputs that earlier edits leave. input_cross_moment:
    `[n, n]`, the mean of `x x'^T`, x the input of the same token in the unedited model. input_mean_with_sinks,
    original_input_mean: `[n]`, the means of x' and x. anchor: 1 aims at the unedited model's outputs, 0 at those of W
    on the shifted inputs, and `aces` at what `least_lost_anchor` chooses. ridge: l as a share of the mean eigenvalue of
    C'. centred: moments about the means, for which the bias is the optimal one; without it, as published, moments about
    zero. `keep.energy` is a share of the sum of the eigenvalues.
    """

    dense, moment, cross = (value.double() for value in (weight, input_second_moment, input_cross_moment))
    mean, original = input_mean_with_sinks.double(), original_input_mean.double()
    origin = REFITTED
    if anchor == "aces":
        second, crossed = (moment - mean.outer(mean), cross - original.outer(mean)) if centred else (moment, cross)
        anchor = _of_the_matrix(dense, second, crossed, ridge, keep)
        origin = f"{REFITTED}, anchor {anchor:.3g}"
    target = anchor * original + (1 - anchor) * mean
    blended = (1 - anchor) * moment
    blended += anchor * cross
    if centred:
        blended -= target.outer(mean)
        moment = moment - mean.outer(mean)
    aimed = dense @ blended
    # as large as the moments, and they are what memory goes to
    del blended
    pull, moment = _with_ridge(moment, ridge)
    root = overwrite_by_cholesky(moment.clone())
    refitted = solve_by_cholesky(root, (aimed + pull * dense).T).T
    del root
    eigenvalues, eigenvectors = output_spectrum(refitted, moment)
    rank = keep.rank_for((dense.shape[0], dense.shape[1]), eigenvalues.sqrt())
    directions, fallback = leading_directions(refitted, eigenvalues, eigenvectors, rank)
    right = directions.T @ refitted
    shift = (dense @ target - directions @ (right @ mean)).to(weight) if bias else None
    return Edit(directions.to(weight), right.to(weight), shift, fallback, origin)


def _with_ridge(moment: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The ridge itself, and the moment `[n, n]` with it; one of 1 where inputs are all zero, which leaves W to W."""
    import torch

    pull = ridge * moment.diagonal().mean()
    pull = torch.where(pull > 0, pull, torch.ones_like(pull))
    return pull, ridged(moment, pull)


def _of_the_matrix(weight: Tensor, moment: Tensor, cross: Tensor, ridge: float, keep: Keep) -> float:
    """`least_lost_anchor` at the rank that the budget leaves of W as it is."""
    import torch

    root = overwrite_by_cholesky(_with_ridge(moment, ridge)[1])
    outputs = weight @ root
    change = torch.linalg.solve_triangular(root, (weight @ (cross - moment)).T, upper=False).T
    rank = keep.rank_for((weight.shape[0], weight.shape[1]), torch.linalg.svdvals(outputs))
    return least_lost_anchor(outputs, change, rank)


def least_lost_anchor(outputs: Tensor, change: Tensor, rank: int) -> float:
    """The anchor `b` in [0, 1] at which truncation would lose the least share of the energy of G0 + b G1, were its
    leading subspaces those of G0: ACES of SAES-SVD (arXiv:2602.03051).

    outputs: G0 = W L `[m, n]`, with L L^T the second moment of the shifted inputs. change: G1 = W (K - C') L^-T `[m,
    n]`, what a whole anchor adds. With R0 and R1 what is left of both off the r leading left and right singular
    directions of G0, the share is (|R1|^2 b^2 + 2 <R0, R1> b + |R0|^2) / (|G1|^2 b^2 + 2 <G0, G1> b + |G0|^2), least at
    a root of its derivative or at an end. A share, and no error: it may choose what is easiest to truncate. At full
    rank, where nothing is lost, 1.
    """
    import torch

    if rank >= min(outputs.shape):
        return 1.0
    left, _, right = torch.linalg.svd(outputs, full_matrices=False)
    left, right = left[:, :rank], right[:rank]

    def off(value: Tensor) -> Tensor:
        beside = value - left @ (left.T @ value)
        return beside - (beside @ right.T) @ right

    lost, of_all = (_of_the_sum(one, other) for one, other in ((off(outputs), off(change)), (outputs, change)))
    (a, b, c), (aa, bb, cc) = lost, of_all
    candidates = [0.0, 1.0, *_roots(a * bb - b * aa, 2 * (a * cc - c * aa), b * cc - c * bb)]

    def share(anchor: float) -> float:
        whole = (aa * anchor + bb) * anchor + cc
        return ((a * anchor + b) * anchor + c) / whole if whole > 0 else 0.0

    return min((anchor for anchor in candidates if 0 <= anchor <= 1), key=share)


def _of_the_sum(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """|X + b Y|^2 as a polynomial in b: its coefficients, that of b^2 first."""
    return float(other.square().sum()), 2 * float((one * other).sum()), float(one.square().sum())


def _roots(square: float, linear: float, constant: float) -> list[float]:
    """The real roots of a polynomial of the second degree, or of the first."""
    if square == 0:
        return [] if linear == 0 else [-constant / linear]
    under = linear * linear - 4 * square * constant
    if under < 0:
        return []
    # By the sum without cancellation, and the product of both.
    far = -(linear + math.copysign(math.sqrt(under), linear)) / 2
    return [far / square] if far == 0 else [far / square, constant / far]
