"""A linear layer whose weight, or parts of whose weight, are kept as two low-rank factors: `W x = A (B x)`.

It takes the place of the layer that it stands for, under the same name. A part is a range of rows (a role of a fused
matrix, a head of the queries) or of columns (a head of the output projection), and each part has factors of its own;
what no part covers stays dense. So a fused matrix of which only the keys are cut is computed as low-rank keys beside
dense queries and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness_ext.model.geometry import Ranges
from harness_ext.model.slices import left_over, overlap, places, put, take


class LowRankPart(NamedTuple):
    """Some rows, or some columns, of a matrix as the product of left `[m, r]` and right `[r, n]`; neither rows nor
    columns means the whole.
    """

    rows: Ranges | None
    columns: Ranges | None
    left: Tensor
    right: Tensor

    def overlaps(self, rows: Ranges | None, columns: Ranges | None) -> bool:
        """Whether it shares a number with another part."""
        return overlap(self.rows, rows) and overlap(self.columns, columns)


class LowRankLinear(nn.Module):
    """`y = W x + b`, `W [m, n]` made of factored parts and a dense rest.

    dense: `[m, n]`, of which only what no part covers is looked at. parts: disjoint, all of rows or all of columns;
    their factors take its dtype. bias: `[m]`, shared with the layer it stands for. transposed: whether that layer keeps
    its weight as `[in, out]`.
    """

    bias: nn.Parameter | None
    _order: Tensor | None

    def __init__(
        self, dense: Tensor, parts: Sequence[LowRankPart], bias: nn.Parameter | None, *, transposed: bool
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = dense.shape
        self.transposed = transposed
        self._places = [(part.rows, part.columns) for part in parts]
        self._by_columns = any(part.columns is not None for part in parts)
        axis, full = (1, self.in_features) if self._by_columns else (0, self.out_features)
        ranges = [part.columns if self._by_columns else part.rows for part in parts]
        covered = [spans for spans in ranges if spans is not None]
        self._rest_places = left_over(covered, full) if len(covered) == len(ranges) else ()
        self.lefts = nn.ParameterList(_frozen(part.left.to(dense)) for part in parts)
        self.rights = nn.ParameterList(_frozen(part.right.to(dense)) for part in parts)
        self.rest = _frozen(take(dense, self._rest_places, axis)) if self._rest_places else None
        self.register_parameter("bias", bias)
        self.register_buffer("_order", self._order_of_rows(dense.device), persistent=False)

    def _order_of_rows(self, device: torch.device) -> Tensor | None:
        """Where each output stands among those of the parts and the rest, one after another; None where they stand in
        order.
        """
        if self._by_columns or self._places == [(None, None)]:
            return None
        listed = [place for rows, _ in self._places for place in places(rows or ())] + places(self._rest_places)
        return None if listed == sorted(listed) else torch.tensor(listed, device=device).argsort()

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs `[..., n]`; returns `[..., m]`."""
        if self._places == [(None, None)]:
            return self._of_part(0, inputs, self.bias)
        pieces = [
            self._of_part(number, take(inputs, columns, -1), None) for number, (_, columns) in enumerate(self._places)
        ]
        if self.rest is not None:
            pieces.append(linear(take(inputs, self._rest_places, -1) if self._by_columns else inputs, self.rest))
        if self._by_columns:
            outputs = torch.stack(pieces).sum(0)
        else:
            outputs = torch.cat(pieces, dim=-1)
            outputs = outputs if self._order is None else outputs.index_select(-1, self._order)
        return outputs if self.bias is None else outputs + self.bias

    def _of_part(self, number: int, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """What one part makes of its inputs `[..., n]`."""
        return linear(linear(inputs, self.rights[number]), self.lefts[number], bias)

    def reset_order(self) -> None:
        """Compute again what no checkpoint holds, after the factors were loaded or moved."""
        self._order = self._order_of_rows(self.lefts[0].device)

    @property
    def parts(self) -> list[LowRankPart]:
        """The factored parts, as they are."""
        return [
            LowRankPart(*place, left.detach(), right.detach())
            for place, left, right in zip(self._places, self.lefts, self.rights, strict=True)
        ]

    def product(self, dtype: torch.dtype) -> Tensor:
        """The whole weight, `[m, n]`: parts multiplied out in fp32 or better, the rest as it is."""
        dense = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.lefts[0].device)
        if self.rest is not None:
            put(
                dense,
                None if self._by_columns else self._rest_places,
                self._rest_places if self._by_columns else None,
                self.rest.detach().to(dtype),
            )
        for part in self.parts:
            put(dense, part.rows, part.columns, _multiplied(part, dtype))
        return dense

    def product_of(self, rows: Ranges | None, columns: Ranges | None, dtype: torch.dtype) -> Tensor:
        """The weight of one part, `[m, n]`; only that part is multiplied out where it is factored by itself."""
        for part in self.parts:
            if (part.rows, part.columns) == (rows, columns):
                return _multiplied(part, dtype).to(dtype)
        return take(take(self.product(dtype), rows, 0), columns, 1)

    @property
    def multiplied(self) -> int:
        """The numbers that multiply a token: all but the bias."""
        return sum(value.numel() for value in self.parameters()) - (self.bias.numel() if self.bias is not None else 0)

    @property
    def weight(self) -> Tensor:
        """The whole weight as the layer it stands for keeps it, for code that asks a linear layer for its dtype or its
        numbers; computed at every call.
        """
        dense = self.product(self.lefts[0].dtype)
        return dense.T if self.transposed else dense

    def extra_repr(self) -> str:
        """Sizes, as torch prints them."""
        ranks = ", ".join(str(left.shape[1]) for left in self.lefts)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, ranks=[{ranks}],"
            f" bias={self.bias is not None}"
        )


def _multiplied(part: LowRankPart, dtype: torch.dtype) -> Tensor:
    working = torch.promote_types(dtype, torch.float32)
    return part.left.to(working) @ part.right.to(working)


def _frozen(value: Tensor) -> nn.Parameter:
    # A copy: factors are often views of a whole decomposition, which would stay in memory with them.
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
