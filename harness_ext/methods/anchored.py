"""Low rank for inputs that earlier edits have shifted, aimed at the outputs of the unedited model.

Everything before a matrix may have been compressed, so that it no longer sees its inputs X `[n, N]` but X'. With
`C' = X' X'^T`, `K = X X'^T` (the original first) and the target outputs `W (a X + (1 - a) X')`, anchor a,

    W* = (W K_a + l W) (C' + l I)^-1,    K_a = a K + (1 - a) C'
    U_r = leading r eigenvectors of W* (C' + l I) W*^T,    W' = U_r U_r^T W*

is `argmin_{rank r} ||W (a X + (1 - a) X') - W' X'||_F^2 + l ||W - W'||_F^2`, up to a constant: a reduced-rank
regression. The ridge `l` pulls to the weights and not to zero, so that directions which the texts never show keep what
W does there (ours). a = 1 is the published objective (arXiv:2604.02119, its fourth), a = 0 its third, which SVD-LLM's
closed-form update approaches; values between are the first part of SAES-SVD (arXiv:2602.03051).

At full rank the result is W*, not W: the identity is no control of this. Where nothing before was edited, X' = X and
W* = W, and the result is that of `feature_space`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

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
    anchor: Annotated[float, Field(ge=0, le=1)] = 1.0,
    ridge: Annotated[float, Field(gt=0, le=1)] = 0.01,
    centred: bool = False,
    bias: bool = False,
) -> Edit:
    """`W' = U_r U_r^T W*`, and with `bias` also `b' = b + W x_target - W' x'_mean`; see the module.

    input_second_moment: `[n, n]`, the mean of `x' x'^T` of the inputs that earlier edits leave. input_cross_moment:
    `[n, n]`, the mean of `x x'^T`, x the input of the same token in the unedited model. input_mean_with_sinks,
    original_input_mean: `[n]`, the means of x' and x. anchor: 1 aims at the unedited model's outputs, 0 at those of W
    on the shifted inputs. ridge: l as a share of the mean eigenvalue of C'. centred: moments about the means, for which
    the bias is the optimal one; without it, as published, moments about zero. `keep.energy` is a share of the sum of
    the eigenvalues.
    """
    import torch

    dense, moment, cross = (value.double() for value in (weight, input_second_moment, input_cross_moment))
    mean, original = input_mean_with_sinks.double(), original_input_mean.double()
    target = anchor * original + (1 - anchor) * mean
    blended = anchor * cross + (1 - anchor) * moment
    if centred:
        moment, blended = moment - mean.outer(mean), blended - target.outer(mean)
    pull = ridge * moment.diagonal().mean()
    moment = moment + pull * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    refitted = torch.cholesky_solve((dense @ blended + pull * dense).T, torch.linalg.cholesky(moment)).T
    eigenvalues, eigenvectors = output_spectrum(refitted, moment)
    rank = keep.rank_for((dense.shape[0], dense.shape[1]), eigenvalues.sqrt())
    directions, fallback = leading_directions(refitted, eigenvalues, eigenvectors, rank)
    right = directions.T @ refitted
    shift = (dense @ target - directions @ (right @ mean)).to(weight) if bias else None
    return Edit(directions.to(weight), right.to(weight), shift, fallback, REFITTED)
