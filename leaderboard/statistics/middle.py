"""Metrics whose best value lies in the middle: a bias score is best at zero, a share of stereotyped choices at one
half.

With `B` and `R` the means and `c` the best value, the distance to it changed only if
`(B - c)^2 - (R - c)^2 = (B - R)(B + R - 2c)` differs from zero: so only if both factors do, and the larger of their two
p-values is a valid p-value for it (an intersection-union test), with no resampling of a folded mean.

Each factor is the mean of numbers of the documents, and tested as differences are: those that are -1, 0 or 1 and
independent by mid-p McNemar and Tango, others as clipped means (`clipped`), each with a bound of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from leaderboard.statistics.binary import binary_within_p, bonett_price, count_flips, mid_p_mcnemar
from leaderboard.statistics.clipped import (
    ClippedSample,
    clipped_interval,
    clipped_sample,
    clipped_tails,
    clipped_within_p,
)
from leaderboard.statistics.values import Estimate, Tails


class MiddleTest(NamedTuple):
    """Whether the distance to a best value in the middle changed. `improvement` > 0: it shrank, by that much.
    `p_worse`: that it did not grow.
    """

    improvement: float
    p_value: float
    p_worse: float


class MiddleBounds(NamedTuple):
    """How far a document counts at most: in `R - B`, and in `B + R - 2c`."""

    moved: float
    sides: float


def is_right_or_wrong(values: np.ndarray, bound: float, clusters: np.ndarray | None = None) -> bool:
    """Whether independent numbers `[n]` are all -1, 0 or 1, so that their counts say everything."""
    return clusters is None and bound >= 1 and bool(np.all(np.isin(values, (-1.0, 0.0, 1.0))))


@dataclass(frozen=True)
class _Factor:
    """The mean of numbers `[n]`, against zero or a margin."""

    values: np.ndarray
    clusters: np.ndarray | None
    bound: float

    @cached_property
    def right_or_wrong(self) -> bool:
        return is_right_or_wrong(self.values, self.bound, self.clusters)

    @cached_property
    def sample(self) -> ClippedSample:
        return clipped_sample(self.values, self.bound, self.clusters)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.right_or_wrong else self.sample.mean

    def estimate(self) -> Estimate:
        if self.right_or_wrong:
            return bonett_price(*count_flips(self.values))
        return clipped_interval(self.sample)

    def tails(self) -> Tails:
        if self.right_or_wrong:
            flips = count_flips(self.values)
            return mid_p_mcnemar(flips.lost, flips.gained)
        return clipped_tails(self.sample)

    def above(self, margin: float) -> float:
        """p of "the true mean is `-margin` or less"."""
        if self.right_or_wrong and margin < 1:
            return binary_within_p(*count_flips(self.values), margin)
        return clipped_within_p(self.sample, margin)

    def below(self, margin: float) -> float:
        """p of "the true mean is `margin` or more"."""
        if self.right_or_wrong and margin < 1:
            return binary_within_p(*count_flips(-self.values), margin)
        return clipped_within_p(self.sample.mirrored, margin)


def middle_best_test(
    baseline: np.ndarray, recipe: np.ndarray, best: float, clusters: np.ndarray | None, bounds: MiddleBounds
) -> MiddleTest:
    """Test of `|mean(baseline) - best| = |mean(recipe) - best|` for paired scores `[n]`, two-sided, and one-sided for a
    distance that grew.

    See the module's notes for the factorisation. The size of both is at most nominal: the hypothesis is that one factor
    is zero (or that both are not of one sign), and it is rejected only where both tests reject. `improvement` is that
    of the means, or, where documents were clipped, of the clipped ones: `|S - M| / 2 - |S + M| / 2`, with `M` and `S`
    the means of the two factors.
    """
    moved = _Factor(recipe - baseline, clusters, bounds.moved)
    sides = _Factor(baseline + recipe - 2 * best, clusters, bounds.sides)
    improvement = _shrunk(moved.mean, sides.mean)
    by_moved, by_sides = moved.tails(), sides.tails()
    # away upwards, or downwards: two ways, so twice
    worse = min(1.0, 2 * min(max(by_moved.greater, by_sides.greater), max(by_moved.less, by_sides.less)))
    return MiddleTest(improvement, max(by_moved.two_sided, by_sides.two_sided), worse)


def middle_limits(
    moved: tuple[float, float],
    baseline: np.ndarray,
    recipe: np.ndarray,
    best: float,
    clusters: np.ndarray | None,
    bounds: MiddleBounds,
) -> tuple[float, float]:
    """The 95 % limits of the improvement, of paired scores `[n]`; NaN where there is no variance. moved: those of
    `R - B`.

    The improvement, `-sign(S M) min(|S|, |M|)`, rises or falls with either factor while the other stays, so that over
    both intervals it has its ends at their corners. Where the sides are certain and the best value is far, these are
    the limits of `R - B`, or mirrored. To take the baseline's own distance for the truth instead would cover as little
    as 52 %.
    """
    sides = _Factor(baseline + recipe - 2 * best, clusters, bounds.sides).estimate()
    corners = [_shrunk(one, other) for one in moved for other in (sides.low, sides.high)]
    return min(corners), max(corners)


def _shrunk(moved: float, sides: float) -> float:
    """By how much the distance shrank, `|B - c| - |R - c|`, from `R - B` and `B + R - 2c`."""
    return abs(sides - moved) / 2 - abs(sides + moved) / 2


@dataclass(frozen=True)
class MiddleMargin:
    """Paired scores `[n]` against margins of the growth of their mean's distance to `best`."""

    baseline: np.ndarray
    recipe: np.ndarray
    best: float
    clusters: np.ndarray | None
    bounds: MiddleBounds

    @cached_property
    def _moved(self) -> _Factor:
        return _Factor(self.recipe - self.baseline, self.clusters, self.bounds.moved)

    @cached_property
    def _sides(self) -> _Factor:
        return _Factor(self.baseline + self.recipe - 2 * self.best, self.clusters, self.bounds.sides)

    def within_p(self, margin: float) -> float:
        """One-sided p of "the distance to `best` grew by at least `margin`", for a margin above zero.

        The distance grew that much upwards only if both `R - B` and `R + B - 2c` are at least `margin`, downwards only
        if both are at most `-margin`. Either direction is excluded where one of its two parts is, at half the level;
        both must be.
        """
        upwards = min(self._moved.below(margin), self._sides.below(margin))
        downwards = min(self._moved.above(margin), self._sides.above(margin))
        return min(1.0, 2 * max(upwards, downwards))
