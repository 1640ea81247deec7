"""How much of a matrix is kept: exactly one of five measures, always of what stays, never of what goes.

"Ratio" means opposite things in the literature, so the word is not used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness_ext.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# A product such as 0.29 * 100 falls just short of the integer that is meant.
_FLOOR_SLACK = 1e-9

PositiveFraction = Annotated[float, Field(gt=0, le=1)]


class Keep(BaseModel):
    """The budget of a step, for each matrix by itself. All fractions are in (0, 1].

    rank: this many components. rank_fraction: LASER's rho, `floor(rho * min(m, n))`. energy: the fewest components
    whose squared singular values make up this share of their sum; for a method that weighs inputs or looks at outputs,
    those of the matrix it truncates: the weighted one, or the outputs. param_fraction: the largest rank whose two
    factors hold at most this share of the dense matrix's numbers, `floor(share * m n / (m + n))`. ranks: a rank for
    each matrix by its name in plans and receipts; what a search finds is written so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: Annotated[int, Field(ge=0)] | None = None
    rank_fraction: PositiveFraction | None = None
    energy: PositiveFraction | None = None
    param_fraction: PositiveFraction | None = None
    ranks: dict[str, Annotated[int, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Keep:
        given = sorted(self.model_dump(exclude_none=True))
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of rank, rank_fraction, energy, param_fraction, ranks; found {found}")
        return self

    def of(self, key: str) -> Keep:
        """The budget of one matrix, by its name. Raises UserError where ranks are given and its is not among them."""
        if self.ranks is None:
            return self
        if key not in self.ranks:
            raise UserError(
                "keep.ranks has no rank for it; it names"
                f" {', '.join(list(self.ranks)[:3])}{', ...' if len(self.ranks) > 3 else ''}"
            )
        return Keep(rank=self.ranks[key])

    @property
    def needs_singular_values(self) -> bool:
        """Whether the rank follows from the spectrum, and so cannot be planned from shapes alone."""
        return self.energy is not None

    def is_below_one(self, shape: tuple[int, int]) -> bool:
        """Whether the budget comes to less than one component of a matrix of this shape `(m, n)`, so that it cannot be
        met: `rank_for` keeps one.
        """
        rows, columns = shape
        if self.rank_fraction is not None:
            return self.rank_fraction * min(rows, columns) < 1 - _FLOOR_SLACK
        return (
            self.param_fraction is not None
            and self.param_fraction * rows * columns / (rows + columns) < 1 - _FLOOR_SLACK
        )

    def rank_for(self, shape: tuple[int, int], singular_values: Tensor | None = None) -> int:
        """The rank kept of a matrix of this shape `(m, n)`.

        A fraction so small that it rounds to nothing keeps one component: asking for less than one is a mistake of
        scale, and the zero matrix can be had with `rank: 0`.

        Raises UserError where the rank exceeds min(m, n), or where `energy` is given without singular values `[min(m,
        n)]`, descending.
        """
        rows, columns = shape
        full = min(rows, columns)
        if self.rank is not None:
            if self.rank > full:
                raise UserError(f"rank {self.rank} is beyond a {rows} x {columns} matrix: its largest rank is {full}")
            return self.rank
        if self.rank_fraction is not None:
            return max(1, math.floor(self.rank_fraction * full + _FLOOR_SLACK))
        if self.param_fraction is not None:
            return min(full, max(1, math.floor(self.param_fraction * rows * columns / (rows + columns) + _FLOOR_SLACK)))
        if singular_values is None:
            raise UserError(
                "keep.energy needs singular values, which this method does not compute: give rank, rank_fraction or"
                " param_fraction"
            )
        assert self.energy is not None, "exactly one measure is given, and `of` has chosen among ranks"
        return _components_for_energy(singular_values, self.energy)

    def rank_rule(self, shape: tuple[int, int]) -> Callable[[Tensor], int]:
        """`rank_for` of this shape, as a function of the singular values."""
        return lambda singular_values: self.rank_for(shape, singular_values)


def _components_for_energy(singular_values: Tensor, share: float) -> int:
    squared = singular_values.double() ** 2
    total = float(squared.sum())
    if total == 0:
        return 1
    reached = squared.cumsum(0) >= share * total * (1 - 1e-12)
    return int(reached.int().argmax()) + 1
