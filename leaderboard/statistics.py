"""Paired statistics: intervals, tests, equivalence, multiplicity. Pure functions of numbers and arrays.

Throughout, `differences` are recipe minus baseline, one per document, paired; `clusters` (optional) name the group of
dependent documents each belongs to. Notable choices:
- Binary scores: Bonett-Price interval and mid-p McNemar test. The usual Wald interval has no width when nothing flipped.
- Other scores: t interval and sign-flip test; with clusters both work on cluster sums, the t interval with G - 1 degrees.
  (A bootstrap of the clusters was tried for few of them: with 8 of unequal size it covered 86 %, t 93 %.)
- A metric whose best value lies in the middle improves when its distance to that value shrinks, and
  `(B - c)^2 - (R - c)^2 = (B - R)(B + R - 2c)`: so the distance changed only if both factors differ from zero, and the larger
  of their two p-values is a valid p-value for it (an intersection-union test), with no resampling of a folded mean.
- Everything random takes a seed; equal input gives equal output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

EXACT_SIGN_FLIPS = 12  # up to this many non-zero differences every sign pattern is tried
LARGE_SIGN_FLIPS = 2000  # from here on the normal limit of the sign-flip distribution is used
SIGN_FLIP_DRAWS = 9_999
_POWER_80 = 6.18  # (z(.95) + z(.80))^2: one-sided 5 %, power 80 %


class Estimate(NamedTuple):
    """A mean difference with its interval. `degrees` is inf for a normal interval."""

    value: float
    low: float
    high: float
    standard_error: float
    degrees: float


class Tails(NamedTuple):
    """p-values of the three alternatives about a mean difference: below zero, above zero, not zero."""

    less: float
    greater: float
    two_sided: float


def mid_p_mcnemar(lost: int, gained: int) -> Tails:
    """McNemar's test with mid-p: exact binomial tails, the observed point counted half.

    Source: Fagerland, Lydersen and Laake (2013), BMC Medical Research Methodology 13:91.
    """
    from scipy.stats import binom

    total = lost + gained
    point = float(binom.pmf(gained, total, 0.5))
    less = float(binom.cdf(gained, total, 0.5)) - point / 2
    greater = 1.0 - less
    return Tails(less, greater, min(1.0, 2 * min(less, greater)))


def bonett_price(lost: int, gained: int, count: int, confidence: float = 0.95) -> Estimate:
    """Interval of `(gained - lost) / count`, the difference of two paired proportions.

    The value is the plain difference, the interval is centred on the adjusted one.
    Source: Bonett and Price (2012), Journal of Educational and Behavioral Statistics 37:479.
    """
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    half = _normal_quantile(confidence) * error
    return Estimate((gained - lost) / count, up - down - half, up - down + half, error, math.inf)


def paired_interval(differences: np.ndarray, clusters: np.ndarray | None = None, confidence: float = 0.95) -> Estimate:
    """t interval of the mean difference, `[n] -> Estimate`; NaN limits where one document or cluster gives no variance."""
    mean = float(np.mean(differences))
    error, degrees = standard_error(differences, clusters)
    half = _t_quantile(confidence, degrees) * error if degrees > 0 else math.nan
    return Estimate(mean, mean - half, mean + half, error, degrees)


def standard_error(differences: np.ndarray, clusters: np.ndarray | None = None) -> tuple[float, float]:
    """Standard error of the mean of `[n]` paired differences and its degrees of freedom, clustered where clusters are given.

    Source: Miller (2024), arXiv:2411.00640, with the small-sample factor G / (G - 1).
    """
    count, residuals = len(differences), differences - np.mean(differences)
    if clusters is None:
        return (float(np.sqrt(np.sum(residuals**2) / (count * (count - 1)))), count - 1.0) if count > 1 else (math.nan, 0.0)
    sums = cluster_sums(residuals, clusters)
    groups = len(sums)
    if groups < 2:
        return math.nan, 0.0
    return float(np.sqrt(groups / (groups - 1) * np.sum(sums**2)) / count), groups - 1.0


def cluster_sums(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums of `[n]` values by cluster, `[G]`."""
    _, positions = np.unique(clusters, return_inverse=True)
    return np.bincount(positions.ravel(), weights=values)


