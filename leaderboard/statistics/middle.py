"""Metrics whose best value lies in the middle: a bias score is best at zero, a share of stereotyped choices at one
half.

With `B` and `R` the means and `c` the best value, the distance to it changed only if
`(B - c)^2 - (R - c)^2 = (B - R)(B + R - 2c)` differs from zero: so only if both factors do, and the larger of their two
p-values is a valid p-value for it (an intersection-union test), with no resampling of a folded mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from leaderboard.statistics.means import mirrored, paired_interval, paired_test, within_p
from leaderboard.statistics.values import Estimate


class MiddleTest(NamedTuple):
    """Whether the distance to a best value in the middle changed. `improvement` > 0: it shrank, by that much.
    `p_worse`: that it did not grow.
    """

    improvement: float
    p_value: float
    p_worse: float


def middle_best_test(
    baseline: np.ndarray, recipe: np.ndarray, best: float, clusters: np.ndarray | None = None, *, seed: int = 0
) -> MiddleTest:
    """Test of `|mean(baseline) - best| = |mean(recipe) - best|` for paired scores `[n]`, two-sided, and one-sided for a
    distance that grew.

    See the module's notes for the factorisation. The size of both is at most nominal: the hypothesis is that one factor
    is zero (or that both are not of one sign), and it is rejected only where both tests reject.
    """
    moved = paired_test(recipe - baseline, clusters, seed=seed)
    sides = paired_test(baseline + recipe - 2 * best, clusters, seed=seed + 1)
    improvement = abs(float(np.mean(baseline)) - best) - abs(float(np.mean(recipe)) - best)
    # away upwards, or downwards: two ways, so twice
    worse = min(1.0, 2 * min(max(moved.greater, sides.greater), max(moved.less, sides.less)))
    return MiddleTest(improvement, max(moved.two_sided, sides.two_sided), worse)


def middle_within_p(
    baseline: np.ndarray, recipe: np.ndarray, best: float, margin: float, clusters: np.ndarray | None = None
) -> float:
    """One-sided p of "the distance to `best` grew by at least `margin`", for paired scores `[n]`.

    The distance grew that much upwards only if both `R - B` and `R + B - 2c` are at least `margin`, downwards only if
    both are at most `-margin`. Either direction is excluded where one of its two parts is, at half the level; both must
    be.
    """
    change, sides = (
        paired_interval(recipe - baseline, clusters),
        paired_interval(baseline + recipe - 2 * best, clusters),
    )
    upwards = min(_below(change, margin), _below(sides, margin))
    downwards = min(within_p(change, margin), within_p(sides, margin))
    return min(1.0, 2 * max(upwards, downwards))


def _below(estimate: Estimate, margin: float) -> float:
    """p of "the true mean is at least `margin`"."""
    return within_p(mirrored(estimate), margin)
