"""Ranks for all matrices at once, by a rule on the spectra of what a factorisation truncates. Papers publish a rule and
a factorisation together; here any rule goes with any factorisation, so that one can see which of the two helps.

Spectra are of the unedited model. Nothing is tried before the outcome, one ordinary step with a rank for each matrix,
but where the number of layers that are cut is searched; matrices that stay dense are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from harness_ext.errors import BudgetTooSmall, UserError
from harness_ext.methods import allocation
from harness_ext.methods.search_registry import Fraction, SearchResult, checking, gathering, refusing, search
from harness_ext.search.factorisations import (
    Factorisation,
    each_decomposed,
    edits_at,
    statistics_by_factorisation,
    step_of,
    tried_as,
)
from harness_ext.search.trials import least_moved

if TYPE_CHECKING:
    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator


SEARCHED = "search"
ENDS = 5
"""How many numbers of last layers are tried."""


def _contradiction(settings: Mapping[str, Any]) -> str:
    rule = settings["rule"]
    given = {
        "threshold": ("marchenko-pastur", settings["threshold"] is not None),
        "pooled": ("d-rank", settings["pooled"]),
        "value_shift": ("d-rank", settings["value_shift"] > 0),
    }
    if settings["last_blocks"] == SEARCHED and settings["param_fraction"] == 1:
        return "last_blocks: a search of them divides a budget, and a param_fraction of 1 is none; give a number"
    for name, (owner, asked) in given.items():
        if asked and rule != owner:
            mend = "set value_shift=0.0, or begin with least-error" if name == "value_shift" else "leave it out"
            return f"{name}: it belongs to the rule {owner}, and {rule} has none; {mend}"
    return ""


def _check(matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> None:
    flat = {matrix.key: allocation.Spectrum.flat(matrix.shape) for matrix in matrices}
    _Budget.of(settings).ranks(flat, _before_the_last(matrices, settings["last_blocks"]))


@refusing(_contradiction)
@checking(_check)
@gathering(by=statistics_by_factorisation, times=lambda settings: 2 if settings["last_blocks"] == SEARCHED else 1)
@search(
    summary="A rank for every matrix under one budget, by a rule on the spectra of what is truncated.",
    trials=lambda shapes, settings: (
        int(any(min(shape) > 1 for shape in shapes)) * (ENDS if settings["last_blocks"] == SEARCHED else 1)
    ),
    statistics=("input_second_moment",),
    revision=2,
)
def allocate_ranks(
    evaluator: CandidateEvaluator,
    /,
    *,
    factorisation: Factorisation = "feature_space",
    rule: allocation.Rule = "d-rank",
    param_fraction: Fraction = 0.8,
    align: Annotated[int, Field(ge=1)] = 1,
    value_shift: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    pooled: bool = False,
    last_blocks: Annotated[int, Field(ge=1)] | Literal["search"] | None = None,
    threshold: Annotated[float, Field(gt=0)] | None = None,
) -> SearchResult:
    """The rules are those of `harness_ext.methods.allocation`. param_fraction: of the numbers in all matrices together,
    stored as factors where that is smaller. align: ranks are multiples of it. value_shift: of `d-rank`, the share of
    queries and keys that is handed to values; pooled: one budget for all kinds of matrices rather than one for each.
    last_blocks: only so many of the chosen layers, the last ones, are cut, and pay for all; `search` tries up to five
    numbers of them and takes the one that moves predictions on the documents least (ERC-SVD, arXiv:2505.20112, goes by
    the error of the last layer). threshold: of `marchenko-pastur`, the edge in units of that of the noise, 1 unless
    given; by that rule a param_fraction of 1 leaves ranks as they are, which is without a budget.

    Raises BudgetTooSmall for a budget that cannot be met so, and UserError for more last_blocks than there are layers,
    both before anything is gathered.
    """
    spectra = {matrix.key: one for matrix, one, _ in each_decomposed(evaluator, factorisation)}
    budget = _Budget(rule, param_fraction, align, value_shift, pooled, threshold)
    if last_blocks == SEARCHED:
        return _of_several_ends(evaluator, factorisation, spectra, budget)
    ranks = budget.ranks(spectra, _before_the_last(evaluator.matrices, last_blocks))
    evaluator.context.progress.advance(1)
    return SearchResult(
        (step_of(evaluator, factorisation, ranks),) if ranks else (),
        (_cut_of(ranks, spectra),),
        reason="" if ranks else _nothing_smaller(rule, param_fraction),
    )


class _Budget(NamedTuple):
    """The settings of `allocate_ranks` that ranks follow from."""

    rule: allocation.Rule
    param_fraction: float
    align: int
    value_shift: float
    pooled: bool
    threshold: float | None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> _Budget:
        return cls(**{name: settings[name] for name in cls._fields})

    def ranks(self, spectra: Mapping[str, allocation.Spectrum], dense: Collection[str]) -> dict[str, int]:
        """Of the matrices that are made smaller. dense: those that may not be: they take their whole size out of the
        budget, and the rule is that of the others, at what is left. Raises BudgetTooSmall.
        """
        cut = {key: one for key, one in spectra.items() if key not in dense}
        whole, free = (sum(one.size for one in group) for group in (spectra.values(), cut.values()))
        left = self.param_fraction * whole - (whole - free)
        if left <= 0:
            raise BudgetTooSmall(
                f"the matrices before the last blocks hold {1 - free / whole:.3g} of the parameters, and the budget is"
                f" {self.param_fraction:g}: raise last_blocks or param_fraction"
            )
        fraction = min(1.0, left / free)
        if self.rule == "least-error":
            return allocation.least_error(cut, fraction, self.align)
        if self.rule == "marchenko-pastur":
            above = allocation.marchenko_pastur(cut, 1.0 if self.threshold is None else self.threshold)
            return allocation.at_most(cut, above, fraction, self.align)
        wanted = {
            "uniform": lambda: allocation.uniform(cut),
            "d-rank": lambda: allocation.d_rank(cut, fraction, self.value_shift, self.pooled),
            "svd-llm-v2": lambda: allocation.svd_llm_v2(cut, fraction),
        }[self.rule]()
        return allocation.scaled(cut, wanted, fraction, self.align)


def _of_several_ends(
    evaluator: CandidateEvaluator,
    factorisation: Factorisation,
    spectra: Mapping[str, allocation.Spectrum],
    budget: _Budget,
) -> SearchResult:
    """Ranks for a few numbers of last layers that meet the budget, each tried; those that move predictions least."""
    found: dict[int, dict[str, int]] = {}
    layers = len(_layers_of(evaluator.matrices))
    for count in _ends(layers, budget.param_fraction):
        try:
            found[count] = budget.ranks(spectra, _before_the_last(evaluator.matrices, count))
        except BudgetTooSmall:
            # A few layers may hold less than the budget asks for; all of them are the budget without this setting.
            if count == layers:
                raise
    largest = {key: max(ranks.get(key, 0) for ranks in found.values()) for key in spectra}
    factors = {}
    for matrix, _, made in each_decomposed(evaluator, factorisation):
        if largest[matrix.key]:
            left, right = (factor.to(evaluator.weight(matrix)) for factor in made.serving(largest[matrix.key]))
            factors[matrix.key] = left.cpu(), right.cpu()
    evaluator.measure_divergence()
    trials = [
        evaluator.try_together(
            edits_at(evaluator, factors, ranks), step_of(evaluator, factorisation, ranks) | {"last_blocks": count}
        )
        for count, ranks in found.items()
    ]
    best = least_moved(trials)
    count = best.setting["last_blocks"]
    told = (
        f"cutting the last {count} of {layers} layers moves predictions by {best.divergence:.3g} nats, the least; tried"
        f" were the last {', '.join(map(str, found))}"
    )
    return SearchResult(
        (step_of(evaluator, factorisation, found[count]),),
        (_cut_of(found[count], spectra), told, *tried_as(factorisation)),
    )


def _ends(layers: int, param_fraction: float) -> list[int]:
    """Up to so many numbers of last layers, evenly from the fewest that could pay for all to all of them."""
    fewest = min(layers, math.floor((1 - param_fraction) * layers + 1e-9) + 1)
    return sorted({round(fewest + place * (layers - fewest) / (ENDS - 1)) for place in range(ENDS)})


def _cut_of(ranks: Mapping[str, int], spectra: Mapping[str, allocation.Spectrum]) -> str:
    return f"{len(ranks)} of {len(spectra)} matrices are cut, and {len(spectra) - len(ranks)} stay dense"


def _layers_of(matrices: Sequence[Matrix]) -> list[int]:
    """The layers that the matrices of the search are in, in order."""
    return sorted({matrix.layer for matrix in matrices if matrix.layer is not None})


def _nothing_smaller(rule: allocation.Rule, param_fraction: float) -> str:
    if rule == "marchenko-pastur" and param_fraction == 1:
        return "every matrix has more components above the edge of its noise than two smaller factors could hold"
    return f"its budget, param_fraction {param_fraction:g}, asks for no smaller matrix"


def _before_the_last(matrices: Sequence[Matrix], last_blocks: int | Literal["search"] | None) -> list[str]:
    """The matrices that lie before the last so many of the layers that the search is among; none without a number.
    Raises UserError where there are fewer.
    """
    if not isinstance(last_blocks, int):
        return []
    layers = _layers_of(matrices)
    if last_blocks > len(layers):
        raise UserError(
            f"last_blocks: {last_blocks} layers are asked for, and the chosen matrices are in {len(layers)}"
        )
    before = layers[: len(layers) - last_blocks]
    return [matrix.key for matrix in matrices if matrix.layer in before]
