"""How many numbers the steps of a plan save together: of every matrix what is left in the end, where several steps edit
it.

As a run counts it (`what_is_left`): units that an earlier step took away stay away, and a truncation leaves no higher
rank than there was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.editing.plan_components import Place, component_told, place_of
from harness_ext.editing.records import standing
from harness_ext.methods import registered_methods
from harness_ext.model.components import gives_directions
from harness_ext.model.size import FACTORS, stored_parameters
from harness_ext.recipe.settings import HEAL

if TYPE_CHECKING:
    from harness_ext.editing.plan_components import Lost
    from harness_ext.editing.plan_matrices import PlannedMatrix, SharedFactor
    from harness_ext.recipe.recipe import Recipe


class Saved(NamedTuple):
    """Numbers that an edit of one matrix, or of a part of it, saves, each of so many bytes."""

    place: Place
    numbers: int
    element_bytes: int
    basis: SharedFactor | None = None


@dataclass
class _Standing:
    """What the steps so far have left of a matrix. shape, rank: as the last edit that told a rank left it; None before
    one. shares: of rows (by_row) or columns that went, of whole units and of the dimensions of each head; of the
    larger of two steps, as if one took what the other did. Which go, only the run tells; if they are others, it leaves
    fewer numbers.
    """

    shape: tuple[int, int] | None = None
    rank: int | None = None
    by_row: bool = False
    shares: dict[bool, Fraction] = field(default_factory=dict)

    @property
    def share(self) -> Fraction:
        """The share of rows or columns that is left."""
        return math.prod((1 - share for share in self.shares.values()), start=Fraction(1))

    def take(self, lost: Lost, units: bool) -> None:
        """Rows or columns go."""
        share = Fraction(lost.numbers, lost.of)
        self.by_row = lost.by_row
        self.shares[units] = max(share, self.shares.get(True, share)) if units else share

    def numbers(self, of: int, form: str) -> int:
        """What it holds. of: before, with its bias where rows take that along."""
        if self.shape is None or self.rank is None:
            return round(self.share * of)
        rows, columns = (
            round(self.share * size) if by_row == self.by_row else size
            for by_row, size in zip((True, False), self.shape, strict=True)
        )
        biased = of - self.shape[0] * self.shape[1]
        return stored_parameters((rows, columns), min(self.rank, rows, columns), form) + round(self.share * biased)


def saved_by(recipe: Recipe, matrices: Sequence[PlannedMatrix]) -> list[Saved]:
    """What each edit that no later one overwrote saves, of a component in each of its matrices."""
    made: list[Saved] = []
    left: dict[Place, _Standing] = {}
    whole: dict[Place, int] = {}
    for item in matrices:
        for place, lost in item.lost:
            whole[place] = lost.of
            own = left.setdefault(place, _Standing())
            own.take(lost, item.takes_units)
            told = component_told(recipe.steps[item.step], item.matrix)
            if place == place_of(item.matrix) and gives_directions(told):
                own.rank = None
            made.append(Saved(place, lost.of - own.numbers(lost.of, FACTORS), item.element_bytes))
        if not item.lost:
            place = place_of(item.matrix)
            own = left.setdefault(place, _Standing())
            before = whole.get(place, item.parameters_before) if own.by_row else item.parameters_before
            made.append(Saved(place, _edited(recipe, item, own, before), item.element_bytes, item.basis))
    last = standing(made, lambda one: one.place)
    return [*last, *_left_over(last)]


def _edited(recipe: Recipe, item: PlannedMatrix, own: _Standing, before: int) -> int:
    """What the edit of a single matrix saves of so many numbers, which is told what it leaves. A factored step keeps
    what it computes with, whatever is zero in it; a method that counts for itself, what it says.
    """
    rank = item.rank_after
    if own.rank is not None and _keeps_rank(item.method):
        rank = own.rank if rank is None else min(rank, own.rank)
    own.shape, own.rank = item.matrix.shape, rank
    as_factors = recipe.steps[item.step].factored and not item.stays_dense
    if item.numbers is not None or as_factors or (rank is None and not own.shares):
        return item.parameters_before - item.parameters_after
    if item.stays_dense:
        return before - _Standing(item.matrix.shape, min(item.matrix.shape), own.by_row, own.shares).numbers(
            before, item.counted_as
        )
    return before - own.numbers(before, item.counted_as)


def _keeps_rank(name: str) -> bool:
    """Whether a method leaves no higher rank than the matrix had: by truncating the matrix as it is."""
    method = registered_methods().get(name)
    return name == HEAL or (method is not None and method.takes_keep and not method.compares_with_unedited)


def _left_over(last: Sequence[Saved]) -> Iterator[Saved]:
    """What is not saved after all: every factor of which the matrix that counts it was edited again, and another that
    has it was not.
    """
    using: dict[SharedFactor, list[Saved]] = {}
    for one in last:
        if one.basis is not None:
            using.setdefault(one.basis, []).append(one)
    for basis, own in using.items():
        if all(one.place != basis.first for one in own):
            yield own[0]._replace(numbers=-basis.size)
