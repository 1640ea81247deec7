"""Ranks for all matrices at once, by a rule on the spectra of what a factorisation truncates. Papers publish a rule and
a factorisation together; here any rule goes with any factorisation, so that one can see which of the two helps.

Spectra are of the unedited model. Nothing is tried before the outcome, one ordinary step with a rank for each matrix;
matrices that stay dense are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness_ext.calibration.sinks import SeenTokens
from harness_ext.errors import UserError
from harness_ext.methods import allocation
from harness_ext.methods.search_registry import Fraction, SearchResult, search

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator

Factorisation = Literal["feature_space", "anchored", "two_sided_svd", "truncate_svd"]
_STATISTICS: dict[str, frozenset[str]] = {
    "feature_space": frozenset({"input_second_moment"}),
    "anchored": frozenset({"input_second_moment"}),
    "two_sided_svd": frozenset({"input_second_moment", "gradient_second_moment"}),
    "truncate_svd": frozenset(),
}
"""What the spectra of each are made of, in the unedited model."""
_SETTINGS: dict[str, dict[str, Any]] = {"feature_space": {"centred": False, "bias": False}}


@search(
    summary="A rank for every matrix under one budget, by a rule on the spectra of what is truncated.",
    trials=lambda shapes, settings: int(any(min(shape) > 1 for shape in shapes)),
    statistics=("input_second_moment",),
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
    last_blocks: Annotated[int, Field(ge=1)] | None = None,
) -> SearchResult:
    """The rules are those of `harness_ext.methods.allocation`. param_fraction: of the numbers in all matrices together,
    stored as factors where that is smaller. align: ranks are multiples of it. value_shift: of `d-rank`, the share of
    queries and keys that is handed to values. last_blocks: only so many layers, the last ones, are cut, and pay for
    all. Raises UserError for a budget that cannot be met so.
    """
    spectra = dict(_spectra(evaluator, factorisation))
    dense = _before_the_last(evaluator, last_blocks)
    if rule == "least-error":
        ranks = _least_error(spectra, dense, param_fraction, align)
    else:
        wanted = {
            "uniform": lambda: allocation.uniform(spectra),
            "d-rank": lambda: allocation.d_rank(spectra, value_shift),
            "svd-llm-v2": lambda: allocation.svd_llm_v2(spectra, param_fraction),
        }[rule]()
        ranks = allocation.scaled(spectra, wanted | dict.fromkeys(dense, math.inf), param_fraction, align)
    evaluator.context.progress.advance(1)
    order = [matrix.key for matrix in evaluator.matrices if matrix.key in ranks]
    assert evaluator.step.calibration is not None
    learned = {"calibration": evaluator.step.calibration.model_dump(mode="json")} if _STATISTICS[factorisation] else {}
    step = {
        "method": factorisation,
        "matrices": order,
        "keep": {"ranks": {key: ranks[key] for key in order}},
        **_SETTINGS.get(factorisation, {}),
        **learned,
    }
    return SearchResult(
        (step,) if order else (),
        (f"{len(order)} of {len(spectra)} matrices are cut, and {len(spectra) - len(order)} stay dense",),
        reason="" if order else f"its budget, param_fraction {param_fraction:g}, asks for no smaller matrix",
    )


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
        raise UserError(
            f"the matrices before the last blocks hold {kept / whole:.3g} of the parameters, and the budget is"
            f" {param_fraction:g}: raise last_blocks or param_fraction"
        )
    return allocation.least_error(cut, min(1.0, left / (whole - kept)), align)


def _spectra(evaluator: CandidateEvaluator, factorisation: Factorisation) -> Iterator[tuple[str, allocation.Spectrum]]:
    names = _STATISTICS[factorisation]
    parts = evaluator.gather_in_parts(evaluator.matrices, names) if names else [(evaluator.matrices, {})]
    for matrices, found in parts:
        for matrix in matrices:
            learned = found.get(matrix.key, {})
            values = _values(evaluator.weight(matrix), factorisation, learned)
            seen = SeenTokens.of(learned)
            tokens = 1 if seen is None else seen.tokens
            yield matrix.key, allocation.Spectrum(matrix.shape, values.tolist(), _kind(matrix), tokens)


def _kind(matrix: Matrix) -> str:
    return matrix.role or matrix.parameter


def _values(weight: Tensor, factorisation: Factorisation, learned: Mapping[str, Tensor]) -> Tensor:
    """The singular values `[min(m, n)]` of what the factorisation truncates, descending."""
    import torch

    from harness_ext.methods.feature_space import output_spectrum
    from harness_ext.methods.two_sided_svd import weighted_outputs

    dense = weight.double()
    if factorisation == "truncate_svd":
        return torch.linalg.svdvals(dense)
    moment = learned["input_second_moment"].to(weight.device)
    if factorisation == "two_sided_svd":
        return weighted_outputs(dense, moment, learned["gradient_second_moment"].to(weight.device)).eigenvalues.sqrt()
    return output_spectrum(dense, moment)[0].sqrt()
