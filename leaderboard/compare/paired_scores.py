"""Paired scores whose mean is reported: which formula fits them. Everything is oriented, so that below zero is worse.

- right or wrong, documents independent: Bonett-Price, mid-p McNemar, Tango;
- scores within [0, 1] otherwise (clusters, partial credit): the interval that allows for changes too rare to have been
  seen;
- any other score: the t interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from leaderboard import statistics as stats


@dataclass(frozen=True)
class PairedScores:
    """The scores `[n]` of two runs in one order. sign: 1 where higher is better, else -1. unit: all scores lie within
    [0, 1].
    """

    baseline: np.ndarray
    recipe: np.ndarray
    sign: float
    unit: bool
    clusters: np.ndarray | None
    seed: int

    @cached_property
    def differences(self) -> np.ndarray:
        """Recipe minus baseline `[n]`, below zero worse."""
        return self.sign * (self.recipe - self.baseline)

    @cached_property
    def binary(self) -> bool:
        """Whether the flips say everything."""
        return self.unit and self.clusters is None and bool(np.all(np.isin(self.differences, (-1.0, 0.0, 1.0))))

    @cached_property
    def flips(self) -> stats.Flips:
        """Documents lost and gained."""
        return stats.count_flips(self.differences)

    def test(self) -> stats.Tails:
        """Tests of no difference."""
        return stats.paired_test(self.differences, self.clusters, seed=self.seed)

    def estimate(self, confidence: float = 0.95) -> stats.Estimate:
        """The mean difference with its two-sided interval."""
        if self.binary:
            return stats.bonett_price(*self.flips, confidence)
        if self.unit:
            return stats.bounded_interval(self.differences, self.clusters, confidence)
        return stats.paired_interval(self.differences, self.clusters, confidence)

    def within_p(self, margin: float) -> float:
        """One-sided p of a drop of at least `margin`."""
        if self.binary and margin < 1:
            return stats.binary_within_p(*self.flips, margin)
        if self.unit:
            return stats.bounded_within_p(self.differences, margin, self.clusters)
        return stats.within_p(self.estimate(), margin)

    def same_p(self, margin: float) -> float:
        """p of a difference of at least `margin` in either direction."""
        if self.binary and margin < 1:
            return stats.binary_equivalence_p(*self.flips, margin)
        if self.unit:
            return max(self.within_p(margin), stats.bounded_within_p(-self.differences, margin, self.clusters))
        return stats.equivalence_p(self.estimate(), margin)

    def drop_limits(self, level: float | None) -> tuple[float | None, float | None]:
        """One-sided limits of the drop at `level`: each is what `within_p` excludes there, of this pair and of the
        mirrored one. None without a level or a variance.
        """
        if level is None:
            return None, None
        if self.binary:
            lost, gained, count = self.flips
            return -stats.binary_drop_limit(gained, lost, count, level), stats.binary_drop_limit(
                lost, gained, count, level
            )
        estimate = self.estimate(1 - 2 * level)
        return (None, None) if math.isnan(estimate.low) else (-estimate.high, -estimate.low)

    def distance_limits(self, best: float, level: float | None) -> tuple[float | None, float | None]:
        """The same of the growth of the distance to a best value in the middle."""
        if level is None or len(self.baseline) < 2:
            return None, None

        def excluded(first: np.ndarray, second: np.ndarray) -> Callable[[float], bool]:
            return lambda margin: (
                margin > 0 and stats.middle_within_p(first, second, best, margin, self.clusters) <= level
            )

        growth = abs(float(np.mean(self.recipe)) - best) - abs(float(np.mean(self.baseline)) - best)
        high, low = (
            _smallest(excluded(self.baseline, self.recipe), growth),
            _smallest(excluded(self.recipe, self.baseline), -growth),
        )
        return (None if low is None else -low), high


def _smallest(excluded: Callable[[float], bool], start: float) -> float | None:
    """The smallest margin above zero that is excluded, to a thousandth of itself; None where none is found."""
    inside, outside = 0.0, max(2 * abs(start), 1e-6)
    for _ in range(60):
        if excluded(outside):
            break
        inside, outside = outside, 2 * outside
    else:
        return None
    while outside - inside > 1e-3 * outside and outside > 1e-9:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if excluded(middle) else (middle, outside)
    return outside