def sign_flip_test(
    differences: np.ndarray, clusters: np.ndarray | None = None, *, seed: int = 0, draws: int = SIGN_FLIP_DRAWS
) -> Tails:
    """Permutation test of a zero mean by flipping signs (of whole clusters, where given).

    Exact up to `EXACT_SIGN_FLIPS` non-zero values, `draws` seeded patterns up to `LARGE_SIGN_FLIPS`, the normal limit beyond.
    Draws count the observed pattern too, so that no p-value is zero.
    """
    values = differences if clusters is None else cluster_sums(differences, clusters)
    values = values[values != 0]
    if len(values) == 0:
        return Tails(1.0, 1.0, 1.0)
    observed = float(np.sum(values))
    if len(values) > LARGE_SIGN_FLIPS:
        return _normal_tails(observed / float(np.sqrt(np.sum(values**2))))
    extra, sums = _flipped_sums(values, seed, draws)
    slack = 2e-6 * float(np.sum(np.abs(values)))  # drawn sums are float32: equal ones must stay ties
    less = (np.count_nonzero(sums <= observed + slack) + extra) / (len(sums) + extra)
    greater = (np.count_nonzero(sums >= observed - slack) + extra) / (len(sums) + extra)
    both = (np.count_nonzero(np.abs(sums) >= abs(observed) - slack) + extra) / (len(sums) + extra)
    return Tails(float(less), float(greater), float(both))


