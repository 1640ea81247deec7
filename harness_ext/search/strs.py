"""Ranks by the sensitivity of each matrix: ASVD's search (STRS, arXiv:2312.05821).

Every matrix is tried by itself at several sizes, and all of these are put in a row, the highest perplexity first. From
some place in the row on everything is allowed, and each matrix takes the smallest of its own that is; the budget says
which place.

Ours: the place is the last from which on the plan meets the budget, where the released search ends at the last it
tried; decompositions are exact and made once; a matrix of which nothing is allowed is dense, and costs what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from harness_ext.errors import BudgetTooSmall
from harness_ext.methods.search_registry import Fraction, Fractions, SearchResult, checking, gathering, search
from harness_ext.model.size import stored_parameters
from harness_ext.search.factorisations import (
    Factorisation,
    each_decomposed,
    statistics_by_factorisation,
    step_of,
    tried_as,
)

if TYPE_CHECKING:
    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator

Shapes = Mapping[str, tuple[int, int]]
SIXTHS: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Sensitivity(NamedTuple):
    """One matrix at one rank, by itself. loss: of the calibration documents; the log of the perplexity."""

    key: str
    rank: int
    loss: float


def ranks_at(shape: tuple[int, int], fractions: Sequence[float], align: int = 1) -> list[int]:
    """The ranks, ascending, whose factors hold at most these fractions of a matrix `[m, n]`, in multiples of `align`;
    those that would hold as much as the matrix, or nothing, are left out.
    """
    rows, columns = shape
    even = rows * columns / (rows + columns)
    ranks = {math.floor(fraction * even / align + 1e-9) * align for fraction in fractions}
    return sorted(rank for rank in ranks if 0 < rank < even and rank < min(shape))


def _count(shapes: Sequence[tuple[int, int]], settings: Mapping[str, Any]) -> int:
    return sum(len(ranks_at(shape, settings["fractions"], settings["align"])) for shape in shapes)


def _check(matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> None:
    shapes = {matrix.key: matrix.shape for matrix in matrices}
    offered = {key: ranks_at(shape, settings["fractions"], settings["align"]) for key, shape in shapes.items()}
    share = _stored(shapes, {key: ranks[0] for key, ranks in offered.items() if ranks}) / _stored(shapes, {})
    if share > settings["param_fraction"]:
        raise BudgetTooSmall(
            f"a budget of {settings['param_fraction']:g} of the parameters is too small: the smallest fractions leave"
            f" {share:.3g} of them; raise it, or give smaller fractions"
        )


@checking(_check)
@gathering(by=statistics_by_factorisation)
@search(
    summary="Try each matrix by itself at several ranks; take the least harmful ones that meet one budget.",
    trials=_count,
    statistics=("input_magnitude",),
)
def strs(
    evaluator: CandidateEvaluator,
    /,
    *,
    factorisation: Factorisation = "activation_aware_svd",
    param_fraction: Fraction = 0.8,
    fractions: Fractions = SIXTHS,
    align: Annotated[int, Field(ge=1)] = 1,
) -> SearchResult:
    """param_fraction: of the numbers in all matrices together, stored as factors where that is smaller. fractions: of
    the numbers of each matrix, at which it is tried. align: ranks are multiples of it.

    Raises BudgetTooSmall where the smallest fractions of all do not meet the budget, before anything is tried.
    """
    shapes = {matrix.key: matrix.shape for matrix in evaluator.matrices}
    offered = {key: ranks_at(shape, fractions, align) for key, shape in shapes.items()}
    tried = [] if param_fraction == 1 else _tried(evaluator, factorisation, offered)
    ranks = allowed(shapes, tried, param_fraction)
    return SearchResult(
        (step_of(evaluator, factorisation, ranks),) if ranks else (),
        (
            f"{len(ranks)} of {len(shapes)} matrices are cut, and {len(shapes) - len(ranks)} stay dense",
            *(tried_as(factorisation) if tried else ()),
        ),
        reason="" if ranks else f"its budget, param_fraction {param_fraction:g}, asks for no smaller matrix",
    )


def _tried(
    evaluator: CandidateEvaluator, factorisation: Factorisation, offered: Mapping[str, Sequence[int]]
) -> list[Sensitivity]:
    from harness_ext.search.candidates import Nested

    found: list[Sensitivity] = []
    for matrix, _, made in each_decomposed(evaluator, factorisation):
        ranks = offered[matrix.key]
        if not ranks:
            continue
        weight = evaluator.weight(matrix)
        left, right = (factor.to(weight) for factor in made.serving(ranks[-1]))
        settings = [step_of(evaluator, factorisation, {matrix.key: rank}) for rank in ranks]
        trials = evaluator.try_out(matrix, Nested(left, right, tuple(ranks)), settings, once=True)
        found += [Sensitivity(matrix.key, rank, trial.loss) for rank, trial in zip(ranks, trials, strict=True)]
        del made, weight, left, right
    return found


def allowed(shapes: Shapes, tried: Sequence[Sensitivity], param_fraction: float) -> dict[str, int]:
    """A rank for each matrix that is to be made smaller: the smallest of its own from the last place on, in the order
    of losses, at which all together meet the budget; the others stay dense. Equal losses in the order given, and one
    that is not finite before all others.
    """
    row = sorted(tried, key=lambda one: -one.loss if math.isfinite(one.loss) else -math.inf)
    budget = param_fraction * _stored(shapes, {})
    fits, fails = 0, len(row) + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _stored(shapes, _from(row, middle)) <= budget else (fits, middle)
    return _from(row, fits)


def _from(row: Sequence[Sensitivity], start: int) -> dict[str, int]:
    ranks: dict[str, int] = {}
    for one in row[start:]:
        ranks[one.key] = min(one.rank, ranks.get(one.key, one.rank))
    return ranks


def _stored(shapes: Shapes, ranks: Mapping[str, int]) -> int:
    return sum(
        stored_parameters(shape, ranks[key]) if key in ranks else shape[0] * shape[1] for key, shape in shapes.items()
    )
