"""How much of a matrix is kept: exactly one of five measures, always of what stays, never of what goes; and to which
multiple its rank is rounded down.

"Ratio" means opposite things in the literature, so the word is not used here.

Why ranks are rounded, measured in bf16 on an H200 against the dense layer (4,096 tokens, 0.8 of the parameters):
11008 x 4096 runs at 0.39x its speed at rank 2388 and at 1.22x at rank 2384; 28672 x 8192 at 0.20x at rank 5097 and at
1.19x at rank 5096. Factors cost what their numbers say, and 2 to 5 per cent more, where the rank is a multiple of 8;
where it is not, three to six times as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from harness_ext.errors import UserError
from harness_ext.model.size import FACTORS, PIFA, largest_rank_within, low_rank_numbers

if TYPE_CHECKING:
    from torch import Tensor

# A product such as 0.29 * 100 falls just short of the integer that is meant.
_FLOOR_SLACK = 1e-9

MEASURES = ("rank", "rank_fraction", "energy", "param_fraction", "ranks")

_SMALLEST_STEP, _LARGEST_STEP = 8, 64
_DEAREST = 0.01
"""The share of the rank that rounding to `_LARGEST_STEP` may cost, where a step is chosen by itself."""
_FASTER_BELOW = 0.9
"""The share of the dense matrix's numbers up to which aligned factors are faster: at 0.8 they are 1.2 times as fast."""
_UNALIGNED = 6
"""How many times as much factors cost whose rank is no multiple of `_SMALLEST_STEP`: the worst that was measured."""

PositiveFraction = Annotated[float, Field(gt=0, le=1)]


class Keep(BaseModel):
    """The budget of a step, for each matrix by itself. All fractions are in (0, 1].

    rank: this many components. rank_fraction: LASER's rho, `floor(rho * min(m, n))`. energy: the fewest components
    whose squared singular values make up this share of their sum; for a method that weighs inputs or looks at outputs,
    those of the matrix it truncates: the weighted one, or the outputs. param_fraction: the largest rank whose two
    factors hold at most this share of the dense matrix's numbers, `floor(share * m n / (m + n))`. ranks: a rank for
    each matrix by its name in plans and receipts; what a search finds is written so.

    format: in which numbers are counted, `factors` unless given, or `pifa`: pivot rows, `r (m + n) - r^2 + r` numbers
    with the places of the rows, so that `param_fraction` allows a higher rank, `floor(((m + n + 1) - sqrt((m + n + 1)^2
    - 4 share m n)) / 2)`. The edit at a rank is the same in both.

    align: the rank is rounded down to a multiple of this. A rank below one multiple stays, since the budget does not
    allow more and nothing would be left of it; and so does the full rank, where nothing is cut. `auto`: 64 where that
    costs less than one per cent of the rank, else 8; and the rank as it is where factors would not be faster anyway
    (`pays`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: Annotated[int, Field(ge=0)] | None = None
    rank_fraction: PositiveFraction | None = None
    energy: PositiveFraction | None = None
    param_fraction: PositiveFraction | None = None
    ranks: dict[str, Annotated[int, Field(ge=0)]] | None = None
    align: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    format: Literal["factors", "pifa"] | None = None

    @field_validator("format", mode="after")
    @classmethod
    def _default_is_absent(cls, value: str | None) -> str | None:
        """What is said with and without it is one recipe."""
        return None if value == FACTORS else value

    @field_validator("align", mode="wrap")
    @classmethod
    def _a_multiple_or_auto(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except ValidationError:
            raise ValueError("give a whole number from 1 on, or auto") from None

    @model_validator(mode="after")
    def _exactly_one(self) -> Keep:
        given = sorted(self.model_dump(exclude_none=True, include=set(MEASURES)))
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of {', '.join(MEASURES)}; found {found}")
        if self.form == PIFA and self.align == "auto":
            raise ValueError("align: auto knows the speed of two factors, and not of pifa: give a whole number")
        return self

    @property
    def form(self) -> str:
        """The format in which numbers are counted, `factors` or `pifa`."""
        return self.format or FACTORS

    def of(self, key: str) -> Keep:
        """The budget of one matrix, by its name. Raises UserError where ranks are given and its is not among them."""
        if self.ranks is None:
            return self
        if key not in self.ranks:
            raise UserError(
                "keep.ranks has no rank for it; it names"
                f" {', '.join(list(self.ranks)[:3])}{', ...' if len(self.ranks) > 3 else ''}"
            )
        return Keep(rank=self.ranks[key], align=self.align, format=self.format)

    @property
    def aligned(self) -> Keep:
        """The same, with `align: auto` where it says nothing of it."""
        return self if self.align is not None else self.model_copy(update={"align": "auto"})

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
            and self.param_fraction * rows * columns / low_rank_numbers(shape, 1, self.form) < 1 - _FLOOR_SLACK
        )

    def rank_for(self, shape: tuple[int, int], singular_values: Tensor | None = None) -> int:
        """The rank kept of a matrix of this shape `(m, n)`: `asked_rank`, rounded down as `align` says. Raises what
        that does.
        """
        asked = self.asked_rank(shape, singular_values)
        if self.align is None or asked == min(shape):
            return asked
        if self.align != "auto":
            return _down(asked, self.align)
        beyond = asked % _LARGEST_STEP
        aligned = asked - beyond if beyond < _DEAREST * asked else _down(asked, _SMALLEST_STEP)
        return aligned if pays(shape, aligned) else asked

    def asked_rank(self, shape: tuple[int, int], singular_values: Tensor | None = None) -> int:
        """The rank that the measure means for a matrix of this shape `(m, n)`, before it is aligned.

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
            allowed = largest_rank_within(shape, self.param_fraction * rows * columns, self.form)
            return min(full, max(1, math.floor(allowed + _FLOOR_SLACK)))
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


class NotedKeep(Keep):
    """The budget of one matrix, which notes the rank that was asked for: with `energy`, only the method that has the
    singular values can tell it.
    """

    _noted: list[tuple[tuple[int, int], int]] = PrivateAttr(default_factory=list)

    def asked_rank(self, shape: tuple[int, int], singular_values: Tensor | None = None) -> int:
        """As `Keep` has it; noted."""
        rank = super().asked_rank(shape, singular_values)
        self._noted.append((shape, rank))
        return rank

    def noted(self, shape: tuple[int, int]) -> int | None:
        """The rank asked for of a matrix `[m, n]`; None where a method asked for other shapes, as one that cuts it in
        pieces does, or for none.
        """
        noted = {(tuple(of), rank) for of, rank in self._noted}
        return next(iter(noted))[1] if len(noted) == 1 and next(iter(noted))[0] == tuple(shape) else None


def pays(shape: tuple[int, int], rank: int) -> bool:
    """Whether two factors of this rank are faster than a dense `[m, n]`, by the measurements above: they hold at most
    nine tenths of its numbers, those of a rank of 8 or more that is no multiple of 8 counted six times.
    """
    rows, columns = shape
    cost = rank * (rows + columns) * (_UNALIGNED if rank > _SMALLEST_STEP and rank % _SMALLEST_STEP else 1)
    return cost <= _FASTER_BELOW * rows * columns


def _down(rank: int, step: int) -> int:
    """The largest multiple of the step that is no larger; the rank itself where that would be none."""
    return rank // step * step or rank


def _components_for_energy(singular_values: Tensor, share: float) -> int:
    squared = singular_values.double() ** 2
    total = float(squared.sum())
    if total == 0:
        return 1
    reached = squared.cumsum(0) >= share * total * (1 - 1e-12)
    return int(reached.int().argmax()) + 1
