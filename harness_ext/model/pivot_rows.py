"""A matrix of rank r as r of its own rows and what the others are made of: PIFA (arXiv:2501.19090).

`W = left right` of rank r has r independent rows; every other row is a combination of them: `W_others = C W_pivots`.
C and the pivot rows are `r (m + n) - r^2` numbers, r^2 fewer than the two factors, and in exact arithmetic nothing is
lost. The pivots are chosen so that no coefficient is large, since large ones make rounding errors large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness_ext.model.low_rank import LowRankLinear, LowRankPart

_LARGEST_COEFFICIENT = 1.1
_MOST_SWAPS = 200


class PivotRows(NamedTuple):
    """A matrix `[m, n]` of rank r. coefficients: `[m - r, r]`. pivots: `[r, n]`. order: `[m]`, for each row its place
    among the pivots and the rows made of them, one after another.
    """

    coefficients: Tensor
    pivots: Tensor
    order: Tensor


def pivot_rows(left: Tensor, right: Tensor) -> PivotRows:
    """The product of left `[m, r]` and right `[r, n]`, r <= m, as pivot rows, in fp64.

    The coefficients depend on the column space alone, so they are taken from an orthonormal basis of it, which is sound
    also where the factors have less than their rank. Pivots are those of LU with partial pivoting, then exchanged while
    a coefficient is above 1.1 in size (maxvol: Goreinov and others 2010, "How to find a good submatrix").
    """
    rows, rank = left.shape
    basis = torch.linalg.qr(left.double()).Q
    _, exchanges = torch.linalg.lu_factor(basis) if rank else (None, torch.zeros(0, dtype=torch.int64))
    listed = list(range(rows))
    for place, other in enumerate(exchanges.tolist()):
        listed[place], listed[other - 1] = listed[other - 1], listed[place]
    pivots, others = torch.tensor(listed[:rank], dtype=torch.int64), torch.tensor(listed[rank:], dtype=torch.int64)
    pivots, others = pivots.to(left.device), others.to(left.device)
    coefficients = torch.linalg.solve(basis[pivots], basis[others], left=False) if rank else basis[others]
    _exchange(coefficients, pivots, others)
    product = left.double()[pivots] @ right.double()
    return PivotRows(coefficients, product, torch.cat([pivots, others]).argsort())


def _exchange(coefficients: Tensor, pivots: Tensor, others: Tensor) -> None:
    """Exchange pivots for other rows, in place, while that makes the largest coefficient smaller."""
    for _ in range(_MOST_SWAPS):
        if not coefficients.numel():
            return
        place = int(coefficients.abs().argmax())
        row, column = divmod(place, coefficients.shape[1])
        value = coefficients[row, column].clone()
        if abs(float(value)) <= _LARGEST_COEFFICIENT:
            return
        of_row, of_column = coefficients[row].clone(), coefficients[:, column].clone()
        of_row[column] -= 1
        of_column[row] += 1
        coefficients -= torch.outer(of_column, of_row) / value
        pivots[column], others[row] = others[row].clone(), pivots[column].clone()


class PivotRowsLinear(LowRankLinear):
    """A `LowRankLinear` whose parts are kept as pivot rows: `lefts` are the coefficients, `rights` the pivots.

    parts: each with coefficients `[m - r, r]` for its left. orders: of each part, see `PivotRows`.
    """

    def __init__(
        self,
        dense: Tensor,
        parts: Sequence[LowRankPart],
        bias: nn.Parameter | None,
        *,
        orders: Sequence[Tensor],
        transposed: bool,
    ) -> None:
        super().__init__(dense, parts, bias, transposed=transposed)
        self.orders = nn.Module()
        for number, order in enumerate(orders):
            self.orders.register_buffer(str(number), order)

    def order(self, number: int) -> Tensor:
        """That of one part."""
        return self.orders.get_buffer(str(number))

    def is_sound(self) -> bool:
        """Whether every order lists each place once."""
        return all(
            bool(torch.equal(order.sort().values.long(), torch.arange(len(order), device=order.device)))
            for order in self.orders.buffers()
        )

    def _of_part(self, number: int, inputs: Tensor, bias: Tensor | None) -> Tensor:
        pivots = linear(inputs, self.rights[number])
        outputs = torch.cat([pivots, linear(pivots, self.lefts[number])], dim=-1)
        outputs = outputs.index_select(-1, self.order(number))
        return outputs if bias is None else outputs + bias

    @property
    def parts(self) -> list[LowRankPart]:
        """The parts as two factors each: the left has a row of the unit matrix for a pivot."""
        return [
            part._replace(left=torch.cat([torch.eye(len(part.right)).to(part.left), part.left])[self.order(number)])
            for number, part in enumerate(super().parts)
        ]
