"""The trials of `ablation_prune`: a first-order estimate is trusted as far as the measured loss bears it out (ours).

Candidates are the components that the estimate would remove, each matrix's share of those of lowest effect, as far as
it says that their removal lowers the loss. All of them are one group. A group is removed on trial; where the loss of
the calibration documents falls by at least a part of what was predicted, that stays, and where it does not the group is
halved: by matrices while there are several (and so by layers, whose matrices stand next to each other), then by effect,
down to one component, which stays removed where the loss falls at all. The group that promises most is tried next, on
top of what stands.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness_ext.methods.eigenprune import lowest, share
from harness_ext.search.removals import RemovalCandidate, RemovalTrials

if TYPE_CHECKING:
    from torch import Tensor

TRUSTED = 0.25
"""The least share of the predicted fall of the loss that a group's measured one must have."""
TRIALS_PER_MATRIX = 4
LEAST_TRIALS = 64


def most_trials(matrices: int) -> int:
    """How many trials are made at most: two for each matrix take the groups down to single ones, and as many again go
    into those that promise most.
    """
    return max(LEAST_TRIALS, TRIALS_PER_MATRIX * matrices)


def candidates_of(effects: Mapping[str, Tensor], fraction: float) -> list[RemovalCandidate]:
    """Of each matrix the `floor(fraction * r)` components of lowest effect `[r]` which are below zero, in the order of
    the matrices, the lowest first.
    """
    found: list[RemovalCandidate] = []
    for key, values in effects.items():
        chosen = lowest(values, share(fraction, len(values)))
        own = [(float(values[place]), place) for place in chosen.nonzero()[:, 0].tolist()]
        found += [RemovalCandidate(effect, key, place) for effect, place in sorted(own) if effect < 0]
    return found


def try_removals(trials: RemovalTrials, candidates: Sequence[RemovalCandidate], most: int) -> None:
    """Settle groups of candidates, at most so many trials. What is not settled then stays as it is."""
    waiting: list[tuple[float, int, Sequence[RemovalCandidate]]] = []
    numbers = itertools.count()

    def wait(group: Sequence[RemovalCandidate]) -> None:
        heapq.heappush(waiting, (sum(candidate.effect for candidate in group), next(numbers), group))

    if candidates:
        wait(candidates)
    while waiting and trials.made < most:
        predicted, _, group = heapq.heappop(waiting)
        if trials.attempt(group, -TRUSTED * predicted if len(group) > 1 else 0.0) or len(group) == 1:
            continue
        for half in _halves(group):
            wait(half)


def _halves(group: Sequence[RemovalCandidate]) -> tuple[Sequence[RemovalCandidate], Sequence[RemovalCandidate]]:
    keys = list(dict.fromkeys(candidate.key for candidate in group))
    if len(keys) == 1:
        return group[: len(group) // 2], group[len(group) // 2 :]
    first = set(keys[: len(keys) // 2])
    return (
        [candidate for candidate in group if candidate.key in first],
        [candidate for candidate in group if candidate.key not in first],
    )
