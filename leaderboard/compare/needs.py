"""What an undecided comparison still needs: kept per comparison, worked out for the number of comparisons beside it.

How many documents decide depends on how many comparisons the level is corrected for, which is known only where a board
or a gate is put together. So a comparison keeps the sides (`statistics.power.Side`) that its verdicts rest on, as JSON
in the store, and `lacking` and `detectable` take the levels. Notable choices:
- *Same* needs both bounds, and the truth hoped for is that nothing changed on average. Where the documents for that are
  there already, the truth is taken to be as it looks, for whichever of the two verdicts is nearer.
- A difference beyond the margin is to be confirmed at the size that it has.
- With few documents no result reaches a level, however extreme: of each independent one the p-value halves at most, and
  once more for right and wrong answers (mid-p). And a difference that they would show only if it were as large as the
  score's range is none that they can show. Both are *too few documents* (`too_few`). An interval as wide as the range
  says nothing either.
- Of right and wrong answers the share of documents that change is that seen, with half a document more each way, so
  that no flips seen are not taken for none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from leaderboard import statistics as stats
from leaderboard.statistics import Side

_DEFAULTS = [Side._field_defaults.get(name, math.nan) for name in Side._fields]
_WHOLE = 0.9
"""Of a range: so much of it is nearly all."""
Claim = Literal["within", "within as seen", "difference"]


_decoder = json.JSONDecoder()
"""Reads JSON of our own writing, of which a board has a hundred thousand texts: `json.loads` also looks at the type of
each, and for white space."""


class Needs(NamedTuple):
    """The sides of one comparison, in the units in which its test works.

    `within`: of a drop and of a gain of the margin, if truly nothing changed; `as_seen`: the same, if the difference is
    the one seen; `difference`: of no difference, if it is the one seen. An empty tuple: there is no such verdict.
    `beyond`: whether the difference seen is as large as the margin, or larger. `variance`: of one document's
    difference; of right and wrong answers (`flips`) the share that changes. `base_score`: where the units are logs of a
    ratio to this score, else None; otherwise `unit` is one of theirs in the metric's. `worse`: the difference seen is a
    loss. `enough`: documents before which neither *same* nor *better* may be said, see `collapses`; None: no number of
    them is enough. `bound`: what one document counts for at most. `width`: of the range of all differences that are
    possible, `largest`: the largest of them, in the metric's units; None where nothing bounds them. `fell`, `rose`:
    documents that got worse and better; None where a document has no better and worse.
    """

    within: tuple[Side, ...]
    as_seen: tuple[Side, ...]
    difference: tuple[Side, ...]
    beyond: bool
    variance: float
    flips: bool = False
    base_score: float | None = None
    unit: float = 1.0
    worse: bool = False
    enough: int | None = 0
    bound: float | None = None
    width: float | None = None
    largest: float | None = None
    fell: int | None = None
    rose: int | None = None

    def of_distance(self, improvement: float) -> Needs:
        """The same, where the test of a difference is about another one: of the distance to a best value."""
        side = () if improvement == 0 else (stats.normal_side(abs(improvement), self.variance),)
        return self._replace(difference=side if self.within else (), worse=improvement < 0, fell=None, rose=None)

    def in_metric(self, size: float) -> float:
        """A difference in the metric's units."""
        return self.unit * size if self.base_score is None else self.base_score * math.expm1(size)


class Levels(NamedTuple):
    """One-sided levels of the verdicts: *same*, and *better* or *worse*."""

    same: float
    difference: float


class Lacking(NamedTuple):
    """How many documents give the verdict `claim` in four of five cases."""

    documents: int
    claim: Claim


def lacking(needs: Needs, count: int, levels: Levels) -> Lacking | None:
    """What a comparison of `count` documents still needs at these levels. Not more than `count` where it was close:
    those documents would have been enough in four of five cases. None where no number of documents decides.
    """
    if needs.beyond:
        return claimed(needs, "difference", levels)
    unchanged = claimed(needs, "within", levels)
    if unchanged is not None and unchanged.documents > count:
        return unchanged
    found = (claimed(needs, "within as seen", levels), claimed(needs, "difference", levels))
    return min(filter(None, found), default=unchanged)


class TooFew(NamedTuple):
    """Why documents are too few. least: documents without which no result reaches the level, where there are fewer;
    None where a difference would have to be as large as the range of the score.
    """

    least: int | None


def too_few(needs: Needs, count: int, level: float) -> TooFew | None:
    """Whether `count` documents can say nothing of a difference at one-sided `level`; None where they can."""
    return can_show(needs, count, level)[0]


def can_show(needs: Needs, count: int, level: float) -> tuple[TooFew | None, float | None]:
    """`too_few` and `detectable`."""
    least = _least(needs, level)
    if count < least:
        return TooFew(math.ceil(least)), None
    shown = _shown(needs, count, level)
    beyond = shown is not None and needs.largest is not None and shown >= _WHOLE * needs.largest
    return (TooFew(None), None) if beyond else (None, shown)


def _least(needs: Needs, level: float) -> float:
    """The documents without which no result reaches a level."""
    bits = math.ceil(-math.log2(level) - 1e-9) - (1 if needs.flips else 0)
    return bits * max((side.size for side in needs.within), default=1.0)


def says_nothing(needs: Needs, count: int, low: float, high: float) -> bool:
    """Whether a 95 % interval says nothing: it is as wide as the range of the score, or no result of so few documents
    would have been significant.
    """
    return spans(needs.width, low, high) or count < _least(needs, 0.025)


def spans(width: float | None, low: float, high: float) -> bool:
    """Whether an interval is about as wide as the range of all that is possible."""
    return width is not None and high - low >= _WHOLE * width


