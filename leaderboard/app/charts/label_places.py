"""Where the names of points go in a plot: beside their point, over no other name and no point, within the plot.

Notable choices:
- A page does not tell how wide a plot is drawn, so a place must do at every width that it may have.
- Of points that are near each other all are named or none: a name beside two points could be of either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

LETTER, LINE = 5.6, 12.0
"""Pixels that a letter of the labels is wide at most on average, and a line is high."""
_POINT = 5.0  # pixels from a point's middle to its edge
_NEAR = 16.0
_MARGIN = 14.0  # pixels above and below the plot that a name may use


class LabelPlace(NamedTuple):
    """Beside its point: pixels to the right and down from it to the text's anchor, and which end is the anchor."""

    right: float
    down: float
    align: Literal["left", "center", "right"]


_PLACES = (
    LabelPlace(0, -9, "center"),
    LabelPlace(0, 16, "center"),
    LabelPlace(8, 4, "left"),
    LabelPlace(-8, 4, "right"),
    LabelPlace(7, -8, "left"),
    LabelPlace(-7, -8, "right"),
    LabelPlace(7, 15, "left"),
    LabelPlace(-7, 15, "right"),
)


class Spot(NamedTuple):
    """A point within the plot: 0 to 1 from the left and from the top, and its name; empty for one that has none."""

    across: float
    down: float
    name: str = ""


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


class LabelObstacle(NamedTuple):
    """A level or upright line within the plot: both its ends, 0 to 1 from the left and from the top."""

    left: float
    top: float
    right: float
    bottom: float


def places(
    spots: Sequence[Spot], lines: Sequence[LabelObstacle], widths: Sequence[float], height: float
) -> dict[int, LabelPlace]:
    """Position in `spots` -> where its name goes, of those that have room, the first spots first. lines: that no name
    may cross. widths: of the plot in pixels, each of which must do.
    """
    obstacles = [
        [_around(spot, width, height) for spot in spots] + [_along(line, width, height) for line in lines]
        for width in widths
    ]
    taken: list[list[_Box]] = [[] for _ in widths]
    found: dict[int, LabelPlace] = {}
    for group in _groups(spots, min(widths), height):
        for tried in itertools.product(_PLACES, repeat=len(group)):
            boxes = [[_text(spots[i], place, width, height) for i, place in zip(group, tried)] for width in widths]
            if all(_fits(boxes[k], taken[k], obstacles[k], (width, height)) for k, width in enumerate(widths)):
                found |= dict(zip(group, tried))
                for k in range(len(widths)):
                    taken[k] += boxes[k]
                break
    return found


def _groups(spots: Sequence[Spot], width: float, height: float) -> Iterator[list[int]]:
    """Named spots that are near each other; groups of more than three go without names."""
    left = [i for i, spot in enumerate(spots) if spot.name]
    while left:
        group = [left.pop(0)]
        for member in group:
            near = [i for i in left if _distance(spots[i], spots[member], width, height) < _NEAR]
            left = [i for i in left if i not in near]
            group += near
        if len(group) <= 3:
            yield group


def _distance(one: Spot, other: Spot, width: float, height: float) -> float:
    across, down = (one.across - other.across) * width, (one.down - other.down) * height
    return float((across**2 + down**2) ** 0.5)


def _around(spot: Spot, width: float, height: float) -> _Box:
    x, y = spot.across * width, spot.down * height
    return _Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT)


def _along(line: LabelObstacle, width: float, height: float) -> _Box:
    return _Box(line.left * width - 1, line.top * height - 1, line.right * width + 1, line.bottom * height + 1)


def _text(spot: Spot, place: LabelPlace, width: float, height: float) -> _Box:
    long = LETTER * len(spot.name)
    anchor = spot.across * width + place.right
    left = anchor - {"left": 0.0, "center": long / 2, "right": long}[place.align]
    base = spot.down * height + place.down
    return _Box(left, base - LINE + 3, left + long, base + 3)


def _fits(boxes: Sequence[_Box], taken: Sequence[_Box], points: Sequence[_Box], size: tuple[float, float]) -> bool:
    width, height = size
    inside = all(
        box.left >= 0 and box.right <= width and box.top >= -_MARGIN and box.bottom <= height + _MARGIN for box in boxes
    )
    return (
        inside
        and not any(box.meets(other) for box in boxes for other in (*taken, *points))
        and not any(one.meets(other) for one, other in itertools.combinations(boxes, 2))
    )
