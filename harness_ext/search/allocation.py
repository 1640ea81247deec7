"""Ranks for all matrices at once, by a rule on the spectra of what a factorisation truncates. Papers publish a rule and
a factorisation together; here any rule goes with any factorisation, so that one can see which of the two helps.

Spectra are of the unedited model. Nothing is tried before the outcome, one ordinary step with a rank for each matrix;
matrices that stay dense are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from harness_ext.errors import BudgetTooSmall
from harness_ext.methods import allocation
from harness_ext.methods.search_registry import Fraction, SearchResult, refusing, search
from harness_ext.search.factorisations import Factorisation, each_decomposed, step_of

if TYPE_CHECKING:
    from harness_ext.search.evaluator import CandidateEvaluator


def _contradiction(settings: Mapping[str, Any]) -> str:
    rule = settings["rule"]
    given = {
        "threshold": ("marchenko-pastur", settings["threshold"] is not None),
        "pooled": ("d-rank", settings["pooled"]),
    }
    for name, (owner, asked) in given.items():
        if asked and rule != owner:
            return f"{name}: it belongs to the rule {owner}, and {rule} has none; leave it out"
    return ""


@refusing(_contradiction)
@search(
    summary="A rank for every matrix under one budget, by a rule on the spectra of what is truncated.",
    trials=lambda shapes, settings: int(any(min(shape) > 1 for shape in shapes)),
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
    last_blocks: Annotated[int, Field(ge=1)] | None = None,
    threshold: Annotated[float, Field(gt=0)] | None = None,
) -> SearchResult:
    """The rules are those of `harness_ext.methods.allocation`. param_fraction: of the numbers in all matrices together,
    stored as factors where that is smaller. align: ranks are multiples of it. value_shift: of `d-rank`, the share of
    queries and keys that is handed to values; pooled: one budget for all kinds of matrices rather than one for each.
    last_blocks: only so many layers, the last ones, are cut, and pay for all. threshold: of `marchenko-pastur`, the
    edge in units of that of the noise, 1 unless given; by that rule a param_fraction of 1 leaves ranks as they are,
    which is without a budget. Raises BudgetTooSmall for a budget that cannot be met so.
    """
    spectra = {matrix.key: one for matrix, one, _ in each_decomposed(evaluator, factorisation)}
    dense = _before_the_last(evaluator, last_blocks)
    if rule == "least-error":
        ranks = _least_error(spectra, dense, param_fraction, align)
    elif rule == "marchenko-pastur":
        above = allocation.marchenko_pastur(spectra, 1.0 if threshold is None else threshold)
        ranks = allocation.at_most(spectra, above | dict.fromkeys(dense, math.inf), param_fraction, align)
    else:
        wanted = {
            "uniform": lambda: allocation.uniform(spectra),
            "d-rank": lambda: allocation.d_rank(spectra, param_fraction, value_shift, pooled),
            "svd-llm-v2": lambda: allocation.svd_llm_v2(spectra, param_fraction),
        }[rule]()
        ranks = allocation.scaled(spectra, wanted | dict.fromkeys(dense, math.inf), param_fraction, align)
    evaluator.context.progress.advance(1)
    return SearchResult(
        (step_of(evaluator, factorisation, ranks),) if ranks else (),
        (f"{len(ranks)} of {len(spectra)} matrices are cut, and {len(spectra) - len(ranks)} stay dense",),
        reason="" if ranks else _nothing_smaller(rule, param_fraction),
    )


def _nothing_smaller(rule: allocation.Rule, param_fraction: float) -> str:
    if rule == "marchenko-pastur" and param_fraction == 1:
        return "every matrix has more components above the edge of its noise than two smaller factors could hold"
    return f"its budget, param_fraction {param_fraction:g}, asks for no smaller matrix"


def _before_the_last(evaluator: CandidateEvaluator, last_blocks: int | None) -> list[str]:
    """The matrices that lie before the last so many layers."""
    if last_blocks is None:
        return []
    first = evaluator.weights.layout.layers - last_blocks
    return [matrix.key for matrix in evaluator.matrices if matrix.layer is not None and matrix.layer < first]


def _least_error(
    spectra: Mapping[str, allocation.Spectrum], dense: list[str], param_fraction: float, align: int
) -> dict[str, int]:
    """The rule for the matrices that may be cut: the others take their whole size out of the budget."""
    cut = {key: one for key, one in spectra.items() if key not in dense}
    whole, kept = (sum(one.size for one in group) for group in (spectra.values(), (spectra[key] for key in dense)))
    left = param_fraction * whole - kept
    if left <= 0:
        raise BudgetTooSmall(
            f"the matrices before the last blocks hold {kept / whole:.3g} of the parameters, and the budget is"
            f" {param_fraction:g}: raise last_blocks or param_fraction"
        )
    return allocation.least_error(cut, min(1.0, left / (whole - kept)), align)
