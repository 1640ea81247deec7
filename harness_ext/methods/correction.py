"""Between two truncations of a model: each matrix moves back towards what it was, as far as gradients of the loss say,
and is truncated anew (zero-sum in stages; after arXiv:2602.02848).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness_ext.methods import DenseEdit, method

if TYPE_CHECKING:
    from torch import Tensor

PULL_BACK, RESTORE = "pull_back", "restore"
_LEAST_SQUARE = 1e-10
"""Of the largest eigenvalue of the gradients' Gram matrix: what lies below is rounding."""


@method(summary="Move back towards the unedited matrix, along gradients of the loss.")
def pull_back(
    weight: Tensor,
    /,
    *,
    original: Tensor,
    batch_gradients: Tensor,
    directions: Annotated[int, Field(ge=1)] = 1,
    first: Annotated[int, Field(ge=0)] = 0,
) -> DenseEdit:
    """`W + P(W_0 - W)`, W_0 the unedited matrix and P the projection on the span of gradients `[m, n]`; with one of
    them `W + <g, W_0 - W> / <g, g> g`.

    original: `[m, n]`. batch_gradients: `[k, m, n]`, of the model as it stands; where they are zero, W stays.
    directions: how many of them count, at most k, from number `first` on, beginning anew after the last. One of them is
    one direction among m n, so that a matrix moves little: on the embedded model by 1e-7 to 3e-4 of its size, of
    which half precision may round all away.
    """
    import torch

    count = len(batch_gradients)
    places = [(first + step) % count for step in range(min(directions, count))]
    spanning = torch.stack([batch_gradients[place].double().flatten() for place in places])
    away = (original.double() - weight.double()).flatten()
    inverse = torch.linalg.pinv(spanning @ spanning.T, rtol=_LEAST_SQUARE, hermitian=True)
    back = (inverse @ (spanning @ away)) @ spanning
    return DenseEdit((weight.double() + back.view_as(weight)).to(weight))


@method(summary="Put the unedited matrix back.")
def restore(weight: Tensor, /, *, original: Tensor) -> DenseEdit:
    """`W_0`, `[m, n]`: what the matrix was before all steps of the recipe."""
    return DenseEdit(original.to(weight))
