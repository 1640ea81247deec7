"""Where the words at the heads of upright lines stand, so that each can be read: beside one another, below one another,
or joined.

Notable choices:
- A plot does not know its width. Places are found for the narrowest (`NARROWEST`, that of a telephone); on a wider one
  everything is farther apart.
- Lines too close to tell apart share their words, which stand below one another, each once, with how often. The closer
  than the first of `CLOSE` are joined, and more only where that leaves more rows than `MOST_ROWS`.
- Words stand to the right of their lines, or to the left where they would stick out. They stand below those that their
  lines would otherwise run through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

# pixels: from the first to the last place, of a letter (rather too wide), between words and lines
NARROWEST, LETTER, SPACE = 250.0, 6.4, 10.0
CLOSE = (0.06, 0.12, 0.25, 0.5, 1.0)  # of the way from the first to the last place
MOST_ROWS = 10


class Head(NamedTuple):
    """Lines that share their words. lines: their numbers; words: one a row; place: of the line that they stand at, 0 to
    1; row: of the first, 0 at the top; start, end: what words and lines cover, in pixels.
    """

    lines: list[int]
    words: list[str]
    place: float
    to_the_left: bool
    row: int
    start: float
    end: float


def heads(places: Sequence[float], words: Sequence[str]) -> list[Head]:
    """The heads of upright lines that stand at `places` (0 to 1) and bear `words`."""
    found: list[Head] = []
    for close in CLOSE:
        found = _in_rows([_head(lines, places, words) for lines in _joined(places, close)])
        if rows(found) <= MOST_ROWS:
            break
    return found


def rows(found: Sequence[Head]) -> int:
    """How many rows of words there are."""
    return max((head.row + len(head.words) for head in found), default=0)


def _joined(places: Sequence[float], close: float) -> list[list[int]]:
    """The lines from left to right, those together that are at most `close` to the right of the first."""
    groups: list[list[int]] = []
    for line in sorted(range(len(places)), key=lambda number: (places[number], number)):
        if groups and places[line] - places[groups[-1][0]] <= close:
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def _head(lines: list[int], places: Sequence[float], words: Sequence[str]) -> Head:
    counted = Counter(words[line] for line in lines)
    said = [word if count == 1 else f"{word} ({count})" for word, count in counted.items()]
    width = LETTER * max(map(len, said)) + SPACE
    xs = [NARROWEST * places[line] for line in lines]
    line, left = _side(xs, width)
    start, end = (xs[line] - width, xs[line]) if left else (xs[line], xs[line] + width)
    return Head(lines, said, places[lines[line]], left, 0, min(start, xs[0]), max(end, xs[-1]))


def _side(xs: Sequence[float], width: float) -> tuple[int, bool]:
    """At which of some lines the words stand, and whether to its left: to the right of all or to the left of all where
    there is room, otherwise between them, otherwise where more room is.
    """
    last = len(xs) - 1
    choices = [
        (last, False),
        (0, True),
        *((line, False) for line in range(last, -1, -1)),
        *((line, True) for line in range(last + 1)),
    ]
    fitting = (
        choice for choice in choices if (xs[choice[0]] >= width if choice[1] else xs[choice[0]] + width <= NARROWEST)
    )
    return next(fitting, (0, True) if xs[0] > NARROWEST - xs[last] else (last, False))


def _in_rows(found: Sequence[Head]) -> list[Head]:
    """Those to the right of their lines from the left on, then the others from the right on: each below all that it
    meets.
    """
    placed: list[Head] = []
    for head in sorted(found, key=lambda head: (head.to_the_left, -head.place if head.to_the_left else head.place)):
        met = [other for other in placed if other.start < head.end and head.start < other.end]
        placed.append(head._replace(row=rows(met)))
    return placed