def claimed(needs: Needs, claim: Claim, levels: Levels) -> Lacking | None:
    """How many documents give one verdict; None where no number does."""
    sides = {"within": needs.within, "within as seen": needs.as_seen, "difference": needs.difference}[claim]
    documents = stats.documents_for(sides, levels.difference if claim == "difference" else levels.same)
    if documents is None:
        return None
    if claim == "difference" and needs.worse:
        return Lacking(documents, claim)
    return None if needs.enough is None else Lacking(max(documents, needs.enough), claim)


def detectable(needs: Needs, count: int, level: float) -> float | None:
    """The smallest difference that `count` documents show with 80 % power at one-sided `level`, in the metric's units;
    None where it is not a finite number, or the documents are too few for any.
    """
    return can_show(needs, count, level)[1]


def _shown(needs: Needs, count: int, level: float) -> float | None:
    size = stats.detectable_difference(needs.variance, count, level, flips=needs.flips)
    unit = needs.within[0].size if needs.within else 1.0
    # where documents spread wide, their own variance decides, and no unseen gain is as likely
    if needs.bound is not None and count and needs.bound * size > size**2 + needs.variance / unit:
        size = max(size, stats.detectable_within_bound(needs.variance, count, level, needs.bound, unit))
    if not 0 < size < 700:  # a perplexity e^700 times as large is none
        return None
    found = needs.in_metric(size)
    return found if math.isfinite(found) else None


def of_flips(flips: stats.Flips, margin: float) -> Needs:
    """Of answers that are right or wrong. `margin` lies between 0 and 1."""
    drop = (flips.lost - flips.gained) / flips.documents
    changed = max((flips.lost + flips.gained + 1) / (flips.documents + 1), abs(drop))
    half, lost, gained = changed / 2, (changed + drop) / 2, (changed - drop) / 2
    side = stats.flip_side
    return Needs(
        (side(half, half, margin),) * 2,
        (side(lost, gained, margin), side(gained, lost, margin)),
        (stats.changed_side(lost, gained),) if drop else (),
        abs(drop) >= margin,
        changed,
        flips=True,
        worse=drop > 0,
        fell=flips.lost,
        rose=flips.gained,
    )


def of_mean(variance: float, drop: float, margin: float) -> Needs:
    """Of a mean of which the variance of a document is known, and `drop` was seen. Raises nothing: a variance that is
    not a finite number gives no sides.
    """
    if not math.isfinite(variance) or not margin > 0:
        return Needs((), (), (), abs(drop) >= margin, math.nan)

    def side(distance: float) -> Side:
        return stats.normal_side(distance, variance)

    return Needs(
        (side(margin),) * 2,
        (side(margin - drop), side(margin + drop)),
        (side(abs(drop)),) if drop else (),
        abs(drop) >= margin,
        variance,
        worse=drop > 0,
    )


Standardise = Callable[..., tuple[Any, ...]]
"""`(differences, margin, bound, clusters, weights) -> (z, worst, ...)`: the values of the clipped rule, see
`stats.clipped_side`."""


def of_clipped(
    standardised: Standardise,
    differences: np.ndarray,
    margin: float,
    bound: float,
    clusters: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Needs:
    """Of the clipped rule, for differences `[n]` (of weighted texts their sums), below zero worse. One independent unit
    has no spread, and gives no sides.
    """
    if len(differences if clusters is None else np.unique(clusters)) < 2:
        return of_mean(math.nan, 0.0, margin)
    sizes = np.ones(len(differences)) if weights is None else np.asarray(weights, dtype=float)
    clipped = np.clip(differences, -bound * sizes, bound * sizes)
    drop = -float(np.sum(clipped) / np.sum(sizes))

    def side(direction: float, truth: float, against: float) -> Side:
        """Of a drop (direction 1) or a gain (-1) of `against`, if it is truly `truth`."""
        recentred = direction * differences + sizes * (direction * drop - truth)
        z, worst, *_ = standardised(recentred, against, bound, clusters, weights)
        return stats.clipped_side(z, worst, len(differences) / len(z))

    within = (side(1, 0.0, margin), side(-1, 0.0, margin))
    # the spread of what is counted: clipped already, so not once more
    spread = np.asarray(standardised(clipped + sizes * drop, 0.0, 4 * bound, clusters, weights)[0])
    size = len(differences) / len(spread)
    typical = float(np.sum(sizes)) / len(spread)
    variance = size * float(np.var(spread, ddof=1)) / typical**2
    return Needs(
        within,
        (side(1, drop, margin), side(-1, -drop, margin)) if abs(drop) < margin else (),
        (side(math.copysign(1, -drop), -abs(drop), 0.0),) if drop else (),
        abs(drop) >= margin,
        variance,
        worse=drop > 0,
        bound=bound,
        fell=int(np.sum(differences < 0)),
        rose=int(np.sum(differences > 0)),
    )


def to_json(needs: Needs | None) -> str | None:
    """For the store, to six digits."""
    if needs is None or not needs.within:
        return None
    rows = [[_without_defaults(side) for side in sides] for sides in needs[:3]]
    return json.dumps([*rows, *map(_short, needs[3:])], separators=(",", ":"))


def from_json(text: str | None) -> Needs | None:
    """From the store."""
    if not text:
        return None
    (within, as_seen, difference, *rest), _ = _decoder.raw_decode(text)
    sides = [tuple(Side(*values) for values in rows) for rows in (within, as_seen, difference)]
    return Needs(sides[0], sides[1], sides[2], *rest)


def _without_defaults(side: Side) -> list[object]:
    values = list(side)
    while values and values[-1] == _DEFAULTS[len(values) - 1]:
        values.pop()
    return [_short(value) for value in values]


def _short(value: object) -> object:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
