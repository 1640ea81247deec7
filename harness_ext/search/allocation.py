"""Ranks for all matrices at once, by a rule on the spectra of what a factorisation truncates. Papers publish a rule and
a factorisation together; here any rule goes with any factorisation, so that one can see which of the two helps.

Spectra are of the unedited model. Nothing is tried before the outcome, one ordinary step with a rank for each matrix,
but where the number of layers that are cut is searched; matrices that stay dense are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from harness_ext.errors import BudgetTooSmall, UserError
from harness_ext.methods import allocation
from harness_ext.methods.search_registry import (
    Fraction,
    SearchResult,
    checking,
    gathering,
    refusing,
    search,
    trying_plans,
)
from harness_ext.search.factorisations import each_decomposed, edits_at, statistics_by_factorisation, tried_as
from harness_ext.search.pieces import UNTRIED, Allocated, Piece, pieces_of, spectra_of, step_at
from harness_ext.search.trials import least_moved

if TYPE_CHECKING:
    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator


SEARCHED = "search"
ENDS = 5
"""How many numbers of last layers are tried."""


def _contradiction(settings: Mapping[str, Any]) -> str:
    rule, factorisation = settings["rule"], settings["factorisation"]
    given = {
        "threshold": ("marchenko-pastur", settings["threshold"] is not None),
        "pooled": ("d-rank", settings["pooled"]),
        "value_shift": ("d-rank", settings["value_shift"] > 0),
    }
    for name, owner in (("layers_in_group", "basis_sharing"), ("prime", "sola")):
        if settings[name] is not None and factorisation != owner:
            return f"{name}: it belongs to the factorisation {owner}, and {factorisation} has none; leave it out"
    if settings["last_blocks"] == SEARCHED and factorisation in UNTRIED:
        return (
            f"last_blocks: a search of them tries edits of single matrices out, and those of {factorisation} are none;"
            " give a number, or choose another factorisation, such as feature_space"
        )
    if settings["last_blocks"] == SEARCHED and settings["param_fraction"] == 1:
        return "last_blocks: a search of them divides a budget, and a param_fraction of 1 is none; give a number"
    for name, (owner, asked) in given.items():
        if asked and rule != owner:
            mend = "set value_shift=0.0, or begin with least-error" if name == "value_shift" else "leave it out"
            return f"{name}: it belongs to the rule {owner}, and {rule} has none; {mend}"
    return ""


def _check(matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> None:
    pieces = pieces_of(_cuttable(matrices, settings["last_blocks"]), settings)
    _Budget.of(settings).ranks({piece.key: piece.flat for piece in pieces}, _numbers(matrices))


@trying_plans(by=lambda settings: settings["last_blocks"] == SEARCHED)
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
    factorisation: Allocated = "feature_space",
    rule: allocation.Rule = "d-rank",
    param_fraction: Fraction = 0.8,
    align: Annotated[int, Field(ge=1)] = 1,
    value_shift: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    pooled: bool = False,
    last_blocks: Annotated[int, Field(ge=1)] | Literal["search"] | None = None,
    threshold: Annotated[float, Field(gt=0)] | None = None,
    layers_in_group: Annotated[int, Field(ge=1)] | None = None,
    prime: Annotated[float, Field(ge=0, lt=1)] | None = None,
) -> SearchResult:
    """The rules are those of `harness_ext.methods.allocation`. param_fraction: of the numbers in all matrices together,
    stored as factors where that is smaller. align: ranks are multiples of it. value_shift: of `d-rank`, the share of
    queries and keys that is handed to values; pooled: one budget for all kinds of matrices rather than one for each.
    last_blocks: only so many of the chosen layers, the last ones, are cut, and pay for all; `search` tries up to five
    numbers of them and takes the one that moves predictions on the documents least (ERC-SVD, arXiv:2505.20112, goes by
    the error of the last layer). threshold: of `marchenko-pastur`, the edge in units of that of the noise, 1 unless
    given; by that rule a param_fraction of 1 leaves ranks as they are, which is without a budget.

    Of `basis_sharing` a rank is of a group, of so many layers_in_group, as its own recipe has them unless given; of
    `sola` it is of what is truncated beside the prime share of units, which stay and take their numbers out of the
    budget. Both take a number of last_blocks, and no search of it, which would try their edits out.

    Raises BudgetTooSmall for a budget that cannot be met so, and UserError for more last_blocks than there are layers,
    both before anything is gathered.
    """
    settings = {"factorisation": factorisation, "layers_in_group": layers_in_group, "prime": prime}
    budget = _Budget(rule, param_fraction, align, value_shift, pooled, threshold)
    pieces = pieces_of(_cuttable(evaluator.matrices, last_blocks), settings)
    spectra = spectra_of(evaluator, pieces, settings)
    if last_blocks == SEARCHED:
        return _of_several_ends(evaluator, settings, spectra, budget)
    ranks = budget.ranks({piece.key: spectra[piece.key] for piece in pieces}, _numbers(evaluator.matrices))
    evaluator.context.progress.advance(1)
    return SearchResult(
        (step_at(evaluator, pieces, ranks, settings),) if ranks else (),
        (_cut_of(ranks, pieces, evaluator.matrices),),
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

    def ranks(self, cut: Mapping[str, allocation.Spectrum], whole: int) -> dict[str, int]:
        """Of those that are made smaller, among those that may be. whole: the numbers of all matrices: those that may
        not be cut take theirs out of the budget, and the rule is that of the others, at what is left. Raises
        BudgetTooSmall.
        """
        free = sum(one.whole for one in cut.values())
        left = self.param_fraction * whole - (whole - free)
        if left <= 0:
            raise BudgetTooSmall(
                f"the matrices before the last blocks hold {1 - free / whole:.3g} of the parameters, and the budget is"
                f" {self.param_fraction:g}: raise last_blocks or param_fraction"
            )
        fraction = min(1.0, left / free)
        beside = sum(one.beside for one in cut.values())
        if beside and allocation.room(cut.values(), fraction) <= 0:
            raise BudgetTooSmall(
                f"prime units alone take {beside / free:.3g} of the parameters of what may be cut, and it may keep"
                f" {fraction:.3g}: lower prime, or raise param_fraction"
            )
        if self.rule == "least-error":
            return allocation.least_error(cut, fraction, self.align)
        if self.rule == "marchenko-pastur":
            above = allocation.marchenko_pastur(cut, 1.0 if self.threshold is None else self.threshold)
            return allocation.at_most(cut, above, fraction, self.align)
        wanted = {
            "uniform": lambda: allocation.uniform(cut, fraction),
            "d-rank": lambda: allocation.d_rank(cut, fraction, self.value_shift, self.pooled),
            "svd-llm-v2": lambda: allocation.svd_llm_v2(cut, fraction),
        }[self.rule]()
        return allocation.scaled(cut, wanted, fraction, self.align)


def _of_several_ends(
    evaluator: CandidateEvaluator,
    settings: Mapping[str, Any],
    spectra: Mapping[str, allocation.Spectrum],
    budget: _Budget,
) -> SearchResult:
    """Ranks for a few numbers of last layers that meet the budget, each tried; those that move predictions least."""
    factorisation, pieces = settings["factorisation"], pieces_of(evaluator.matrices, settings)
    found: dict[int, dict[str, int]] = {}
    layers = len(_layers_of(evaluator.matrices))
    for count in _ends(layers, budget.param_fraction):
        try:
            cut = {matrix.key: spectra[matrix.key] for matrix in _cuttable(evaluator.matrices, count)}
            found[count] = budget.ranks(cut, _numbers(evaluator.matrices))
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
            del left, right
        del made
    evaluator.measure_divergence()
    trials = [
        evaluator.try_together(
            edits_at(evaluator, factors, ranks),
            step_at(evaluator, pieces, ranks, settings) | {"last_blocks": count},
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
        (step_at(evaluator, pieces, found[count], settings),),
        (_cut_of(found[count], pieces, evaluator.matrices), told, *tried_as(factorisation)),
    )


def _ends(layers: int, param_fraction: float) -> list[int]:
    """Up to so many numbers of last layers, evenly from the fewest that could pay for all to all of them."""
    fewest = min(layers, math.floor((1 - param_fraction) * layers + 1e-9) + 1)
    return sorted({round(fewest + place * (layers - fewest) / (ENDS - 1)) for place in range(ENDS)})


def _cut_of(ranks: Mapping[str, int], pieces: Sequence[Piece], matrices: Sequence[Matrix]) -> str:
    cut = sum(len(piece.matrices) for piece in pieces if piece.key in ranks)
    return f"{cut} of {len(matrices)} matrices are cut, and {len(matrices) - cut} stay dense"


def _layers_of(matrices: Sequence[Matrix]) -> list[int]:
    """The layers that the matrices of the search are in, in order."""
    return sorted({matrix.layer for matrix in matrices if matrix.layer is not None})


def _nothing_smaller(rule: allocation.Rule, param_fraction: float) -> str:
    if rule == "marchenko-pastur" and param_fraction == 1:
        return "every matrix has more components above the edge of its noise than two smaller factors could hold"
    return f"its budget, param_fraction {param_fraction:g}, asks for no smaller matrix"


def _numbers(matrices: Sequence[Matrix]) -> int:
    return sum(math.prod(matrix.shape) for matrix in matrices)


def _cuttable(matrices: Sequence[Matrix], last_blocks: int | Literal["search"] | None) -> list[Matrix]:
    """All but the matrices that lie before the last so many of the layers that the search is among; all without a
    number. Raises UserError where there are fewer layers.
    """
    if not isinstance(last_blocks, int):
        return list(matrices)
    layers = _layers_of(matrices)
    if last_blocks > len(layers):
        raise UserError(
            f"last_blocks: {last_blocks} layers are asked for, and the chosen matrices are in {len(layers)}"
        )
    before = layers[: len(layers) - last_blocks]
    return [matrix for matrix in matrices if matrix.layer not in before]
