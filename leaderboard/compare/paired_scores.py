"""Paired scores whose mean is reported: which formula fits them. Everything is oriented, so that below zero is worse.

- right or wrong, documents independent: Bonett-Price, mid-p McNemar, Tango;
- any other score: the mean of the differences clipped at a bound, which for scores within [0, 1] is the mean itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from leaderboard import statistics as stats
from leaderboard.metrics import Range


@dataclass(frozen=True)
class PairedScores:
    """The scores `[n]` of two runs in one order. sign: 1 where higher is better, else -1. unit: all scores lie within
    [0, 1]. bound: no document's difference counts for more.
    """

    baseline: np.ndarray
    recipe: np.ndarray
    sign: float
    unit: bool
    clusters: np.ndarray | None
    bound: float

    @cached_property
    def differences(self) -> np.ndarray:
        """Recipe minus baseline `[n]`, below zero worse."""
        return self.sign * (self.recipe - self.baseline)

    @cached_property
    def binary(self) -> bool:
        """Whether the flips say everything."""
        return self.unit and stats.is_right_or_wrong(self.differences, self.bound, self.clusters)

    @property
    def clipped(self) -> bool:
        """Whether a document's difference may be larger than the bound."""
        return not self.unit or self.bound < 1

    @cached_property
    def flips(self) -> stats.Flips:
        """Documents lost and gained."""
        return stats.count_flips(self.differences)

    @cached_property
    def sample(self) -> stats.ClippedSample:
        """The differences as the rule for clipped means takes them."""
        return stats.clipped_sample(self.differences, self.bound, self.clusters)

    @property
    def improvement(self) -> float:
        """The mean that tests and interval are about: above zero where the recipe is better."""
        return float(np.mean(self.differences)) if self.binary else self.sample.mean

    def test(self) -> stats.Tails:
        """Tests of no difference."""
        if self.binary:
            return stats.mid_p_mcnemar(self.flips.lost, self.flips.gained)
        return stats.clipped_tails(self.sample)

    def estimate(self) -> stats.Estimate:
        """The mean difference with its two-sided interval."""
        return stats.bonett_price(*self.flips) if self.binary else stats.clipped_interval(self.sample)

    def same_p(self, margin: float) -> float:
        """p of a difference of at least `margin` in either direction."""
        if self.binary and margin < 1:
            return stats.binary_equivalence_p(*self.flips, margin)
        return stats.clipped_same_p(self.sample, margin)

    def drop_limits(self, level: float | None) -> tuple[float | None, float | None]:
        """One-sided limits of the drop at `level`: each is the smallest margin that the test of it excludes there, of
        this pair and of the mirrored one. None without a level or a variance.
        """
        if level is None or (not self.binary and self.sample.units < 2):
            return None, None
        if self.binary:
            lost, gained, count = self.flips
            return -stats.binary_drop_limit(gained, lost, count, level), stats.binary_drop_limit(
                lost, gained, count, level
            )
        return -stats.clipped_drop_limit(self.sample.mirrored, level), stats.clipped_drop_limit(self.sample, level)


@dataclass(frozen=True)
class MiddleScores:
    """A pair on a metric whose best value lies in the middle, in the range of possible values `within`."""

    pair: PairedScores
    best: float
    bounds: stats.MiddleBounds
    within: Range

    def test(self) -> stats.MiddleTest:
        """Whether the distance to the best value changed."""
        return stats.middle_best_test(*self._arrays, self.best, self.pair.clusters, self.bounds)

    def improvement_limits(self, moved: tuple[float, float]) -> tuple[float, float]:
        """The 95 % limits of by how much the distance shrank; moved: those of the difference."""
        return stats.middle_limits(moved, *self._arrays, self.best, self.pair.clusters, self.bounds)

    @property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return self.pair.baseline, self.pair.recipe

    def growth_limits(self, level: float | None) -> tuple[float | None, float | None]:
        """One-sided limits of the growth of the distance, at most as far as the best value is from the ends of the
        range.
        """
        if level is None or len(self.pair.baseline) < 2:
            return None, None
        baseline, recipe = self._arrays

        def excluded(first: np.ndarray, second: np.ndarray) -> Callable[[float], bool]:
            test = stats.MiddleMargin(first, second, self.best, self.pair.clusters, self.bounds)
            return lambda margin: test.within_p(margin) <= level

        growth = abs(float(np.mean(recipe)) - self.best) - abs(float(np.mean(baseline)) - self.best)
        most = max(self.within.high - self.best, self.best - self.within.low)
        high, low = (
            _smallest(excluded(baseline, recipe), growth, most),
            _smallest(excluded(recipe, baseline), -growth, most),
        )
        return (None if low is None else -low), high


def _smallest(excluded: Callable[[float], bool], start: float, most: float) -> float | None:
    """The smallest margin above zero that is excluded, to a thousandth of itself and at most `most`; None where none is
    found.
    """
    inside, outside = 0.0, max(2 * abs(start), 1e-6)
    for _ in range(60):
        if outside >= most or excluded(outside):
            break
        inside, outside = outside, 2 * outside
    else:
        return None
    if inside >= most:
        return most
    while outside - inside > 1e-3 * outside and outside > 1e-9:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if middle >= most or excluded(middle) else (middle, outside)
    return min(outside, most) if math.isfinite(outside) else None
