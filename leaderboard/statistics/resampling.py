"""What is drawn: sign flips and bootstraps. Everything takes a seed; equal input gives equal output."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from leaderboard.statistics.values import Estimate, Tails, normal_tails

EXACT_SIGN_FLIPS = 12  # up to this many non-zero differences every sign pattern is tried
LARGE_SIGN_FLIPS = 2000  # from here on the normal limit of the sign-flip distribution is used
SIGN_FLIP_DRAWS = 9_999
_CHUNK = 4_000_000  # numbers drawn at once


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
        return normal_tails(observed / float(np.sqrt(np.sum(values**2))))
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
    return _summary(float(statistic(counts[None, :].astype(float))[0]), resampled, confidence)


def bootstrap_sums(
    units: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0, draws: int = 9_999, confidence: float = 0.95
) -> tuple[Estimate, Tails]:
    """Paired bootstrap of a statistic of sums, over units `[G, k]`: documents, or clusters of them, each with its `k` contributions.

    `statistic` maps sums `[draws, k]` to `[draws]`: a mean is the first sum over the second, with `[sum of differences, documents]` a cluster.
    Percentile interval; p by the share beyond zero.
    """
    generator = np.random.default_rng(seed)
    groups = len(units)
    blocks = []
    for start in range(0, draws, max(1, _CHUNK // groups)):
        size = min(max(1, _CHUNK // groups), draws - start)
        blocks.append(statistic(generator.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(float) @ units))
    return _summary(float(statistic(units.sum(axis=0, keepdims=True))[0]), np.concatenate(blocks), confidence)


def _summary(value: float, resampled: np.ndarray, confidence: float) -> tuple[Estimate, Tails]:
    tail, draws = (1 - confidence) / 2, len(resampled)
    low, high = (float(q) for q in np.quantile(resampled, [tail, 1 - tail]))
    less = float((np.count_nonzero(resampled >= 0) + 1) / (draws + 1))
    greater = float((np.count_nonzero(resampled <= 0) + 1) / (draws + 1))
    tails = Tails(less, greater, min(1.0, 2 * min(less, greater)))
    return Estimate(value, low, high, float(np.std(resampled)), math.inf), tails
