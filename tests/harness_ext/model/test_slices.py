"""Ranges of rows and columns of a weight."""

from __future__ import annotations

import torch

from harness_ext.model.slices import left_over, overlap, put, take


def test_ranges() -> None:
    value = torch.arange(20).reshape(4, 5)
    assert take(value, ((3, 4), (0, 1)), 0).tolist() == [value[3].tolist(), value[0].tolist()]
    put(value, ((1, 2),), ((0, 2), (4, 5)), torch.tensor([[-1, -2, -3]]))
    assert value[1].tolist() == [-1, -2, 7, 8, -3]
    assert (
        overlap(((0, 2), (5, 7)), ((2, 5),)) is False
        and overlap(((0, 2), (5, 7)), ((6, 9),))
        and overlap(None, ((0, 1),))
    )
    assert left_over([((1, 2),), ((4, 6), (2, 3))], 8) == ((0, 1), (3, 4), (6, 8)) and left_over([((0, 8),)], 8) == ()
