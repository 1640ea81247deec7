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

`p_e` sets in where the stake reaches its bound, and there it may exceed what a smaller margin gave. A mean beyond a
larger margin is beyond a smaller one too, so the p-value of a margin is the largest of all larger margins: it falls
with the margin, and limits, tests and margins agree. Equal units are evaluated once, with their number.

Collapses that a clipped mean could hide behind gains are counted: `share_limit` is the exact one-sided limit of
their share (Clopper and Pearson 1934, Biometrika 26:404).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from leaderboard.statistics.values import Estimate, Tails, quantile, upper_tail

FEW_VALUES = 12
"""Up to this many distinct differences count as a lattice, which the saddlepoint formula corrects for."""
COLLAPSED_SHARE = 0.05
"""No recipe is called the same or better while this share of documents may have collapsed."""
_MOST_DOCUMENTS = 2**24
_STEPS = 60  # of Newton's method, kept inside a bracket; it takes five
_CLOSE = 1e-10
_NEAR = 1e-6  # of a normal quantile


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
    def leaning(self) -> float:
        """Leaning size of a unit by its mean size, 1 where all are equal."""
        return self.size * self.units / float(self.counts @ self.sizes)

    @property
    def mean(self) -> float:
        """The mean of the clipped differences."""
        return float(self.counts @ self.changes / (self.counts @ self.sizes))

    @property
    def standard_error(self) -> float:
        """That of the mean, by the spread of units, as `means.standard_error` has it; NaN of one unit."""
        if self.units < 2:
            return math.nan
        residuals = self.changes - self.mean * self.sizes
        spread = self.units / (self.units - 1) * float(self.counts @ residuals**2)
        return math.sqrt(spread) / float(self.counts @ self.sizes)

    @cached_property
    def mirrored(self) -> ClippedSample:
        """The same differences the other way round."""
        return ClippedSample(-self.changes, self.sizes, self.counts, self.bound, self.size, self.step)

    @cached_property
    def turn(self) -> tuple[float, float]:
        """The least margin at which the stake is at its bound, and `p_e` there; infinite and 0 where there is none."""
        low, high = -self.mean, self.bound * (1 - 1e-9)
        if not self._at_bound(high):
            return math.inf, 0.0
        while high - low > 1e-6 * self.bound:
            middle = (low + high) / 2
            low, high = (low, middle) if self._at_bound(middle) else (middle, high)
        return high, _stake(*self._weighed(high))[1]

    def _weighed(self, margin: float) -> tuple[np.ndarray, np.ndarray, float]:
        z, worst = self.distances(margin)
        return z, self.counts, worst

    def _at_bound(self, margin: float) -> bool:
        z, worst = self.distances(margin)
        return float(self.counts @ (z / (1 + _largest_stake(worst) * z))) >= 0

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
    return Distances(np.repeat(z, sample.counts.astype(int)), worst, sample.step, sample.leaning)


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
    found = _p_value(z, sample.counts, worst, sample.step)
    turn, bet = sample.turn
    return max(found, bet) if margin < turn else found


def clipped_same_p(sample: ClippedSample, margin: float) -> float:
    """p of "the true mean is outside (-margin, margin)": the larger of two one-sided ones."""
    return max(clipped_within_p(sample, margin), clipped_within_p(sample.mirrored, margin))


def clipped_tails(sample: ClippedSample) -> Tails:
    """Tests of a true mean of zero. The one against what is seen has p = 1."""
    greater, less = clipped_within_p(sample, 0.0), clipped_within_p(sample.mirrored, 0.0)
    return Tails(less, greater, min(1.0, 2 * min(less, greater)))


def clipped_drop_limit(sample: ClippedSample, level: float) -> float:
    """The one-sided upper limit of the true drop: the smallest margin that `clipped_within_p` excludes at `level`, at
    most the bound. NaN where there is no variance.

    The lower limit is that of the mirrored sample, negated.
    """
    from scipy.special import ndtri

    if sample.units < 2:
        return math.nan
    target = float(ndtri(level)) - _NEAR

    def excess(margin: float) -> float:
        return min(8.0, max(-8.0, float(ndtri(clipped_within_p(sample, margin))) - target))

    count, error = sample.units, sample.standard_error
    rare = sample.bound * -math.expm1(math.log(level) / count)
    guess = -sample.mean + max(quantile(1 - 2 * level, count - 1.0) * error, rare)
    return _root(excess, (-sample.mean, sample.bound), guess, max(error, rare))


