"""Passes over batches shared out among ranks, with the bits and the counts of one process.

A batch belongs to one rank, which keeps its hidden states. Scores of the model as it is are made side by side. Of a
trial, which alternatives are still in the running after a batch is known only when its scores are: so the ranks go
ahead with those that are in it now, and what turns out to be made for others is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.ranks.group import Group
    from harness_ext.search.suffix_replay import Replay

_AHEAD = 2
"""Batches of each rank that are made at a time."""


class ScoredPart(NamedTuple):
    """Some of the alternatives on one batch: right `[some, documents]`, bool, and loss likewise, fp64; and their
    divergence from the unedited model, fp64, where that is measured.
    """

    some: list[int]
    right: Tensor
    loss: Tensor
    divergence: Tensor | None = None


class _MadeTrial(NamedTuple):
    parts: list[ScoredPart]
    passes: float


def scores_of_all(group: Group, replay: Replay, batches: int, score: Callable[[int], ScoredPart]) -> list[ScoredPart]:
    """The scores of every batch, by its place. score: gives those of a place. `replay` counts the passes of all."""
    if group.ranks == 1:
        return [score(place) for place in range(batches)]

    def as_data(place: int) -> list[Any]:
        return [_as_data(score(place))]

    told = group.in_shares("scores", range(batches), lambda place: _counted(replay, lambda: as_data(place)))
    for _, passes in told:
        replay.passes += passes
    return [_tensors(data[0]) for data, _ in told]


class SharedTrial:
    """One trial of alternatives, batch by batch. order: places of batches. score: gives the parts of a place for the
    alternatives that are in the running.
    """

    def __init__(
        self,
        group: Group,
        replay: Replay,
        order: Sequence[int],
        score: Callable[[int, Tensor], Sequence[ScoredPart]],
    ) -> None:
        self._group, self._replay, self._order, self._score = group, replay, order, score
        self._made: dict[int, _MadeTrial] = {}
        self._active: list[int] = []
        self._states: dict[int, Any] = {}

    def scores(self, number: int, active: Tensor) -> Sequence[ScoredPart]:
        """Of one batch of the order."""
        if self._group.ranks == 1:
            return self._score(self._order[number], active)
        if number not in self._made or self._active != active.tolist():
            self.forget(number)
            self._go_ahead(number, active)
        parts, passes = self._made[number]
        self._replay.passes += passes
        return parts

    def forget(self, number: int) -> None:
        """What was made from this batch on is as if it had not been made."""
        own = [ahead for ahead in self._states if ahead >= number]
        if own:
            self._replay.put_back(self._states[min(own)])
        self._made.clear()
        self._states.clear()

    def _go_ahead(self, number: int, active: Tensor) -> None:
        own = []
        for ahead in self._round(number):
            if self._owner(ahead) == self._group.rank:
                self._states[ahead] = self._replay.kept()
                parts, passes = _counted(self._replay, lambda ahead=ahead: self._as_data(ahead, active))  # type: ignore[misc]
                own.append([ahead, parts, passes])
        for share in self._group.exchange("trial", own):
            self._made |= {
                ahead: _MadeTrial([_tensors(part) for part in parts], passes) for ahead, parts, passes in share
            }
        self._active = active.tolist()

    def _as_data(self, number: int, active: Tensor) -> list[Any]:
        return [_as_data(part) for part in self._score(self._order[number], active)]

    def _round(self, number: int) -> list[int]:
        """The next batches, as many as no rank has more than its number of."""
        counts = [0] * self._group.ranks
        found = []
        for ahead in range(number, len(self._order)):
            counts[self._owner(ahead)] += 1
            if max(counts) > _AHEAD:
                break
            found.append(ahead)
        return found

    def _owner(self, number: int) -> int:
        return self._order[number] % self._group.ranks


def _counted(replay: Replay, work: Callable[[], list[Any]]) -> tuple[list[Any], float]:
    """What work makes, and its passes, which are counted by whoever uses it."""
    before = replay.passes
    made = work()
    passes, replay.passes = replay.passes - before, before
    return made, passes


def _as_data(part: ScoredPart) -> list[Any]:
    return [part.some, *(None if one is None else one.tolist() for one in part[1:])]


def _tensors(part: Sequence[Any]) -> ScoredPart:
    import torch

    some, right, loss, divergence = part
    return ScoredPart(
        some,
        torch.tensor(right),
        torch.tensor(loss, dtype=torch.float64),
        None if divergence is None else torch.tensor(divergence, dtype=torch.float64),
    )
