"""Parts of a matrix, as half-open ranges of its rows or columns: reading them, writing them, and telling which are left
over. None stands for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from harness_ext.model.geometry import Ranges

if TYPE_CHECKING:
    from torch import Tensor


# Rows that take turns with others are a range each; to copy so many one by one would take long.
_MANY = 16


def take(value: Tensor, ranges: Ranges | None, axis: int) -> Tensor:
    """The places that the ranges list along one axis, in their order."""
    import torch

    if ranges is None:
        return value
    if len(ranges) > _MANY:
        return value.index_select(axis, torch.tensor(places(ranges), device=value.device))
    return torch.cat([value.narrow(axis, start, stop - start) for start, stop in ranges], dim=axis)


def put(whole: Tensor, rows: Ranges | None, columns: Ranges | None, values: Tensor) -> None:
    """Write values into the ranges of a 2-D view."""
    import torch

    if rows is not None and columns is None and len(rows) > _MANY:
        whole[torch.tensor(places(rows), device=whole.device)] = values
        return
    for row, low, high in spans(rows, whole.shape[0]):
        for column, left, right in spans(columns, whole.shape[1]):
            whole[low:high, left:right] = values[row : row + high - low, column : column + right - left]


def spans(ranges: Ranges | None, full: int) -> Iterator[tuple[int, int, int]]:
    """The place of each range in the part, then its start and stop in the whole."""
    place = 0
    for start, stop in ranges or ((0, full),):
        yield place, start, stop
        place += stop - start


def overlap(one: Ranges | None, other: Ranges | None) -> bool:
    """Whether two parts share a place."""
    if one is None or other is None:
        return True
    return any(start < end and begin < stop for start, stop in one for begin, end in other)


def left_over(parts: Iterable[Ranges], full: int) -> Ranges:
    """The places, of `full` in all, that no part lists; in ascending order."""
    place, found = 0, []
    for start, stop in sorted(span for ranges in parts for span in ranges):
        if place < start:
            found.append((place, start))
        place = max(place, stop)
    if place < full:
        found.append((place, full))
    return tuple(found)


def places(ranges: Ranges) -> list[int]:
    """Every place that the ranges list, in their order."""
    return [place for start, stop in ranges for place in range(start, stop)]
