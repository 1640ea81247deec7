"""LEMS (ICML 2026): ranks from one measurement of every matrix, weighed by depth, and a few whole plans on trial.

Each matrix is tried by itself at a low rank; how far the model's predictions move then, and the spectrum of what is
truncated, say what any other rank would cost. A multiple-choice knapsack makes a plan of that under the budget, dense
among the choices; plans of several weights of depth are tried, and the one whose predictions move least is made.

Ours: predictions are compared at the tokens of the right answers of the calibration documents, where the paper takes
every token of texts; weights of depth are a grid, and the knapsack goes down convex hulls (`allocation.lems`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from harness_ext.methods import allocation
from harness_ext.methods.allocation import Spectrum
from harness_ext.methods.search_registry import (
    Fraction,
    SearchResult,
    checking,
    gathering,
    refusing,
    search,
    trying_plans,
)
from harness_ext.search.factorisations import (
    Factorisation,
    each_decomposed,
    edits_at,
    statistics_by_factorisation,
    step_of,
    tried_as,
)
from harness_ext.search.trials import Trial, least_moved

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator

_Depth = Annotated[float, Field(ge=0)]
_Depths = Annotated[tuple[_Depth, ...], Field(min_length=1)]
EXPONENTS: tuple[float, ...] = (0.0, 1.5, 3.0)
STRENGTHS: tuple[float, ...] = (0.0, 2.0, 4.0, 7.0)
"""With these, ten weights of depth within the published ranges, [0, 3] and [0, 7]."""


class _MeasuredAlone(NamedTuple):
    """What is known of every matrix, by `Matrix.key`. divergences: the rank at which it was tried by itself, and how
    far predictions moved. factors: those of its largest rank, in main memory.
    """

    spectra: dict[str, Spectrum]
    divergences: dict[str, tuple[int, float]]
    factors: dict[str, tuple[Tensor, Tensor]]


def _depths(settings: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Exponent and strength of each weight of depth; without a strength all exponents are one."""
    pairs = itertools.product(settings["strengths"], settings["exponents"])
    return list(dict.fromkeys((exponent if strength else 0.0, strength) for strength, exponent in pairs))


def _count(shapes: Sequence[tuple[int, int]], settings: Mapping[str, Any]) -> int:
    measured = sum(min(shape) > 1 for shape in shapes)
    return measured + len(_depths(settings)) if measured else 0


def _contradiction(settings: Mapping[str, Any]) -> str:
    least, most = settings["least"], settings["most"]
    return f"least: {least:g} is above most, {most:g}, and no rank lies between them" if least > most else ""


def _check(matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> None:
    within = settings["least"], settings["most"]
    flat = {matrix.key: Spectrum.flat(matrix.shape) for matrix in matrices if min(matrix.shape) > 1}
    allocation.least_error(flat, settings["param_fraction"], settings["align"], within=within)


@trying_plans(by=lambda settings: settings["param_fraction"] < 1)
@gathering(by=statistics_by_factorisation)
@refusing(_contradiction)
@checking(_check)
@search(
    summary="Measure each matrix by itself at a low rank; make the plan of ranks that moves predictions least.",
    trials=_count,
    revision=2,
    statistics=("input_second_moment", "gradient_second_moment"),
)
def lems(
    evaluator: CandidateEvaluator,
    /,
    *,
    factorisation: Factorisation = "two_sided_svd",
    param_fraction: Fraction = 0.8,
    align: Annotated[int, Field(ge=1)] = 8,
    least: Fraction = 0.1,
    most: Fraction = 0.95,
    measured_at: Fraction = 0.1,
    exponents: _Depths = EXPONENTS,
    strengths: _Depths = STRENGTHS,
) -> SearchResult:
    """param_fraction: of the numbers in all matrices together, stored as factors where that is smaller. align: ranks
    are multiples of it. least, most: the ranks to choose from besides dense, as shares of break-even; measured_at: the
    one at which each matrix is tried by itself, likewise. exponents, strengths: of the weights of depth, every one with
    every other.

    Raises BudgetTooSmall for a budget that cannot be met so, before anything is gathered, and VariantFailed where no
    plan's predictions are finite.
    """
    if param_fraction == 1:
        return _dense()
    measured = _measured(evaluator, factorisation, measured_at, most)

    def planned(exponent: float, strength: float) -> dict[str, int]:
        layers = evaluator.weights.layout.layers
        weights = {
            matrix.key: allocation.depth_weight(matrix.layer, layers, exponent, strength)
            for matrix in evaluator.matrices
        }
        return allocation.lems(measured.spectra, measured.divergences, weights, param_fraction, align, (least, most))

    plans: dict[str, Trial] = {}
    for exponent, strength in _depths({"exponents": exponents, "strengths": strengths}):
        ranks = planned(exponent, strength)
        if not ranks:
            return _dense()
        step = step_of(evaluator, factorisation, ranks)
        if str(step["keep"]) not in plans:
            setting = step | {"exponent": exponent, "strength": strength}
            plans[str(step["keep"])] = evaluator.try_together(edits_at(evaluator, measured.factors, ranks), setting)
    return _outcome(list(plans.values()), measured)


def _dense() -> SearchResult:
    return SearchResult((), reason="its budget, param_fraction 1, asks for no smaller matrix")


def _measured(
    evaluator: CandidateEvaluator, factorisation: Factorisation, measured_at: float, most: float
) -> _MeasuredAlone:
    """Every matrix tried by itself, one after another, none on top of another."""
    from harness_ext.search.candidates import Nested

    evaluator.measure_divergence()
    found = _MeasuredAlone({}, {}, {})
    for matrix, spectrum, made in each_decomposed(evaluator, factorisation):
        if min(matrix.shape) < 2:
            continue
        rank = max(1, math.floor(measured_at * spectrum.break_even + 1e-9))
        largest = max(rank, math.floor(most * spectrum.break_even + 1e-9))
        weight = evaluator.weight(matrix)
        left, right = (factor.to(weight) for factor in made.serving(largest))
        setting = step_of(evaluator, factorisation, {matrix.key: rank})
        (trial,) = evaluator.try_out(matrix, Nested(left, right, (rank,)), [setting], once=True)
        assert trial.divergence is not None, "measured from here on"
        found.spectra[matrix.key] = spectrum
        found.divergences[matrix.key] = rank, trial.divergence
        found.factors[matrix.key] = left.cpu(), right.cpu()
        del made, weight, left, right
    return found


def _outcome(trials: Sequence[Trial], measured: _MeasuredAlone) -> SearchResult:
    """What it comes to: the plan whose predictions moved least."""
    best = least_moved(trials)
    step = {name: value for name, value in best.setting.items() if name not in ("exponent", "strength")}
    cut, broken = len(step["matrices"]), [key for key, one in measured.divergences.items() if not math.isfinite(one[1])]
    notes = [
        f"{cut} of {len(measured.spectra)} matrices are cut, and {len(measured.spectra) - cut} stay dense",
        f"the plan of exponent {best.setting['exponent']:g} and strength {best.setting['strength']:g} moves predictions"
        f" by {best.divergence:.3g} nats; {len(trials)} plans were tried",
    ]
    if broken:
        notes.append(f"{len(broken)} matrices stay dense, since a low rank leaves no finite predictions: {broken[0]}")
    return SearchResult((step,), (*notes, *tried_as(step["method"])))
