"""The search for the ranks of feature-space decompositions, matrix after matrix by trial (SFSD, arXiv:2405.13039).

It ends in one ordinary step of `feature_space` with a rank for each matrix. Its statistics are those of the unedited
model; that is also what the trials saw, since a search from the last layer to the first changes nothing that comes
before the matrix at hand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness_ext.errors import UserError
from harness_ext.methods.search_registry import Fractions, SearchResult, search

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.model.layout import Matrix
    from harness_ext.search.candidates import Nested
    from harness_ext.search.evaluator import CandidateEvaluator
    from harness_ext.search.trials import Hopeless, Partial, Trial

TENTHS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Tolerance = Annotated[float, Field(ge=0, lt=1)]
Chunks = Annotated[int, Field(ge=1)]
Growth = Annotated[float, Field(ge=1)]
Blocks = Annotated[int, Field(ge=0)]
_MOMENTS = ("input_second_moment", "input_mean_with_sinks")
_NOTHING_TO_LOSE = (
    "no calibration document had to be answered right, since the unedited model answers none or the tolerance allows"
    " it: only the loss told ranks apart"
)
PAPERS_SHARE = 8
"""The paper leaves out the first four blocks of LLaMA-7B's thirty-two: an eighth."""


def break_even(shape: tuple[int, int]) -> int:
    """The largest rank whose two factors are no larger than the matrix, `floor(m n / (m + n))`."""
    rows, columns = shape
    return rows * columns // (rows + columns)


def ranks_of(shape: tuple[int, int], fractions: Sequence[float]) -> list[int]:
    """Rank one, and these fractions of the break-even rank, ascending; none of less than one or at full rank."""
    ranks = {1, *(math.floor(fraction * break_even(shape) + 1e-9) for fraction in fractions)}
    return sorted(rank for rank in ranks if 1 <= rank < min(shape))


