"""How large a share of its units each layer loses, under one mean over layers, from how far each turns its hidden
states, or from how much its units vary.

    block-influence       phi = n phi_mean softmax(-s / epsilon), s_l = 1 - mean cosine of layer l's input and output
    angular               1 - phi_l in proportion to the mean angle between the two, at most 1
    cumulative-variance   the fewest units whose variances are tau of the layer's, one tau for all layers
    uniform               phi_l = phi_mean

The first (MoDeGPT, arXiv:2408.09632) maximises `sum_l s_l (1 - phi_l) + epsilon H(phi)`, H the entropy; the second is
that of FLAT-LLM (arXiv:2505.23966), the third that of subspace node pruning (arXiv:2405.17506): units in the order of
their ranking, each counted by what of it those before do not explain, as if after Gram and Schmidt.

Where a layer would lose more than a cap, epsilon is raised to the least at which none does (ours): what it keeps is
taken from the others by their influence, and nothing is clipped.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

LayerRule = Literal["uniform", "block-influence", "angular", "cumulative-variance"]
_DOUBLINGS, _HALVINGS = 200, 60
_ROUNDING = 1e-12


class LayerShares(NamedTuple):
    """removed: the share of its units that each layer loses, by its number. epsilon: the one that was used, None where
    the rule has none; tau likewise.
    """

    removed: dict[int, float]
    epsilon: float | None = None
    tau: float | None = None


def by_influence(influence: Mapping[int, float], removed: float, epsilon: float, cap: float) -> LayerShares:
    """influence: s of every layer, by its number. removed: phi_mean. Raises ValueError where no epsilon keeps every
    layer below the cap.
    """
    if removed >= cap:
        raise ValueError(f"a share of {removed} is to go, and no layer is to lose more than {cap}")
    low, high = epsilon, epsilon
    for _ in range(_DOUBLINGS):
        if max(_softmax(influence, removed, high).values()) <= cap:
            break
        low, high = high, 2 * high
    for _ in range(_HALVINGS if high > epsilon else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if max(_softmax(influence, removed, middle).values()) <= cap else (middle, high)
    return LayerShares(_softmax(influence, removed, high), high)


def _softmax(influence: Mapping[int, float], removed: float, epsilon: float) -> dict[int, float]:
    least = min(influence.values())
    powers = {layer: math.exp((least - one) / epsilon) for layer, one in influence.items()}
    total = sum(powers.values())
    return {layer: len(influence) * removed * power / total for layer, power in powers.items()}


def by_angle(angles: Mapping[int, float], removed: float) -> LayerShares:
    """angles: of every layer, by its number; layers that would keep more than all keep all, and the others more."""
    kept: dict[int, float] = {}
    left, waiting = (1 - removed) * len(angles), dict(angles)
    while waiting:
        total = sum(waiting.values())
        wanted = {layer: left * (one / total) if total > 0 else left / len(waiting) for layer, one in waiting.items()}
        whole = {layer: 1.0 for layer, one in wanted.items() if one > 1}
        if not whole:
            kept |= wanted
            break
        kept |= whole
        left -= len(whole)
        waiting = {layer: one for layer, one in waiting.items() if layer not in whole}
    return LayerShares({layer: 1 - min(1.0, kept[layer]) for layer in angles})


def by_variance(variances: Mapping[int, Sequence[float]], removed: float) -> LayerShares:
    """variances: of every layer, by its number, what each unit has that those before it do not explain, in their order.
    Each layer keeps the fewest units that have tau of its variance, one at least; tau is the largest at which the mean
    share over layers is no more than asked for: a share that some layer's units reach, 0 where none is small enough.
    Shares that differ by rounding alone are one, so that layers alike but for their scale lose alike.
    """
    sums = {layer: list(itertools.accumulate(own)) for layer, own in variances.items()}
    reached = {layer: [part / own[-1] if own[-1] else 1.0 for part in own] for layer, own in sums.items()}

    def kept(tau: float) -> dict[int, float]:
        least = tau * (1 - _ROUNDING)
        return {layer: (bisect_left(shares, least) + 1) / len(shares) for layer, shares in reached.items()}

    def too_much(tau: float) -> bool:
        return sum(kept(tau).values()) > (1 - removed) * len(reached) * (1 + _ROUNDING)

    taus = sorted({0.0, *itertools.chain(*reached.values())})
    tau = taus[max(0, bisect_left(taus, True, key=too_much) - 1)]
    return LayerShares({layer: 1 - share for layer, share in kept(tau).items()}, tau=tau)
