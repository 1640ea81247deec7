"""Means of differences whose tail may not have been seen: bounded or clipped scores, clusters, texts of unlike length.

No test of the mean of an unbounded difference keeps its level and has power (Bahadur and Savage 1956), so a bound `c`
is stated and what is claimed is the mean of the differences clipped at `-c` and `c`. For scores within [0, 1] that is
the mean itself. `z = w m + clip(difference, -w c, w c)` is how far a document lies inside the margin `m`, `w` its
weight (1, or its words); that of a cluster is the sum over its documents. No `z` is below `-B`, with `B = s (c - m)`
and `s = sum w^3 / sum w^2`, which leans to the large units. The p-value of "the true drop is `m` or more" is the
largest of three, and 1 where the mean of `z` is not above zero:

    p_t   Student's t of the mean of z
    p_e   exp(-sum log(1 + z / B)), where the sum of log(1 + a z) over 0 <= a <= 1/B is largest at a = 1/B. By Markov's
          inequality it is exact for every distribution (Waudby-Smith and Ramdas 2024, JRSS B 86:1)
    p_s   the chance of as good a mean under the likeliest distribution whose mean is exactly the margin: weights
          1 / (n (1 + a z)) on what was seen, and the mass missing to one on -B, where nothing was seen (Owen 1988,
          Biometrika 75:237). By the saddlepoint formula of Lugannani and Rice (1980), Adv. Appl. Prob. 12:475, with
          half a step of continuity correction where there are few distinct values

Equal units are evaluated once, with their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from leaderboard.statistics.values import upper_tail

FEW_VALUES = 12
"""Up to this many distinct differences count as a lattice, which the saddlepoint formula corrects for."""
_STEPS = 60  # of Newton's method, kept inside a bracket; it takes five
_CLOSE = 1e-10


class Distances(NamedTuple):
    """How far independent units lie inside a margin. z: `[k]`. worst: `B`, no z can be below its negative. step: that
    of a lattice, else 0. leaning: leaning size of a unit by its mean size, 1 where all are equal.
    """

    z: np.ndarray
    worst: float
    step: float
    leaning: float


@dataclass(frozen=True)
class ClippedSample:
    """Differences clipped and put together by unit, below zero worse. changes, sizes, counts: `[k]`, of the distinct
    units, their sum of clipped differences, their weight, and how many there are. size: leaning size. step: of a
    lattice, else 0.
    """

    changes: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    bound: float
    size: float
    step: float

    @property
    def units(self) -> int:
        """Independent documents or clusters."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """The mean of the clipped differences."""
        return float(self.counts @ self.changes / (self.counts @ self.sizes))

    def mirrored(self) -> ClippedSample:
        """The same differences the other way round."""
        return ClippedSample(-self.changes, self.sizes, self.counts, self.bound, self.size, self.step)

    def distances(self, margin: float) -> tuple[np.ndarray, float]:
        """`z` `[k]` of the distinct units and `B`."""
        z = self.sizes * margin + self.changes
        return z, max(self.size * (self.bound - margin), -float(z.min()))


def clipped_sample(
    differences: np.ndarray, bound: float, clusters: np.ndarray | None = None, weights: np.ndarray | None = None
) -> ClippedSample:
    """Clip differences `[n]` at `bound` times their weights and sum them by cluster."""
    sizes = np.ones(len(differences)) if weights is None else np.asarray(weights, dtype=float)
    changes = np.clip(differences, -bound * sizes, bound * sizes)
    step = 0.0 if weights is not None else _step(changes, bound)
    if clusters is not None:
        groups = np.unique(clusters, return_inverse=True)[1].ravel()
        changes, sizes = np.bincount(groups, weights=changes), np.bincount(groups, weights=sizes)
        step = step * float(sizes[0]) if np.all(sizes == sizes[0]) else 0.0
    size = float(np.sum(sizes**3) / np.sum(sizes**2))
    if np.all(sizes == sizes[0]):
        changes, counts = np.unique(changes, return_counts=True)
        return ClippedSample(changes, np.full(len(changes), sizes[0]), counts.astype(float), bound, size, step)
    return ClippedSample(changes, sizes, np.ones(len(changes)), bound, size, step)


def standardised(
    differences: np.ndarray,
    margin: float,
    bound: float,
    clusters: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Distances:
    """The distances inside a margin that the p-value is made of, one for each document or cluster.

    `differences` `[n]` are recipe minus baseline, below zero worse; of weighted texts their sums, not their means.
    """
    sample = clipped_sample(differences, bound, clusters, weights)
    z, worst = sample.distances(margin)
    mean_size = float(sample.counts @ sample.sizes) / sample.units
    return Distances(np.repeat(z, sample.counts.astype(int)), worst, sample.step, sample.size / mean_size)


def fewest_documents(margin: float, bound: float, level: float = 0.05) -> int:
    """Documents below which nothing is decided at `level`, whatever is seen: `log(1 / level) / log(c / (c - m))`, about
    `3 c / m` at 5 %. Of clusters, times `Distances.leaning`, in clusters.
    """
    return math.ceil(math.log(1 / level) / -math.log1p(-margin / bound)) if 0 < margin < bound else 1


def _step(changes: np.ndarray, bound: float) -> float:
    """The smallest distance of distinct values, where there are few."""
    distinct = np.unique(np.round(changes / bound, 9))
    return bound * float(np.diff(distinct).min()) if 1 < len(distinct) <= FEW_VALUES else 0.0


def clipped_within_p(sample: ClippedSample, margin: float) -> float:
    """One-sided p of "the true mean is `-margin` or less", of differences in which below zero is worse. 1.0 where one
    document or cluster gives no variance.
    """
    count, (z, worst) = sample.units, sample.distances(margin)
    mean = float(sample.counts @ z) / count
    if count < 2 or mean - sample.step / (2 * count) <= 0:
        return 1.0
    if margin >= sample.bound:
        return 0.0
    return _p_value(z, sample.counts, worst, sample.step)


def _p_value(z: np.ndarray, counts: np.ndarray, worst: float, step: float) -> float:
    count = float(counts.sum())
    mean = float(counts @ z) / count
    deviation = math.sqrt(float(counts @ (z - mean) ** 2) / (count - 1))
    stake, bet = _stake(z, counts, worst)
    if deviation <= 1e-9 * worst:
        return bet
    by_t = upper_tail(mean / deviation * math.sqrt(count), count - 1)
    return max(by_t, bet, _saddlepoint(z, counts, worst, stake, mean - step / (2 * count)))


def _stake(z: np.ndarray, counts: np.ndarray, worst: float) -> tuple[float, float]:
    """The stake `a` in [0, 1/B] at which the sum of log(1 + a z) is largest, and `p_e`: 0 where it is not the largest
    one.
    """
    high = (1 - 1e-12) / worst
    if float(counts @ (z / (1 + high * z))) >= 0:
        return high, math.exp(-float(counts @ np.log1p(high * z)))
    low, stake = 0.0, min(high / 2, float(counts @ z) / float(counts @ (z * z)))
    for _ in range(_STEPS):
        shares = z / (1 + stake * z)
        slope = float(counts @ shares)
        low, high = (stake, high) if slope > 0 else (low, stake)
        moved = stake + slope / float(counts @ (shares * shares))
        following = moved if low < moved < high else (low + high) / 2
        if abs(following - stake) <= _CLOSE * stake:
            break
        stake = following
    return following, 0.0


def _saddlepoint(z: np.ndarray, counts: np.ndarray, worst: float, stake: float, seen: float) -> float:
    """P(mean of n draws >= `seen`) under the likeliest distribution whose mean is the margin."""
    from scipy.special import ndtr

    count = float(counts.sum())
    weights = counts / (count * (1 + stake * z))
    values, weights = np.append(z, -worst), np.append(weights, max(0.0, 1 - float(weights.sum())))
    tilt, generating, curvature = _tilt(values, weights, seen)
    exponent = 2 * count * (tilt * seen - generating)
    root = math.sqrt(max(exponent, 0.0))
    if root < 0.05:
        return 0.5
    slope = tilt * math.sqrt(count * curvature)
    density = math.exp(-root * root / 2) / math.sqrt(2 * math.pi)
    return min(1.0, max(0.0, float(ndtr(-root)) + density * (1 / slope - 1 / root)))


def _tilt(values: np.ndarray, weights: np.ndarray, seen: float) -> tuple[float, float, float]:
    """`t` with `K'(t) = seen`, `K(t)` and `K''(t)`, for `K(t) = log sum w e^(t z)` and `seen` below the largest value.

    Newton's method from `t = seen / K''(0)`, inside a bracket.
    """
    low, high, tilt = 0.0, math.inf, seen / float(weights @ values**2)
    for _ in range(_STEPS):
        shift = float((tilt * values).max())
        tilted = weights * np.exp(tilt * values - shift)
        total = float(tilted.sum())
        slope = float(tilted @ values) / total
        curvature = float(tilted @ (values - slope) ** 2) / total
        generating = math.log(total) + shift
        low, high = (tilt, high) if slope < seen else (low, tilt)
        moved = tilt + (seen - slope) / curvature if curvature > 0 else math.inf
        if abs(moved - tilt) <= _CLOSE * tilt:
            break
        inside = low < moved < high and moved < 4 * tilt
        tilt = moved if inside else (4 * tilt if math.isinf(high) else (low + high) / 2)
    return tilt, generating, curvature
