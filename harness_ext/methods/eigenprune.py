"""Pruning by effect: removing the singular components that the answers can do without (arXiv:2404.03147, and a variant
of ours).

What the released code of the paper does differently, and why we do not: it takes inputs before normalisation or
activation, shifts the bias per position of the last batch only, and scores nothing at batch size one. Here inputs are
the matrix's own, the mean is over all real tokens but sinks, and the maximum runs over every batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness_ext.methods import Edit, Svd, method

if TYPE_CHECKING:
    from torch import Tensor

Fraction = Annotated[float, Field(gt=0, lt=1)]


def without_lowest(svd: Svd, effects: Tensor, input_mean: Tensor, fraction: float) -> Edit:
    """Drop `floor(fraction * r)` components, those of lowest effect `[r]`, and keep the mean output: `b' = b +
    W_removed x_mean`.

    Equal effects are dropped from the smaller singular value on.
    """
    import torch

    count = int(fraction * len(svd.s) + 1e-9)
    # A stable sort of the reversed order puts, among equals, the last component first.
    order = effects.flip(0).argsort(stable=True)
    kept = effects.new_ones(len(svd.s), dtype=torch.bool)
    kept[(len(svd.s) - 1) - order[:count]] = False
    return without(svd, ~kept, input_mean)


def without(svd: Svd, removed: Tensor, input_mean: Tensor) -> Edit:
    """Drop the marked components `[r]`, bool, and keep the mean output."""
    left = svd.u * svd.s
    shift = left[:, removed] @ (svd.vh[removed] @ input_mean.to(svd.vh))
    return Edit(left[:, ~removed], svd.vh[~removed], shift)


@method(summary="Remove the components whose corruption never raises the loss much.", shifts_bias=True)
def eigenprune(
    weight: Tensor, /, *, svd: Svd, counterfactual_effects: Tensor, input_mean: Tensor, fraction: Fraction = 0.2
) -> Edit:
    """The paper's rule: a component is worth the largest first-order effect, over documents and tokens, of seeing
    another document's input.

    counterfactual_effects: `[r]` (see `CounterfactualEffects`). input_mean: `[n]`. fraction: of the components of each
    matrix, or head.
    """
    return without_lowest(svd, counterfactual_effects, input_mean, fraction)


@method(summary="Remove the components whose removal lowers the loss most, to first order.", shifts_bias=True)
def ablation_prune(
    weight: Tensor, /, *, svd: Svd, ablation_effects: Tensor, input_mean: Tensor, fraction: Fraction = 0.02
) -> Edit:
    """Ours: as `eigenprune`, but a component is worth the mean effect of exactly the edit that is made, its removal
    with the mean output kept.

    ablation_effects: `[r]` (see `AblationEffects`). input_mean: `[n]`. fraction: of the components of each matrix, or
    head.
    """
    return without_lowest(svd, ablation_effects, input_mean, fraction)


@method(
    summary="Remove the components whose removal is measured to lower the loss, few at a time.",
    rank_from_weights=True,
    shifts_bias=True,
)
def eigenprune_greedy(weight: Tensor, /, *, svd: Svd, removed_components: Tensor, input_mean: Tensor) -> Edit:
    """Ours: as `ablation_prune`, but candidates are taken only if the loss really falls, and found anew after each
    round (see `harness_ext.search.eigenprune_greedy`).

    removed_components: `[r]`, bool. input_mean: `[n]`, on the model as it was before the step.
    """
    return without(svd, removed_components, input_mean)
