"""Pruning by effect: removing the singular components that the answers can do without (arXiv:2404.03147, and variants
of ours).

`fraction` has two readings. The released code of the paper ranks the components of all heads and layers together and
drops the given share of them all (`share_of: all`), which may be nearly all of one layer and nearly none of another;
`share_of: each` drops that share of each head. The paper's figures were made by that code.

What the released code does differently, and why we do not: it takes inputs before normalisation or
activation, shifts the bias per position of the last batch only, and scores nothing at batch size one. Here inputs are
the matrix's own, the mean is over all real tokens but sinks, and the maximum runs over every batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness_ext.methods import Edit, Svd, method

if TYPE_CHECKING:
    from torch import Tensor

Fraction = Annotated[float, Field(gt=0, lt=1)]


def lowest(effects: Tensor, count: int) -> Tensor:
    """Which `count` components have the lowest effect `[r]`: `[r]`, bool. Equal effects count from the smaller singular
    value on.
    """
    import torch

    # A stable sort of the reversed order puts, among equals, the last component first.
    order = effects.flip(0).argsort(stable=True)
    chosen = torch.zeros(len(effects), dtype=torch.bool, device=effects.device)
    chosen[(len(effects) - 1) - order[:count]] = True
    return chosen


def share(fraction: float, components: int) -> int:
    """How many of so many components a fraction is, rounded down."""
    return int(fraction * components + 1e-9)


def counts_among_all(effects: Mapping[str, Tensor], fraction: float) -> dict[str, int]:
    """How many components of each matrix are among the lowest share of all together, as the released code ranks them.

    effects: `[r]` of each matrix by its name, in the order of the model. Equal ones count in that order, and from the
    smaller singular value on.
    """
    import torch

    reversed_each = [values.flip(0) for values in effects.values()]
    chosen = torch.cat(reversed_each).argsort(stable=True)[: share(fraction, sum(map(len, reversed_each)))]
    ends = torch.tensor([len(values) for values in reversed_each]).cumsum(0)
    places = torch.bucketize(chosen.cpu(), ends, right=True)
    return dict(zip(effects, places.bincount(minlength=len(effects)).tolist(), strict=True))


def without(svd: Svd, removed: Tensor, input_mean: Tensor) -> Edit:
    """Drop the marked components `[r]`, bool, and keep the mean output."""
    left = svd.u * svd.s
    shift = left[:, removed] @ (svd.vh[removed] @ input_mean.to(svd.vh))
    return Edit(left[:, ~removed], svd.vh[~removed], shift, unchanged=not bool(removed.any()))


@method(summary="Remove the components whose corruption never raises the loss much.", shifts_bias=True, revision=2)
def eigenprune(
    weight: Tensor,
    /,
    *,
    svd: Svd,
    counterfactual_effects: Tensor,
    input_mean: Tensor,
    count_among_all: Tensor | None = None,
    fraction: Fraction = 0.2,
    share_of: Literal["each", "all"] = "each",
) -> Edit:
    """The paper's rule: a component is worth the largest first-order effect, over documents and tokens, of seeing
    another document's input.

    counterfactual_effects: `[r]` (see `CounterfactualEffects`). input_mean: `[n]`. fraction: of the components of each
    matrix, or head; or, as the released code has it, of all components of the step's matrices together.
    count_among_all: how many of these are this matrix's (see `counts_among_all`).
    """
    if share_of == "all":
        assert count_among_all is not None, "the engine ranks all components together"
        count = int(count_among_all)
    else:
        count = share(fraction, len(svd.s))
    return without(svd, lowest(counterfactual_effects, count), input_mean)


@method(
    summary="Remove the components whose removal lowers the loss, as far as it is measured to.",
    rank_from_weights=True,
    shifts_bias=True,
    revision=2,
)
def ablation_prune(
    weight: Tensor,
    /,
    *,
    svd: Svd,
    ablation_effects: Tensor,
    input_mean: Tensor,
    accepted_components: Tensor | None = None,
    fraction: Fraction = 0.02,
) -> Edit:
    """Ours: as `eigenprune`, but a component is worth the mean effect of exactly the edit that is made, its removal
    with the mean output kept; and the first-order estimate is not believed, but tried out.

    ablation_effects: `[r]` (see `AblationEffects`). input_mean: `[n]`. accepted_components: `[r]`, bool, those whose
    removal was measured to lower the loss (see `harness_ext.search.ablation_prune`); all of them unless given.
    fraction: of the components of each matrix, or head, at most.
    """
    removed = lowest(ablation_effects, share(fraction, len(svd.s)))
    return without(svd, removed if accepted_components is None else removed & accepted_components, input_mean)


@method(
    summary="Remove the components whose removal is measured to lower the loss, few at a time.",
    rank_from_weights=True,
    shifts_bias=True,
    revision=2,
)
def eigenprune_greedy(weight: Tensor, /, *, svd: Svd, removed_components: Tensor, input_mean: Tensor) -> Edit:
    """Ours: as `ablation_prune`, but candidates are found anew after each round (see
    `harness_ext.search.eigenprune_greedy`).

    removed_components: `[r]`, bool. input_mean: `[n]`, on the model as it was before the step.
    """
    return without(svd, removed_components, input_mean)
