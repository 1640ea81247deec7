"""Ranks for all matrices at once by predicted changes of the loss: directions go whose changes cancel (zero-sum; after
arXiv:2602.02848). It ends in one ordinary step of `feature_space` with a rank for each matrix.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from harness_ext.calibration.by_layer import LearnedComponents
from harness_ext.errors import BudgetTooSmall
from harness_ext.linalg.moments import ridged
from harness_ext.methods import call
from harness_ext.methods.search_registry import Fraction, SearchResult, checking, gathering, search
from harness_ext.model.digests import moved
from harness_ext.model.size import stored_parameters
from harness_ext.search.factorisations import Remember, learned_by, step_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.methods import Svd
    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator

Shapes = Mapping[str, tuple[int, int]]
Effects = Mapping[str, Sequence[float]]
Ridge = Annotated[float, Field(gt=0)] | None
Align = Annotated[int, Field(ge=1)] | None
_MOMENT = frozenset({"input_second_moment"})
_EFFECTS = ("input_second_moment", "singular_value_gradients")


def check_floors(matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> None:
    """Raise BudgetTooSmall where the least ranks leave more than the budget; a `Search.check`."""
    shapes = {matrix.key: matrix.shape for matrix in matrices}
    param_fraction, min_fraction = settings["param_fraction"], settings["min_fraction"]
    floors = least_ranks(shapes, min_fraction, settings["align"])
    whole = sum(rows * columns for rows, columns in shapes.values())
    share = sum(stored_parameters(shape, floors[key]) for key, shape in shapes.items()) / whole
    if share > param_fraction:
        raise BudgetTooSmall(
            f"a budget of {param_fraction:g} of the parameters is too small for a rank of {min(floors.values())} in"
            f" every matrix: raise it,{' lower align,' if min(floors.values()) > 1 else ''} or choose other matrices"
            if min_fraction is None
            else f"a budget of {param_fraction:g} of the parameters is too small: min_fraction leaves {share:.3g} of"
            " them; raise the one, or lower the other"
        )


@checking(check_floors)
@gathering(times=lambda settings: 3 if settings["halves"] else 1)
@search(
    summary=(
        "A rank for every matrix under one budget: remove what the loss is predicted to lose least by, gains and losses"
        " balanced."
    ),
    trials=lambda shapes, settings: int(any(min(shape) > 1 for shape in shapes)),
    statistics=_EFFECTS,
    revision=2,
)
def zero_sum(
    evaluator: CandidateEvaluator,
    /,
    *,
    param_fraction: Fraction = 0.8,
    min_fraction: Fraction | None = None,
    ridge: Ridge = None,
    halves: bool | None = None,
    align: Align = None,
) -> SearchResult:
    """Directions of each matrix's outputs on the texts (the coordinates of truncation-aware whitening), and what the
    loss would change by, to first order, without each: `-u_i^T G W^T u_i`.

    That is `-s_i u_i^T G v_i` of the whitened matrix `W S`, `S S^T = X X^T`, since `s_i S^-T v_i = W^T u_i`; no
    whitening is ever computed. See `allotted` for which are removed. param_fraction: of the
    numbers in all matrices together, stored as factors where that is smaller. min_fraction: of the break-even rank,
    what stays of every matrix at least; published is 0.3 where 40 % are kept, and else none. ridge: see
    `feature_space`; 1e-4 as published. halves: ranks are also chosen from the first and from the second half of the
    documents, which takes as long again, and a note says how far they agree: with few documents the signs of the
    changes are noise. align: ranks are multiples of it (ours), of 1 unless given.

    Nothing is tried before the outcome, one step, `feature_space` as `svd-llm` has it; its score is the one trial. Both
    statistics are of all tokens; gradients without the sinks leave SmolLM2 much the same (1,036 and 1,063, of 734, as
    perplexity of WikiData's answers). Raises BudgetTooSmall where the least ranks leave more than the budget.
    """
    shapes = {matrix.key: matrix.shape for matrix in evaluator.matrices}
    floors = least_ranks(shapes, min_fraction, align)
    effects = effects_of(evaluator, ridge)
    ranks = allotted(shapes, effects, param_fraction, floors, align)
    removed = sum(effect for key, rank in ranks.items() for effect in effects[key][rank:])
    notes = [f"the predicted change of the loss is {removed:+.3g} nats"]
    if halves and len(evaluator.documents) > 1:
        middle = len(evaluator.documents) // 2
        parts = range(middle), range(middle, len(evaluator.documents))
        one, other = (
            allotted(shapes, effects_of(evaluator, ridge, part), param_fraction, floors, align) for part in parts
        )
        notes.append(agreement(shapes, one, other))
    evaluator.context.progress.advance(1)
    step = step_of(evaluator, "feature_space", ranks) | ({} if ridge is None else {"ridge": ridge})
    return SearchResult(
        (step,) if ranks else (),
        tuple(notes),
        reason="" if ranks else nothing_smaller(param_fraction),
    )


def nothing_smaller(param_fraction: float) -> str:
    """Why no step was found, a clause."""
    return f"its budget, param_fraction {param_fraction:g}, asks for no smaller matrix"


def effects_of(
    evaluator: CandidateEvaluator, ridge: float | None, part: Sequence[int] | None = None
) -> dict[str, list[float]]:
    """The predicted change of the loss of the model as it stands, without each direction, by `Matrix.key`. part: the
    places of the documents it is learned from, all unless given.
    """
    moments = evaluator.statistics.at_hand(learned_by("feature_space")) if part is None else None
    components = (
        LearnedComponents(
            _MOMENT, lambda matrix, learned: _output_basis(evaluator.standing_weight(matrix), learned, ridge)
        )
        if moments is None
        else lambda matrix: _output_basis(
            evaluator.weight(matrix), moments[matrix.key], ridge, evaluator.context.model.statistics_cache.remember
        )
    )
    gradients = evaluator.statistics.gather(
        evaluator.matrices, frozenset({"singular_value_gradients"}), components, part
    )
    return {matrix.key: (-gradients[matrix.key]["singular_value_gradients"]).tolist() for matrix in evaluator.matrices}


def _output_basis(weight: Tensor, learned: Mapping[str, Tensor], ridge: float | None, remember: Remember = call) -> Svd:
    """U and `U^T W` in the form of a decomposition, its singular values one: the gradient in them is then `u_i^T G W^T
    u_i`. Directions of no size, as a matrix has that was truncated, have an effect of zero: else the sign of rounding
    would decide what goes next, and two CPUs would choose other ranks. remember: as `feature_space` has it, which then
    finds the spectrum.
    """
    from harness_ext.methods import Svd
    from harness_ext.methods.feature_space import output_spectrum, spanned

    moment = moved(learned["input_second_moment"], weight.device)
    values, directions = remember(output_spectrum, weight, ridged(moment, ridge))
    outputs = directions.T @ weight.double()
    outputs[spanned(values) :] = 0
    return Svd(directions.to(weight), weight.new_ones(len(values)), outputs.to(weight))


def least_ranks(shapes: Shapes, min_fraction: float | None, align: int | None) -> dict[str, int]:
    """What stays of every matrix at least."""
    return {key: least_rank(shape, min_fraction, align) for key, shape in shapes.items()}


def least_rank(shape: tuple[int, int], min_fraction: float | None, align: int | None = None) -> int:
    """`max(1, ceil(f r*))`, r* the largest rank that is smaller than a dense `[m, n]`: `floor((m n - 1) / (m + n))`;
    rounded up to a multiple of align.
    """
    rows, columns = shape
    share = 0.0 if min_fraction is None else min_fraction
    rank = max(1, math.ceil(share * ((rows * columns - 1) // (rows + columns)) - 1e-9))
    return math.ceil(rank / (align or 1)) * (align or 1)


def agreement(
    shapes: Shapes, first: Mapping[str, int], second: Mapping[str, int], where: str = "from each half of the documents"
) -> str:
    """How far two choices of ranks agree, in words: how many are equal, and how far the others lie apart, dense ones at
    full rank. where: the two.
    """
    pairs = [(first.get(key, min(shape)), second.get(key, min(shape)), min(shape)) for key, shape in shapes.items()]
    equal = sum(one == other for one, other, _ in pairs)
    apart = sum(abs(one - other) / full for one, other, full in pairs) / len(pairs)
    return (
        f"{equal} of {len(pairs)} ranks are the same {where}; they lie {100 * apart:.1f} % of the full rank apart in"
        " the mean"
    )


def allotted(
    shapes: Shapes,
    effects: Effects,
    param_fraction: float,
    floors: Mapping[str, int] | None = None,
    align: int | None = None,
) -> dict[str, int]:
    """A rank for each matrix that is to be made smaller; the others stay dense.

    effects: the predicted change of the loss by removing each direction, leading ones first. Directions go from the
    last on in each matrix. While the sum of the changes so far is above zero the next is the last direction of some
    matrix that lowers the loss, the one of smallest size; else one that raises it; whichever there is where there is
    only one kind. Equal ones in the order of the matrices. Ends when the numbers stored are at most the share asked
    for, or nothing is left to remove: of each matrix as many directions stay as floors has, one unless given. align:
    those go together that leave a multiple of it, by the sum of their changes.
    """
    order = {key: place for place, key in enumerate(shapes)}
    ranks = {key: min(shape) for key, shape in shapes.items()}
    waiting: dict[bool, list[tuple[float, int, str]]] = {True: [], False: []}

    def next_of(key: str) -> tuple[int, float]:
        """The rank below the one that a matrix has, and by what the loss would change."""
        below = (ranks[key] - 1) // (align or 1) * (align or 1)
        return below, sum(effects[key][below : ranks[key]])

    def offer(key: str) -> None:
        below, effect = next_of(key)
        if below >= (1 if floors is None else floors[key]):
            heapq.heappush(waiting[effect > 0], (abs(effect), order[key], key))

    for key in shapes:
        offer(key)
    stored = sum(rows * columns for rows, columns in shapes.values())
    target, total = param_fraction * stored, 0.0
    while stored > target and (waiting[True] or waiting[False]):
        raises = total <= 0
        _, _, key = heapq.heappop(waiting[raises] or waiting[not raises])
        before = stored_parameters(shapes[key], ranks[key])
        ranks[key], effect = next_of(key)
        total += effect
        stored += stored_parameters(shapes[key], ranks[key]) - before
        offer(key)
    return {
        key: rank
        for key, rank in ranks.items()
        if stored_parameters(shapes[key], rank) < shapes[key][0] * shapes[key][1]
    }
