"""Eigenpruning: removing the singular components that matter least to the answers (arXiv:2404.03147).

What the released code does differently, and why we do not: it takes inputs before normalisation or activation, shifts the bias per position of the last batch only, and scores nothing at batch size one.
Here inputs are the matrix's own, the mean is over all real tokens, and the maximum runs over every batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness_ext.methods import Edit, Svd, method

if TYPE_CHECKING:
    from torch import Tensor


@method(summary="Remove the singular components with the smallest effect on the answers.")
def eigenprune(weight: Tensor, /, *, svd: Svd, component_effects: Tensor, input_mean: Tensor, fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2) -> Edit:
    """Drop `floor(fraction * r)` components, those of lowest effect, and keep the mean output: `b' = b + W_removed x_mean`.

    component_effects: `[r]`, the largest first-order effect of each component (`CounterfactualEffects`). input_mean: `[n]`. Equal effects are dropped from the smaller singular value on.
    """
    count = int(fraction * len(svd.s) + 1e-9)
    # A stable sort of the reversed order puts, among equals, the last component first.
    order = component_effects.flip(0).argsort(stable=True)
    removed = (len(svd.s) - 1) - order[:count]
    kept = component_effects.new_ones(len(svd.s), dtype=bool)
    kept[removed] = False
    left = svd.u * svd.s
    shift = left[:, ~kept] @ (svd.vh[~kept] @ input_mean)
    return Edit(left[:, kept], svd.vh[kept], shift)
