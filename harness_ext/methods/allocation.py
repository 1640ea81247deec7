"""Ranks for many matrices under one budget of parameters, from what each would lose at which rank.

A rule says how the ranks should stand to each other; the budget then scales them. Three things hold for every rule:
- A matrix may stay dense, at no error and at its own size. Ranks from break-even on (`m n / (m + n)`) cost as much as
  the matrix, so none is given; rules that only move ranks a little never find this by themselves (arXiv:2510.19389).
- Ranks are multiples of `align`, one multiple at least.
- The numbers stored are at most the share asked for, and no matrix could get another multiple within it.

Spectra are of whatever the factorisation truncates: of `W`, of `W` with weighted columns, of its outputs; of a group
of matrices on top of each other that share a basis, or of the part of a matrix beside rows or columns that stay. What
stays takes its numbers out of the budget, and is counted in every share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness_ext.errors import BudgetTooSmall
from harness_ext.model.size import stored_parameters

Rule = Literal["uniform", "d-rank", "svd-llm-v2", "least-error", "marchenko-pastur"]
_LEAST = 1e-9
"""What is wanted at least: proportions of it are scaled, and none is below zero."""


@dataclass(frozen=True)
class Spectrum:
    """What one matrix `[m, n]` may lose. values: the singular values `[r]` of what is truncated, descending. kind: its
    role, such as `q_proj`; matrices of one kind are set against each other by some rules. tokens: how many the values
    are a mean over, 1 where they are of weights. beside: the numbers that stay as they are beside what is truncated.
    """

    shape: tuple[int, int]
    values: Sequence[float]
    kind: str = ""
    tokens: int = 1
    beside: int = 0

    @property
    def size(self) -> int:
        """The numbers of the dense matrix that is truncated."""
        return self.shape[0] * self.shape[1]

    @property
    def whole(self) -> int:
        """Those with the numbers beside it, of which budgets are shares."""
        return self.size + self.beside

    @property
    def cost(self) -> int:
        """The numbers that one component takes."""
        return self.shape[0] + self.shape[1]

    @property
    def break_even(self) -> float:
        """The rank at which factors are as large as the matrix."""
        return self.size / self.cost

    @property
    def effective_rank(self) -> float:
        """`exp(-sum p ln p)`, p the shares of the squared values: the entropy as a count of components."""
        squares = [value * value for value in self.values]
        total = sum(squares)
        shares = [square / total for square in squares if square > 0] if total > 0 else []
        return math.exp(-sum(share * math.log(share) for share in shares)) if shares else 1.0

    @classmethod
    def flat(cls, shape: tuple[int, int]) -> Spectrum:
        """That of a matrix of which no more is known than its shape: whether a budget can be met tells it as well."""
        return cls(shape, [1.0] * min(shape))

    def tail(self, rank: int) -> float:
        """The sum of the squared values beyond a rank."""
        return sum(value * value for value in self.values[rank:])


def room(spectra: Iterable[Spectrum], param_fraction: float) -> float:
    """The numbers that a share of all leaves to what is truncated."""
    group = list(spectra)
    return param_fraction * sum(one.whole for one in group) - sum(one.beside for one in group)


def uniform(spectra: Mapping[str, Spectrum], param_fraction: float = 1.0) -> dict[str, float]:
    """The same share of every matrix: ranks in proportion to break-even, where nothing stays beside what is truncated.
    Where something does, what is left of the share of its matrix counts, and is never less than none.
    """
    return {
        key: max(_LEAST, 1 - one.beside * (1 / param_fraction - 1) / one.size) * one.break_even
        if one.beside
        else one.break_even
        for key, one in spectra.items()
    }


def d_rank(
    spectra: Mapping[str, Spectrum], param_fraction: float, value_shift: float = 0.0, pooled: bool = False
) -> dict[str, float]:
    """D-Rank (arXiv:2509.25622), each matrix by itself: `k = sqrt(R / w) P / sum sqrt(R w)`, R the effective rank, w
    the cost of a component, P the share that is kept of all numbers of the matrix's kind; it minimises `sum R / k`
    under a budget `sum w k = P`.

    value_shift: the share of every query's and key's numbers that is handed to the values of attention, equally; what a
    value has no room for, since it is dense then, stays where it was. pooled: one P for all kinds together (ours).
    """
    wanted: dict[str, float] = {}
    for kind in dict.fromkeys("" if pooled else one.kind for one in spectra.values()):
        group = {key: one for key, one in spectra.items() if pooled or one.kind == kind}
        budget = max(_LEAST, room(group.values(), param_fraction))
        scale = budget / sum(math.sqrt(one.effective_rank * one.cost) for one in group.values())
        wanted |= {key: scale * math.sqrt(one.effective_rank / one.cost) for key, one in group.items()}
    return _with_shift(spectra, wanted, value_shift)


def _with_shift(spectra: Mapping[str, Spectrum], wanted: dict[str, float], value_shift: float) -> dict[str, float]:
    """What is wanted, with a share of the numbers of queries and keys handed to values."""
    values = [key for key, one in spectra.items() if one.kind == "v_proj"]
    givers = [key for key, one in spectra.items() if one.kind in ("q_proj", "k_proj")]
    freed = value_shift * sum(wanted[key] * spectra[key].cost for key in givers)
    if not values or not freed:
        return wanted
    room = {key: max(0.0, spectra[key].size - wanted[key] * spectra[key].cost) for key in values}
    taken = {key: min(freed / len(values), own) for key, own in room.items()}
    gains = {key: math.inf if taken[key] == room[key] else taken[key] / spectra[key].cost for key in values}
    kept = 1 - value_shift * sum(taken.values()) / freed
    return wanted | {key: wanted[key] + gains[key] for key in values} | {key: kept * wanted[key] for key in givers}


def svd_llm_v2(spectra: Mapping[str, Spectrum], param_fraction: float) -> dict[str, float]:
    """SVD-LLM V2's ratios (arXiv:2503.12340): within a kind, the share removed goes as `1 / ln L`, L the error of the
    outputs at uniform ranks, summed over tokens as published: the logarithm depends on its unit.

    Ours: shares are held in [0, 1), the budget is repaired by scaling, and an error below e counts as e, since the
    logarithm would soon be negative and give the best matrices the most.
    """
    wanted: dict[str, float] = {}
    even = uniform(spectra, param_fraction)
    for kind in dict.fromkeys(one.kind for one in spectra.values()):
        group = {key: one for key, one in spectra.items() if one.kind == kind}
        inverse = {}
        for key, one in group.items():
            lost = math.sqrt(one.tokens * one.tail(max(1, math.floor(param_fraction * even[key]))))
            inverse[key] = 1 / math.log(max(lost, math.e))
        total = sum(inverse.values())
        for key, one in group.items():
            removed = len(group) * (1 - param_fraction) * inverse[key] / total
            wanted[key] = max(_LEAST, 1 - removed * one.whole / one.size) * one.break_even
    return wanted


def marchenko_pastur(spectra: Mapping[str, Spectrum], threshold: float = 1.0) -> dict[str, float]:
    """How many components of each lie above so many times the edge of its noise, at least one (see
    `weighted_svd.marchenko_pastur`). The law is of independent entries: of weights by themselves, and only in its form
    of anything weighted.
    """
    import torch

    from harness_ext.methods.weighted_svd import above_edge

    return {
        key: float(max(1, above_edge(torch.tensor(list(one.values), dtype=torch.float64), one.shape, threshold)))
        for key, one in spectra.items()
    }


def at_most(
    spectra: Mapping[str, Spectrum], largest: Mapping[str, float], param_fraction: float, align: int = 1
) -> dict[str, int]:
    """These ranks, rounded down to multiples of `align` (one at least), where the budget allows them; else ranks in
    their proportions. What they leave of the budget is not used. Arguments, and what is returned and raised, as
    `scaled` has them.
    """
    ranks = {key: _whole(one, largest[key], align) for key, one in spectra.items()}
    if _stored(spectra, ranks) > room(spectra.values(), param_fraction):
        # What rounding leaves of the budget would else take some beyond their own.
        lower = scaled(spectra, largest, param_fraction, align)
        ranks = {key: min(rank, lower.get(key, rank)) for key, rank in ranks.items()}
    return _smaller(spectra, ranks)


def scaled(
    spectra: Mapping[str, Spectrum], wanted: Mapping[str, float], param_fraction: float, align: int = 1
) -> dict[str, int]:
    """Whole ranks in the proportions wanted, as large as the budget allows; a matrix whose rank would reach break-even
    stays dense, and is not among them. wanted: `inf` for one that is to stay dense.

    Raises BudgetTooSmall where the budget is too small for one multiple of `align` of each.
    """
    budget = room(spectra.values(), param_fraction)

    def at(scale: float) -> dict[str, int]:
        return {key: _whole(one, scale * wanted[key], align) for key, one in spectra.items()}

    low, high = 1e-300, 1.0
    if _stored(spectra, at(low)) > budget:
        raise BudgetTooSmall(
            f"a budget of {param_fraction:g} of the parameters is too small for a rank of {align} in every matrix:"
            f" raise it,{' lower align,' if align > 1 else ''} or choose other matrices"
        )
    while _stored(spectra, at(high)) <= budget:
        low, high = high, 2 * high
        if high > 1e18:
            return {}
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _stored(spectra, at(middle)) <= budget else (low, middle)
    ranks = at(low)
    _fill(spectra, ranks, {key: low * wanted[key] for key in spectra}, budget, align)
    return _smaller(spectra, ranks)


def _whole(one: Spectrum, wanted: float, align: int) -> int:
    """The rank, or min(m, n) for a matrix that stays dense."""
    if wanted >= one.break_even:
        return min(one.shape)
    return max(align, math.floor(wanted / align + 1e-9) * align)


def _stored(spectra: Mapping[str, Spectrum], ranks: Mapping[str, int]) -> int:
    return sum(stored_parameters(one.shape, ranks[key]) for key, one in spectra.items())


def _fill(
    spectra: Mapping[str, Spectrum], ranks: dict[str, int], wanted: Mapping[str, float], budget: float, align: int
) -> None:
    """Hand out what rounding has left in rounds, each matrix a multiple at most in each, first to whoever is cut
    shortest of what it wanted.
    """
    left = budget - _stored(spectra, ranks)
    while True:
        before = left
        for key in sorted(spectra, key=lambda key: ranks[key] - wanted[key]):
            one, rank = spectra[key], ranks[key]
            if stored_parameters(one.shape, rank) >= one.size:
                continue
            grown = min(rank + align, *one.shape)
            more = stored_parameters(one.shape, grown) - stored_parameters(one.shape, rank)
            if 0 < more <= left:
                ranks[key], left = grown, left - more
        if left == before:
            return


def _smaller(spectra: Mapping[str, Spectrum], ranks: Mapping[str, int]) -> dict[str, int]:
    return {key: rank for key, rank in ranks.items() if stored_parameters(spectra[key].shape, rank) < spectra[key].size}


def least_error(
    spectra: Mapping[str, Spectrum],
    param_fraction: float,
    align: int = 1,
    error: Callable[[str, float], float] | None = None,
    within: tuple[float, float] = (0.0, math.inf),
) -> dict[str, int]:
    """The ranks of least summed error under the budget, dense among the choices: each matrix goes down the lower convex
    hull of (numbers stored, error), the step of least error per number saved first. Exact but for one step: no other
    choice of as few numbers has less error.

    error: of a matrix, by its name, at the share of its squared values that is lost; that share by default, and
    infinite where the matrix must stay dense. within: the least and the largest rank, as shares of break-even. Raises
    BudgetTooSmall where the budget is too small.
    """
    budget = room(spectra.values(), param_fraction)
    measure = error or (lambda _, lost: lost)
    hulls = {
        key: _hull([one for one in _options(key, one, align, measure) if _allowed(one, spectra[key], within)])
        for key, one in spectra.items()
    }
    smallest = sum(hull[-1][0] for hull in hulls.values())
    if smallest > budget:
        least = (smallest + sum(one.beside for one in spectra.values())) / sum(one.whole for one in spectra.values())
        raise BudgetTooSmall(
            f"a budget of {param_fraction:g} of the parameters is too small for a rank of {align} in every matrix:"
            f" raise it,{' lower align,' if align > 1 else ''} or choose other matrices"
            if within[0] == 0
            else f"a budget of {param_fraction:g} of the parameters is too small: the smallest ranks allowed leave"
            f" {least:.3g} of them; raise it, or allow smaller ranks"
        )
    steps = sorted(
        ((after[1] - before[1]) / (before[0] - after[0]), order, place, key)
        for order, (key, hull) in enumerate(hulls.items())
        for place, (before, after) in enumerate(itertools.pairwise(hull))
    )
    stored, at = sum(one.size for one in spectra.values()), dict.fromkeys(hulls, 0)
    for _, _, place, key in steps:
        if stored <= budget:
            break
        stored -= hulls[key][place][0] - hulls[key][place + 1][0]
        at[key] = place + 1
    return _smaller(spectra, {key: hulls[key][place][2] for key, place in at.items()})


_Option = tuple[int, float, int]
"""Numbers stored, error, rank."""


def _options(key: str, one: Spectrum, align: int, error: Callable[[str, float], float]) -> list[_Option]:
    """Dense at no error, and every multiple that is smaller, from the largest down."""
    squares = [value * value for value in one.values]
    total, tail = sum(squares), 0.0
    options: list[_Option] = []
    for rank in range(len(squares) - 1, 0, -1):
        tail += squares[rank]
        if rank % align == 0 and rank * one.cost < one.size:
            options.append((rank * one.cost, error(key, tail / total if total > 0 else 0.0), rank))
    return [(one.size, 0.0, min(one.shape)), *options]


def _allowed(option: _Option, one: Spectrum, within: tuple[float, float]) -> bool:
    least, most = within
    dense = option[0] == one.size
    return dense or (math.isfinite(option[1]) and least * one.break_even <= option[2] <= most * one.break_even)


def depth_weight(layer: int | None, layers: int, exponent: float, strength: float) -> float:
    """LEMS's weight of a layer, counted from 0: `1 + strength h`, h from 1 in the first layer to 0 in the last, between
    them as the sum of `(k + 1)^-exponent` over the layers k from this one on. 1 for a matrix outside the layers.
    """
    if layer is None or layers < 2:
        return 1.0
    sums = list(itertools.accumulate((number + 1) ** -exponent for number in reversed(range(layers))))[::-1]
    return 1 + strength * (sums[layer] - sums[-1]) / (sums[0] - sums[-1])


def lems(
    spectra: Mapping[str, Spectrum],
    divergences: Mapping[str, tuple[int, float]],
    weights: Mapping[str, float],
    param_fraction: float,
    align: int = 8,
    within: tuple[float, float] = (0.1, 0.95),
) -> dict[str, int]:
    """LEMS (ICML 2026): the ranks of least summed error `weight D tail(r) / tail(r_0)`, by `least_error`.

    divergences: of each matrix the rank r_0 at which it was measured by itself, and what was measured, D; infinite or
    NaN where the matrix must stay dense. Uniform ranks where these should promise less, since `least_error` is exact
    but for one step (ours, as is the hull in the place of a solver). Raises BudgetTooSmall where the
    budget is too small.
    """

    price = {key: weights[key] * _per_share(one, *divergences[key]) for key, one in spectra.items()}
    ranks = least_error(spectra, param_fraction, align, lambda key, lost: price[key] * lost, within)
    try:
        even = scaled(spectra, uniform(spectra), param_fraction, align)
    except BudgetTooSmall:
        return ranks
    fits = all(
        key in even and within[0] * one.break_even <= even[key] <= within[1] * one.break_even
        for key, one in spectra.items()
    )

    def promised(choice: Mapping[str, int]) -> float:
        return sum(price[key] * _lost(spectra[key], rank) for key, rank in choice.items())

    return even if fits and promised(even) < promised(ranks) else ranks


def _lost(one: Spectrum, rank: int) -> float:
    """The share of the squared values beyond a rank."""
    total = one.tail(0)
    return one.tail(rank) / total if total > 0 else 0.0


def _per_share(one: Spectrum, rank: int, measured: float) -> float:
    """What is measured at a rank, for the whole of the squared values; what is below zero is rounding."""
    lost = _lost(one, rank)
    if not math.isfinite(measured):
        return math.inf
    return max(0.0, measured) / lost if lost > 0 else 0.0


def _hull(options: Sequence[_Option]) -> list[_Option]:
    """The lower convex hull, from the largest to the smallest: errors per number saved only rise along it."""
    hull: list[_Option] = []
    for option in options:
        while hull and option[1] <= hull[-1][1]:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(before: _Option, after: _Option) -> float:
    return (after[1] - before[1]) / (before[0] - after[0])