def _beyond_skipped(matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> Sequence[Matrix]:
    """The matrices outside the first `skip_blocks` layers, an eighth of them unless given. Raises UserError where there
    are none.
    """
    skipped = layers // PAPERS_SHARE if settings["skip_blocks"] is None else settings["skip_blocks"]
    left = [matrix for matrix in matrices if matrix.layer is None or matrix.layer >= skipped]
    if not left:
        raise UserError(
            f"there is nothing to search: all chosen matrices lie in the first {skipped} of {layers} layers, which"
            " skip_blocks leaves as they are"
        )
    return left


def _count(shapes: Sequence[tuple[int, int]], settings: Mapping[str, Any]) -> int:
    return sum(len(ranks_of(shape, settings["fractions"])) for shape in shapes)


@search(
    summary="From the last matrix to the first, take the smallest rank at which the model answers as well as before.",
    trials=_count,
    statistics=_MOMENTS,
    takes_on=True,
    among=_beyond_skipped,
    revision=2,
)
def sfsd_surgical(
    evaluator: CandidateEvaluator,
    /,
    *,
    criterion: Literal["task", "perplexity"] = "task",
    fractions: Fractions = TENTHS,
    skip_blocks: Blocks | None = None,
    tolerance: Tolerance = 0.0,
    chunks: Chunks = 3,
    growth: Growth = 1.005,
) -> SearchResult:
    """The paper's search, with the bias of `sfsd`. Ranks: one, and fractions of the break-even rank, each tried on top
    of what was taken before; a matrix that no rank suits stays dense.

    task: the smallest rank for each of `chunks` parts of the documents at which accuracy is that of the unedited model
    less `tolerance`; of these the largest, if it holds on all documents together. Ranks at which the probability of the
    right answers (`e^-loss`) is below that of the unedited model, times `1 - tolerance`, are out (ours). perplexity:
    the smallest rank at which the perplexity of the right answers (ours; the paper's is of texts) is that of the
    unedited model times `growth ^ (n - index)`, index counting matrices from 0. skip_blocks: the first so many layers
    stay as they are; an eighth of them unless given. Raises UserError where that leaves nothing.
    """
    matrices = _beyond_skipped(evaluator.matrices, evaluator.weights.layout.layers, {"skip_blocks": skip_blocks})
    parts = evaluator.parts = (
        _parts(len(evaluator.documents), chunks, evaluator.step.seed) if criterion == "task" else []
    )
    allowed = [max(0, math.ceil(evaluator.before.correct(part) - tolerance * len(part) - 1e-9)) for part in parts]
    taken: dict[str, int] = {}
    for index, matrix, moments in _from_the_last(evaluator, matrices):
        ranks = ranks_of(matrix.shape, fractions)
        if not ranks:
            continue
        limit = evaluator.before.loss + (
            -math.log1p(-tolerance) if criterion == "task" else (len(matrices) - index) * math.log(growth)
        )
        hopeless = _fails_everywhere(parts, allowed, limit) if criterion == "task" else _above(limit)
        alternatives = _truncations(evaluator.weight(matrix), moments, ranks)
        settings = [_step(evaluator, {matrix.key: rank}) for rank in ranks]
        trials = evaluator.try_out(matrix, alternatives, settings, hopeless)
        place = (
            _by_chunks(evaluator, _within(trials, limit), parts, allowed, tolerance)
            if criterion == "task"
            else next((place for place, trial in enumerate(trials) if trial.eligible and trial.loss <= limit), None)
        )
        if place is not None:
            assert alternatives.shifts is not None, "centred truncations move the bias"
            taken[matrix.key] = ranks[place]
            evaluator.take(matrix, alternatives.weight(place), alternatives.shifts[place], note=ranks[place])
    steps = (_step(evaluator, dict(reversed(taken.items()))),) if taken else ()
    return SearchResult(
        steps,
        warnings=() if criterion == "perplexity" or any(allowed) else (_NOTHING_TO_LOSE,),
        reason="" if steps else _no_rank_holds(len(evaluator.documents), criterion),
    )


def _no_rank_holds(documents: int, criterion: str) -> str:
    what = "fewer right, or a higher loss" if criterion == "task" else "a higher perplexity"
    return (
        f"at every rank that it tried its {documents} calibration documents were answered worse than it allows"
        f" ({what}; larger fractions, or a larger tolerance or growth, allow more)"
    )


def _from_the_last(
    evaluator: CandidateEvaluator, matrices: Sequence[Matrix]
) -> Iterator[tuple[int, Matrix, Mapping[str, Tensor]]]:
    """The matrices from the last to the first with their places and the moments of their inputs, gathered for as many
    at a time as fit together.
    """
    places = {matrix.key: place for place, matrix in enumerate(matrices)}
    for group, found in evaluator.statistics.gather_from_the_last(matrices, frozenset(_MOMENTS)):
        for matrix in sorted(group, key=lambda matrix: -places[matrix.key]):
            yield places[matrix.key], matrix, found[matrix.key]


def _truncations(weight: Tensor, moments: Mapping[str, Tensor], ranks: Sequence[int]) -> Nested:
    """What `feature_space`, centred and with the bias, makes of a matrix at each rank."""
    import torch

    from harness_ext.methods.feature_space import leading_directions, output_spectrum
    from harness_ext.search.candidates import Nested

    dense, mean = weight.double(), moments["input_mean_with_sinks"].double().to(weight.device)
    spread = moments["input_second_moment"].double().to(weight.device) - mean.outer(mean)
    directions, _ = leading_directions(dense, *output_spectrum(dense, spread), max(ranks))
    output_mean = dense @ mean
    shifts = torch.stack(
        [output_mean - directions[:, :rank] @ (directions[:, :rank].T @ output_mean) for rank in ranks]
    )
    return Nested(directions.to(weight), (directions.T @ dense).to(weight), tuple(ranks), shifts.to(weight))


def _parts(documents: int, chunks: int, seed: int) -> list[list[int]]:
    order = list(range(documents))
    random.Random(f"{seed}:chunks").shuffle(order)
    return [part for part in (order[start::chunks] for start in range(chunks)) if part]


def _within(trials: Sequence[Trial], limit: float) -> list[Trial | None]:
    """The trials whose loss, over all documents, is at most so much; None in the place of the others."""
    return [trial if trial.eligible and trial.loss <= limit else None for trial in trials]


def _by_chunks(
    evaluator: CandidateEvaluator,
    trials: Sequence[Trial | None],
    parts: Sequence[Sequence[int]],
    allowed: Sequence[int],
    tolerance: float,
) -> int | None:
    """The place of the rank that the chunks agree on, or None."""
    smallest = [
        next((place for place, trial in enumerate(trials) if trial is not None and trial.correct(part) >= least), None)
        for part, least in zip(parts, allowed, strict=True)
    ]
    if any(place is None for place in smallest):
        return None
    largest = max(place for place in smallest if place is not None)
    before, chosen = evaluator.before.score, trials[largest]
    assert chosen is not None, "a chunk settled on it"
    return largest if chosen.score.correct >= before.correct - tolerance * before.documents - 1e-9 else None


def _fails_everywhere(parts: Sequence[Sequence[int]], allowed: Sequence[int], limit: float) -> Hopeless:
    """A rank matters only if some chunk may settle on it; one that has failed in all of them already cannot be chosen,
    nor one whose loss is too high.
    """
    too_high = _above(limit)

    def hopeless(partial: Partial) -> Tensor:
        import torch

        failed = []
        for part, least in zip(parts, allowed, strict=True):
            seen = partial.seen[list(part)]
            correct = (partial.right[:, list(part)] & seen).sum(1)
            failed.append(correct + int((~seen).sum()) < least)
        return torch.stack(failed).all(0) | too_high(partial)

    return hopeless


def _above(limit: float) -> Hopeless:
    """A rank whose summed loss is already above what all documents together may have."""

    def hopeless(partial: Partial) -> Tensor:
        return ~(partial.losses <= limit * partial.right.shape[1])

    return hopeless


def _step(evaluator: CandidateEvaluator, ranks: Mapping[str, int]) -> dict[str, Any]:
    assert evaluator.step.calibration is not None
    order = [matrix.key for matrix in evaluator.matrices if matrix.key in ranks]
    return {
        "method": "feature_space",
        "matrices": order,
        "keep": {"ranks": {key: ranks[key] for key in order}},
        "centred": True,
        "bias": True,
        "calibration": evaluator.step.calibration.model_dump(mode="json"),
    }