def _flipped_sums(values: np.ndarray, seed: int, draws: int) -> tuple[int, np.ndarray]:
    """(1 if the observed pattern must be added, sums under the sign patterns).

    A drawn sum is twice that of the values kept positive less that of all: one matrix product over random bits.
    """
    if len(values) <= EXACT_SIGN_FLIPS:
        patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return 0, (patterns * 2.0 - 1.0) @ values
    generator = np.random.default_rng(seed)
    blocks = []
    for start in range(0, draws, 1000):
        bits = np.unpackbits(generator.integers(0, 256, size=(min(1000, draws - start), -(-len(values) // 8)), dtype=np.uint8), axis=1)
        blocks.append(2.0 * (bits[:, : len(values)].astype(np.float32) @ values.astype(np.float32)) - values.sum())
    return 1, np.concatenate(blocks)


def paired_test(differences: np.ndarray, clusters: np.ndarray | None = None, *, seed: int = 0) -> Tails:
    """Mid-p McNemar where every difference is -1, 0 or 1 and documents are independent, the sign-flip test otherwise."""
    if clusters is None and np.all(np.isin(differences, (-1.0, 0.0, 1.0))):
        return mid_p_mcnemar(int(np.sum(differences < 0)), int(np.sum(differences > 0)))
    return sign_flip_test(differences, clusters, seed=seed)


class MiddleTest(NamedTuple):
    """Whether the distance to a best value in the middle changed. `improvement` > 0: it shrank, by that much."""

    improvement: float
    p_value: float


def middle_best_test(
    baseline: np.ndarray, recipe: np.ndarray, best: float, clusters: np.ndarray | None = None, *, seed: int = 0
) -> MiddleTest:
    """Test of `|mean(baseline) - best| = |mean(recipe) - best|` for paired scores `[n]`, two-sided.

    See the module's notes for the factorisation. The size of the test is at most nominal: the hypothesis is that one factor
    is zero, and it is rejected only where both tests reject.
    """
    moved = paired_test(recipe - baseline, clusters, seed=seed)
    sides = baseline + recipe - 2 * best
    off_centre = paired_test(sides, clusters, seed=seed + 1)
    improvement = abs(float(np.mean(baseline)) - best) - abs(float(np.mean(recipe)) - best)
    return MiddleTest(improvement, max(moved.two_sided, off_centre.two_sided))


def log_ratio(baseline: np.ndarray, recipe: np.ndarray, weights: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Log of recipe's over baseline's perplexity from the texts' log-likelihoods `[n]` and their words or bytes `[n]`.

    A ratio estimator, linearised: `e_i = -(recipe_i - baseline_i) - r w_i`.
    """
    changes = -(recipe - baseline)
    total, count = float(np.sum(weights)), len(changes)
    ratio = float(np.sum(changes)) / total
    if count < 2:
        return Estimate(ratio, math.nan, math.nan, math.nan, 0.0)
    residuals = changes - ratio * weights
    error = math.sqrt(count / (count - 1) * float(np.sum(residuals**2))) / total
    half = _t_quantile(confidence, count - 1.0) * error
    return Estimate(ratio, ratio - half, ratio + half, error, count - 1.0)


def bootstrap_counts(
    counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0, draws: int = 9_999, confidence: float = 0.95
) -> tuple[Estimate, Tails]:
    """Paired bootstrap of a corpus statistic that depends on documents only through counts of their kinds.

    `counts [k]` says how many documents are of each kind (for F1: gold, baseline's and recipe's answer together), and
    `statistic` maps resampled counts `[draws, k]` to `[draws]`. Percentile interval; p by the share beyond zero.
    """
    generator = np.random.default_rng(seed)
    total = int(counts.sum())
    resampled = statistic(generator.multinomial(total, counts / total, size=draws).astype(float))
    value = float(statistic(counts[None, :].astype(float))[0])
    tail = (1 - confidence) / 2
    low, high = (float(q) for q in np.quantile(resampled, [tail, 1 - tail]))
    less = float((np.count_nonzero(resampled >= 0) + 1) / (draws + 1))
    greater = float((np.count_nonzero(resampled <= 0) + 1) / (draws + 1))
    tails = Tails(less, greater, min(1.0, 2 * min(less, greater)))
    return Estimate(value, low, high, float(np.std(resampled)), math.inf), tails


def equivalence_p(estimate: Estimate, margin: float) -> float:
    """Two one-sided tests: p of "the true difference is outside (-margin, margin)". 1.0 where there is no variance estimate.

    Uses the centre of the interval, which for Bonett-Price is the adjusted difference.
    """
    centre = (estimate.low + estimate.high) / 2
    if math.isnan(centre) or not margin > 0:
        return 1.0
    if estimate.standard_error == 0:
        return 0.0 if abs(centre) < margin else 1.0
    distance = (margin - abs(centre)) / estimate.standard_error
    return _upper_tail(distance, estimate.degrees)


def binary_equivalence_p(lost: int, gained: int, count: int, margin: float) -> float:
    """Two one-sided score tests of "the true difference of two paired proportions is outside (-margin, margin)".

    The variance is the one that holds on the margin, which keeps the level where the Bonett-Price error does not: with a drop
    of exactly 2 points and hardly any gains, that one passed 6.5 % instead of 5 %.
    Source: Tango (1998), Statistics in Medicine 17:891.
    """
    drop, rise = (_score_on_margin(a, b, count, margin) for a, b in ((lost, gained), (gained, lost)))
    return _upper_tail(-max(drop, rise), math.inf)


def _score_on_margin(many: int, few: int, count: int, margin: float) -> float:
    """Tango's z of `(many - few) / count` against `margin`, with the constrained maximum-likelihood variance."""
    b = -many - few + (2 * count - many + few) * margin
    c = -few * margin * (1 - margin)
    share = (math.sqrt(b * b - 8 * count * c) - b) / (4 * count)
    return (many - few - count * margin) / math.sqrt(count * (2 * share + margin * (1 - margin)))


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """q-values `[n]`: the smallest false discovery rate at which each hypothesis would be rejected.

    Source: Benjamini and Hochberg (1995).
    """
    count = len(p_values)
    if count == 0:
        return np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * count / np.arange(1, count + 1)
    adjusted = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    result = np.empty(count)
    result[order] = adjusted
    return result


def documents_needed(variance: float, margin: float) -> int:
    """Documents after which a truly equal recipe passes the margin with 80 % power: `6.18 variance / margin^2`.

    `variance` is that of one document's difference; for binary scores it is about the flip rate.
    """
    return math.ceil(_POWER_80 * variance / margin**2)


def _normal_quantile(confidence: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + confidence) / 2))


def _t_quantile(confidence: float, degrees: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))


def _upper_tail(distance: float, degrees: float) -> float:
    from scipy.stats import norm, t

    return float(norm.sf(distance) if math.isinf(degrees) else t.sf(distance, degrees))


def _normal_tails(z: float) -> Tails:
    from scipy.stats import norm

    return Tails(float(norm.cdf(z)), float(norm.sf(z)), float(2 * norm.sf(abs(z))))
