"""Hidden units removed one by one, each time the one of least price: what the error rises by, exactly, where the others
are refitted (optimal brain surgeon, for units). With `W' = W C[:, S] C[S, S]^-1` and K the inverse of `C[S, S]`, the
price of unit i of S is `|W'[:, i]|^2 / K_ii`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.linalg.moments import overwrite_by_inverse

if TYPE_CHECKING:
    from torch import Tensor

_WAITING = 64


def by_price(dense: Tensor, moment: Tensor, count: int) -> Tensor:
    """All units, `[n]`: those that are left where so many are to stay, in no order, and those removed, the last first.

    dense: W `[m, n]`; moment: C `[n, n]`, positive definite, which is overwritten; both fp64. Raises
    torch.linalg.LinAlgError where it is not.
    """
    import torch

    left = _UnitsLeft(dense, moment)
    removed = []
    for _ in range(dense.shape[1] - count):
        removed.append(int(left.prices().argmin()))
        left.remove(removed[-1])
    last_first = torch.tensor(removed[::-1], dtype=torch.int64, device=dense.device)
    return torch.cat([left.live.nonzero().flatten(), last_first])


class _UnitsLeft:
    """The units that are left, the inverse K of their moment, and W' refitted to them. A removal changes both by a
    product of a column and a row:

        K - p r^T r        W' - w r        p = K_ii, r = K_i / p, w = W'[:, i]

    `_WAITING` of them wait and are subtracted together, as products of matrices; until then what is asked of K and W'
    is worked out from both. A unit costs one pass over W', and not several over K as well.
    """

    def __init__(self, dense: Tensor, moment: Tensor) -> None:
        """dense: W `[m, n]`; moment: C `[n, n]`, which is overwritten; both fp64."""
        import torch

        self._read, self._inverse = dense.clone(), overwrite_by_inverse(moment)
        self._rows = dense.new_empty(_WAITING, dense.shape[1])
        self._columns = dense.new_empty(dense.shape[0], _WAITING)
        self._pivots = dense.new_empty(_WAITING)
        self._waiting = 0
        self.live = torch.ones(dense.shape[1], dtype=torch.bool, device=dense.device)
        self._measure()

    def _measure(self) -> None:
        """The squared columns of W', and the diagonal of K, which are followed from here on."""
        self._squares, self._diagonal = self._read.square().sum(0), self._inverse.diagonal().clone()

    def prices(self) -> Tensor:
        """What the removal of each unit costs, `[n]`; infinite for those that are gone."""
        return (self._squares / self._diagonal).masked_fill(~self.live, float("inf"))

    def remove(self, unit: int) -> None:
        """Without this unit."""
        rows, columns, pivots = (
            self._rows[: self._waiting],
            self._columns[:, : self._waiting],
            self._pivots[: self._waiting],
        )
        row = self._inverse[unit] - (pivots * rows[:, unit]) @ rows
        pivot = row[unit].clone()
        # Of those that are gone, rounding aside, nothing is left.
        row = (row / pivot).masked_fill(~self.live, 0)
        column = self._read[:, unit] - columns @ rows[:, unit]
        overlaps = column @ self._read - (column @ columns) @ rows
        self._squares = (self._squares - row * (2 * overlaps - row * overlaps[unit])).clamp(min=0)
        self._diagonal = self._diagonal - pivot * row.square()
        self.live[unit] = False
        self._rows[self._waiting], self._columns[:, self._waiting], self._pivots[self._waiting] = row, column, pivot
        self._waiting += 1
        if self._waiting == _WAITING:
            self._subtract()

    def _subtract(self) -> None:
        self._inverse.addmm_(self._rows.T, self._pivots[:, None] * self._rows, alpha=-1)
        self._read.addmm_(self._columns, self._rows, alpha=-1)
        self._waiting = 0
        self._measure()
