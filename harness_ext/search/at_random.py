"""The control of a search: as many trials as it made, on matrices drawn at random, each left with random directions of as high a rank as the search's winner left, and the best of them chosen.

Whoever tries many edits and keeps the best finds one that looks good. This says how good that is without singular values, gradients, or a choice of where to look.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from harness_ext.search import Found, Fraction, searcher

if TYPE_CHECKING:
    from harness_ext.anatomy import Matrix
    from harness_ext.search.bench import Bench

Count = Annotated[int, Field(ge=1)]
Budgets = Annotated[tuple[Fraction, ...], Field(min_length=1)]
_AT_ONCE = 8


@searcher(summary="Random directions in matrices drawn at random, as often and at the budget that a search had; its control.", trials=lambda shapes, settings: settings["tries"], takes_on=True)
def search_at_random(bench: Bench, /, *, budgets: Budgets, tries: Count) -> Found:
    """budgets: the rank of each edited matrix as a fraction of its full rank. tries: how many edits. Every trial draws matrices, and directions, of its own from the seed; chosen as in `laser_search`."""
    from harness_ext.keep import Keep
    from harness_ext.search.trials import best_of

    draw = random.Random(f"{bench.step.seed}:matrices")
    count = min(len(budgets), len(bench.matrices))
    plans: list[tuple[list[Matrix], dict[str, Any]]] = []
    for number in range(tries):
        chosen = draw.sample(bench.matrices, count)
        ranks = {matrix.key: Keep(rank_fraction=fraction).rank_for(matrix.shape) for matrix, fraction in zip(chosen, budgets, strict=False)}
        order = [matrix for matrix in bench.matrices if matrix.key in ranks]
        plans.append((order, {"method": "random_subspace", "matrices": [matrix.key for matrix in order], "keep": {"ranks": {matrix.key: ranks[matrix.key] for matrix in order}}, "seed": bench.step.seed + number}))
    trials = _one_each(bench, plans) if count == 1 else [bench.try_together({matrix: _edited(bench, matrix, step) for matrix in order}, step) for order, step in plans]
    return Found((best_of(sorted(trials, key=lambda trial: trial.setting["seed"])).setting,))


def _one_each(bench: Bench, plans: list[tuple[list[Matrix], dict[str, Any]]]) -> list[Any]:
    """Trials of one matrix each: those of the same matrix side by side, some at a time, since their directions share nothing."""
    import torch

    from harness_ext.search.alternatives import Dense
    from harness_ext.search.trials import best_of, cannot_win

    trials: list[Any] = []
    for matrix in reversed(bench.matrices):
        own = [step for (only,), step in plans if only.key == matrix.key]
        for start in range(0, len(own), _AT_ONCE):
            some = own[start : start + _AT_ONCE]
            eligible = [trial for trial in trials if trial.eligible]
            weights = torch.stack([_edited(bench, matrix, step) for step in some])
            trials += bench.try_out(matrix, Dense(weights), some, cannot_win(best_of(eligible).score if eligible else None))
    return trials


def _edited(bench: Bench, matrix: Matrix, step: dict[str, Any]) -> Any:
    from harness_ext.keep import Keep
    from harness_ext.methods.controls import random_subspace

    keep = Keep(rank=step["keep"]["ranks"][matrix.key])
    return random_subspace(bench.weight(matrix), keep=keep, generator=bench.generator(matrix, step["seed"])).weight()
