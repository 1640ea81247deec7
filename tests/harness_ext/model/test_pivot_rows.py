"""Pivot rows: the product of two factors in fewer numbers, within rounding, with no large coefficient."""

from __future__ import annotations

import pytest
import torch

from harness_ext.model.low_rank import LowRankLinear, LowRankPart
from harness_ext.model.pivot_rows import PivotRowsLinear, pivot_rows


def factors(rows: int, columns: int, rank: int, falling: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + columns + rank)
    scale = falling ** torch.arange(rank, dtype=torch.float64)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64) * scale
    return left, torch.randn(rank, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "shape", [(24, 24, 8), (40, 24, 5), (24, 40, 17), (8, 8, 8), (9, 3, 1), (7, 5, 0), (200, 300, 90)]
)
@pytest.mark.parametrize("falling", [1.0, 0.8])
def test_nothing_is_lost(shape: tuple[int, int, int], falling: float) -> None:
    left, right = factors(*shape, falling)
    rows, columns, rank = shape
    found = pivot_rows(left, right)
    product = left @ right
    assert found.coefficients.shape == (rows - rank, rank) and found.pivots.shape == (rank, columns)
    assert sorted(found.order.tolist()) == list(range(rows))
    kept = torch.cat([found.pivots, found.coefficients @ found.pivots])[found.order]
    assert (kept - product).norm() <= 1e-12 * product.norm()
    assert not found.coefficients.numel() or float(found.coefficients.abs().max()) <= 1.1
    # A pivot is a row as it is.
    for place in range(rows):
        if found.order[place] < rank:
            torch.testing.assert_close(found.pivots[found.order[place]], product[place])


def test_factors_of_less_than_their_rank_are_kept_too() -> None:
    left, right = factors(30, 20, 8)
    left[:, 5:] = left[:, :3]
    found = pivot_rows(left, right)
    kept = torch.cat([found.pivots, found.coefficients @ found.pivots])[found.order]
    assert (kept - left @ right).norm() <= 1e-12 * (left @ right).norm()
    zero = pivot_rows(torch.zeros(6, 2), torch.zeros(2, 5))
    assert not torch.cat([zero.pivots, zero.coefficients @ zero.pivots]).any()


@pytest.mark.parametrize(
    ("rows", "columns"),
    [((None,), (None,)), ((((2, 4), (7, 9)), ((0, 1), (5, 6))), (None, None)), ((None, None), (((0, 3),), ((4, 6),)))],
)
def test_a_layer_computes_what_two_factors_compute(rows: tuple, columns: tuple) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    bias = torch.nn.Parameter(torch.randn(10, generator=generator, dtype=torch.float64))
    parts, pivots, orders = [], [], []
    for part_rows, part_columns in zip(rows, columns, strict=True):
        height = 10 if part_rows is None else sum(stop - start for start, stop in part_rows)
        width = 6 if part_columns is None else sum(stop - start for start, stop in part_columns)
        left, right = factors(height, width, 2)
        parts.append(LowRankPart(part_rows, part_columns, left, right))
        found = pivot_rows(left, right)
        pivots.append(LowRankPart(part_rows, part_columns, found.coefficients, found.pivots))
        orders.append(found.order.to(torch.int32))
    expected = LowRankLinear(dense, parts, bias, transposed=False)
    layer = PivotRowsLinear(dense, pivots, bias, orders=orders, transposed=False)
    x = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layer(x), expected(x))
    torch.testing.assert_close(layer.product(torch.float64), expected.product(torch.float64))
    assert layer.multiplied == expected.multiplied - 4 * len(parts) and layer.is_sound()
    layer.order(0)[0] = layer.order(0)[1]
    assert not layer.is_sound()