def clipped_interval(sample: ClippedSample, confidence: float = 0.95) -> Estimate:
    """The mean of clipped differences with its two-sided interval; NaN limits where there is no variance.
    `standard_error` is half its width in quantiles of t, so that it is never zero.
    """
    level, degrees = (1 - confidence) / 2, sample.units - 1.0
    low, high = -clipped_drop_limit(sample, level), clipped_drop_limit(sample.mirrored, level)
    error = (high - low) / 2 / quantile(confidence, degrees) if degrees > 0 else math.nan
    return Estimate(sample.mean, low, high, error, degrees)


@lru_cache(maxsize=1 << 14)
def share_limit(seen: int, count: int) -> float:
    """The exact one-sided 95 % upper limit of a share of all documents, such as of those that collapse or flip, where
    it was `seen` of `count`.
    """
    from scipy.special import betaincinv

    return float(betaincinv(seen + 1, count - seen, 0.95)) if seen < count else 1.0


def documents_without_collapse(collapsed: int) -> int:
    """How many documents bring `share_limit` below `COLLAPSED_SHARE` where `collapsed` are seen: 59, 93, 124, ..."""
    low, high = collapsed, 100 * (collapsed + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share_limit(collapsed, middle) < COLLAPSED_SHARE else (middle, high)
    return high


def documents_for_few_collapses(collapsed: int, count: int, power: float = 0.8) -> int | None:
    """How many documents bring `share_limit` below `COLLAPSED_SHARE` in `power` of cases, where `collapsed` of
    `count` were seen and as large a share goes on collapsing; None where that share is too large for any number. Where
    none was seen, none is expected.
    """
    from scipy.special import bdtr

    share = 0.0 if collapsed == 0 else (collapsed + 0.5) / (count + 1)
    if share >= COLLAPSED_SHARE:
        return None

    def enough(documents: int) -> bool:
        most = _most_collapsed(documents)
        return most >= 0 and float(bdtr(most, documents, share)) >= power

    high = documents_without_collapse(0)
    while not enough(high):
        if high > _MOST_DOCUMENTS:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:  # not monotone by single documents, which is no matter for "about"
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _most_collapsed(documents: int) -> int:
    """The most collapses among so many documents that leave `share_limit` below `COLLAPSED_SHARE`; -1 for none."""
    low, high = -1, documents
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if share_limit(middle, documents) < COLLAPSED_SHARE else (low, middle)
    return low


def _root(excess: Callable[[float], float], ends: tuple[float, float], guess: float, scale: float) -> float:
    """Where a falling function gets to zero between `ends`, to `_NEAR` of its value. `scale`: over which it falls by
    one. By secants with halved weights (Illinois), once there is a point on either side.
    """
    (inside, outside), margin, last = ends, guess, 0.0
    above, below = math.nan, math.nan
    for _ in range(_STEPS):
        margin = margin if inside < margin < outside else (inside + outside) / 2
        value = excess(margin)
        if abs(value) <= _NEAR or outside - inside <= 1e-12 * abs(ends[1]):
            return margin
        if value > 0:
            inside, above, below = margin, value, below / 2 if last > 0 else below
        else:
            outside, below, above = margin, value, above / 2 if last < 0 else above
        last = value
        missing = math.isnan(above) or math.isnan(below)
        margin += 1.2 * scale * value if missing else (inside - margin) + (outside - inside) * above / (above - below)
    return outside


def _p_value(z: np.ndarray, counts: np.ndarray, worst: float, step: float) -> float:
    count = float(counts.sum())
    mean = float(counts @ z) / count
    deviation = math.sqrt(float(counts @ (z - mean) ** 2) / (count - 1))
    stake, bet = _stake(z, counts, worst)
    if deviation <= 1e-9 * worst:
        return bet
    by_t = upper_tail(mean / deviation * math.sqrt(count), count - 1)
    return max(by_t, bet, _saddlepoint(z, counts, worst, stake, mean - step / (2 * count)))


def _largest_stake(worst: float) -> float:
    return (1 - 1e-12) / worst


def _stake(z: np.ndarray, counts: np.ndarray, worst: float) -> tuple[float, float]:
    """The stake `a` in [0, 1/B] at which the sum of log(1 + a z) is largest, and `p_e`: 0 where it is not the largest
    one.
    """
    high = _largest_stake(worst)
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
