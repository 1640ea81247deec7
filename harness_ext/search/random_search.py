"""The control of a search: as many trials as it made, on matrices drawn at random, and the best of them chosen. For
each matrix that the search's winner edited one of the same size is drawn, and left with as many
random directions as the winner left, so that the budget is the same to the last number, but for biases that a winner
adds to a model without them (`sfsd-surgical`).

Whoever tries many edits and keeps the best finds one that looks good. This says how good that is without singular
values, gradients, or a choice of where to look.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from harness_ext.errors import UserError
from harness_ext.methods.search_registry import SearchResult, search

if TYPE_CHECKING:
    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator

Count = Annotated[int, Field(ge=1)]
Ranks = Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(min_length=1)]
_AT_ONCE = 8


@search(
    summary="Random directions in matrices drawn at random, as often and at the budget that a search had; its control.",
    trials=lambda shapes, settings: settings["tries"],
    takes_on=True,
)
def search_at_random(evaluator: CandidateEvaluator, /, *, instead_of: Ranks, tries: Count) -> SearchResult:
    """instead_of: the matrices in whose place others are drawn, with the ranks they were left at. tries: how many
    edits. Every trial draws matrices, and directions, of its own from the seed; chosen as in `laser_search`.

    Raises UserError where one of them is not among the matrices of the step.
    """
    from harness_ext.search.trials import best_of

    draw = random.Random(f"{evaluator.step.seed}:matrices")
    plans: list[tuple[list[Matrix], dict[str, Any]]] = []
    for number in range(tries):
        ranks = drawn({matrix.key: matrix.shape for matrix in evaluator.matrices}, instead_of, draw)
        order = [matrix for matrix in evaluator.matrices if matrix.key in ranks]
        plans.append(
            (
                order,
                {
                    "method": "random_subspace",
                    "matrices": [matrix.key for matrix in order],
                    "keep": {"ranks": {matrix.key: ranks[matrix.key] for matrix in order}},
                    "seed": evaluator.step.seed + number,
                },
            )
        )
    trials = (
        _one_each(evaluator, plans)
        if len(instead_of) == 1
        else [
            evaluator.try_together({matrix: _edited(evaluator, matrix, step) for matrix in order}, step)
            for order, step in plans
        ]
    )
    return SearchResult((best_of(sorted(trials, key=lambda trial: trial.setting["seed"])).setting,))


def drawn(shapes: Mapping[str, tuple[int, int]], instead_of: Mapping[str, int], draw: random.Random) -> dict[str, int]:
    """For each of the given matrices another of its size, which may be itself or a transposed one, all different, with
    the rank of the one it stands for.
    """
    unknown = [key for key in instead_of if key not in shapes]
    if unknown:
        raise UserError(f"instead_of: {unknown[0]} is not among the {len(shapes)} matrices that the step chooses from")
    size = {key: tuple(sorted(shape)) for key, shape in shapes.items()}
    ranks: dict[str, int] = {}
    for one in sorted({size[key] for key in instead_of}):
        own = [rank for key, rank in instead_of.items() if size[key] == one]
        ranks |= zip(draw.sample([key for key in shapes if size[key] == one], len(own)), own, strict=True)
    return ranks


def _one_each(evaluator: CandidateEvaluator, plans: list[tuple[list[Matrix], dict[str, Any]]]) -> list[Any]:
    """Trials of one matrix each: those of the same matrix side by side, some at a time, since their directions share
    nothing.
    """
    import torch

    from harness_ext.search.candidates import Dense
    from harness_ext.search.trials import best_of, cannot_win

    trials: list[Any] = []
    for matrix in reversed(evaluator.matrices):
        own = [step for (only,), step in plans if only.key == matrix.key]
        for start in range(0, len(own), _AT_ONCE):
            some = own[start : start + _AT_ONCE]
            eligible = [trial for trial in trials if trial.eligible]
            weights = torch.stack([_edited(evaluator, matrix, step) for step in some])
            trials += evaluator.try_out(
                matrix, Dense(weights), some, cannot_win(best_of(eligible).score if eligible else None)
            )
    return trials


def _edited(evaluator: CandidateEvaluator, matrix: Matrix, step: dict[str, Any]) -> Any:
    from harness_ext.methods.budget import Keep
    from harness_ext.methods.random_edits import random_subspace

    keep = Keep(rank=step["keep"]["ranks"][matrix.key])
    return random_subspace(
        evaluator.weight(matrix), keep=keep, generator=evaluator.generator(matrix, step["seed"])
    ).weight()
