"""Scores within [0, 1] that are not simply right or wrong, or come in clusters: intervals that allow for what was too
rare to be seen.

A sample in which nothing, or only small things, changed has a small variance, however large the changes that it missed.
A score within [0, 1] bounds them: a document changes by one at most, a cluster by its size. So the variance at a mean
that lies `x` beyond the observed one is taken to be the observed one plus that of the missing `x`, made of whole
changes, as Tango's constrained variance has it for right and wrong answers. With the sum `S` of the differences, `A`
the (clustered) variance of the sum, and `s` the size of a whole change:

    limit at S + x, where x^2 = q^2 (A + s x), q the quantile of t        p of a margin: q = x / sqrt(A + s x), x the
    distance to it

`s` is one for documents, and `sum m^3 / sum m^2` for clusters of `m` documents, which is `m` where they are equal and
leans to the large ones where not. It costs about `q^2 s / 2n` in width. Formula ours; error rates in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from leaderboard.statistics.means import standard_error
from leaderboard.statistics.values import Estimate, quantile, upper_tail


@dataclass(frozen=True)
class _Sums:
    mean: float
    variance: float
    whole_change: float
    degrees: float
    count: int


def bounded_interval(differences: np.ndarray, clusters: np.ndarray | None = None, confidence: float = 0.95) -> Estimate:
    """Interval of the mean of differences `[n]` of scores within [0, 1], itself within [-1, 1]; NaN limits where one
    document or cluster gives no variance.

    `standard_error` is the half-width in quantiles, so that it is never zero, and at most what it would be if every
    document had changed, with its cluster: few clusters have a wide interval, but no mean can vary more.
    """
    sums = _sums(differences, clusters)
    if sums.degrees <= 0:
        return Estimate(sums.mean, math.nan, math.nan, math.nan, 0.0)
    q = quantile(confidence, sums.degrees)
    half = (
        (q * q * sums.whole_change + math.sqrt((q * q * sums.whole_change) ** 2 + 4 * q * q * sums.variance))
        / 2
        / sums.count
    )
    error = min(half / q, math.sqrt(sums.whole_change / sums.count))
    return Estimate(sums.mean, max(-1.0, sums.mean - half), min(1.0, sums.mean + half), error, sums.degrees)


def bounded_within_p(differences: np.ndarray, margin: float, clusters: np.ndarray | None = None) -> float:
    """One-sided p of "the true mean is `-margin` or less", of differences `[n]` in which below zero is worse. 1.0
    without a variance.
    """
    sums = _sums(differences, clusters)
    beyond = sums.count * (sums.mean + margin)
    if sums.degrees <= 0:
        return 1.0
    if beyond <= 0:
        return upper_tail(beyond / math.sqrt(sums.variance), sums.degrees) if sums.variance > 0 else 1.0
    return upper_tail(beyond / math.sqrt(sums.variance + sums.whole_change * beyond), sums.degrees)


def _sums(differences: np.ndarray, clusters: np.ndarray | None) -> _Sums:
    count = len(differences)
    error, degrees = standard_error(differences, clusters)
    whole = 1.0
    if clusters is not None:
        sizes = np.unique(clusters, return_counts=True)[1].astype(float)
        whole = float(np.sum(sizes**3) / np.sum(sizes**2))
    return _Sums(float(np.mean(differences)), (count * error) ** 2, whole, degrees, count)
