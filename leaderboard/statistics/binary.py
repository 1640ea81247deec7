"""Right or wrong before, right or wrong after: everything that depends on documents only through how many were lost and
gained.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from leaderboard.statistics.values import Estimate, Tails, normal_quantile, upper_tail

WIDER = 1.02
"""Bonett-Price intervals are made wider by this. As published they cover 93.0 % at worst (57 documents, 10 % flips, all
lost); so, at least 93.5 %.
"""
EXACT_UP_TO = 200
"""Expected flips at the margin up to which the score statistic's distribution is summed, rather than taken as normal.
"""
CLEAR = 0.25
"""p-values above this by the normal limit are far above any level, and not worth the sum."""


class Flips(NamedTuple):
    """Documents whose score went down, up, and all of them."""

    lost: int
    gained: int
    documents: int

    @property
    def rate(self) -> float:
        """The share of documents that changed, in either direction."""
        return (self.lost + self.gained) / self.documents if self.documents else math.nan


def count_flips(differences: np.ndarray) -> Flips:
    """The flips of `[n]` differences, oriented so that below zero is worse."""
    return Flips(int(np.sum(differences < 0)), int(np.sum(differences > 0)), len(differences))


def mid_p_mcnemar(lost: int, gained: int) -> Tails:
    """McNemar's test with mid-p: exact binomial tails, the observed point counted half.

    Source: Fagerland, Lydersen and Laake (2013), BMC Medical Research Methodology 13:91.
    """
    from scipy.special import bdtr

    total = lost + gained
    if total == 0:
        return Tails(0.5, 0.5, 1.0)
    # The observed point is as likely on the other side; in the smaller tail its difference cancels no digits.
    fewer = min(lost, gained)
    point = float(bdtr(fewer, total, 0.5)) - (float(bdtr(fewer - 1, total, 0.5)) if fewer else 0.0)
    less = float(bdtr(gained, total, 0.5)) - point / 2
    greater = float(bdtr(lost, total, 0.5)) - point / 2
    return Tails(less, greater, min(1.0, 2 * min(less, greater)))


def bonett_price(lost: int, gained: int, count: int, confidence: float = 0.95) -> Estimate:
    """Interval of `(gained - lost) / count`, the difference of two paired proportions.

    The value is the plain difference, the interval is centred on the adjusted one and wider by `WIDER`.
    Source: Bonett and Price (2012), Journal of Educational and Behavioral Statistics 37:479.
    """
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    half = WIDER * normal_quantile(confidence) * error
    return Estimate((gained - lost) / count, up - down - half, up - down + half, error, math.inf)


def binary_within_p(lost: int, gained: int, count: int, margin: float) -> float:
    """One-sided p of "the true drop is at least `margin`", for 0 < margin < 1: small means that the recipe is not worse
    by the margin.

    Tango's score statistic. Where few flips are expected at the margin its normal limit errs by up to a fifth, so that
    there its distribution is summed exactly, with the share of gains at its constrained estimate (an estimated, or E,
    p-value). Sources: Tango (1998), Statistics in Medicine 17:891; for the E p-value, Lloyd (2008), Australian and New
    Zealand Journal of Statistics 50:329.
    """
    gains = _gains_on_margin(lost, gained, count, margin)
    score = float(_score(lost, gained, count, margin))
    normal = upper_tail(-score, math.inf)
    if normal > CLEAR or count * (2 * gains + margin) > EXACT_UP_TO:
        return normal
    return _exact_tail(score, count, margin, gains)


def binary_equivalence_p(lost: int, gained: int, count: int, margin: float) -> float:
    """p of "the true difference is outside (-margin, margin)": the larger of two one-sided ones."""
    return max(binary_within_p(lost, gained, count, margin), binary_within_p(gained, lost, count, margin))


def binary_drop_limit(lost: int, gained: int, count: int, alpha: float) -> float:
    """The one-sided upper limit of the true drop at level `alpha`: the smallest margin that `binary_within_p` excludes,
    to 1e-6.

    The lower limit is that of lost and gained exchanged, negated.
    """
    inside, outside = max((lost - gained) / count, -1.0), 1.0
    while outside - inside > 1e-6:
        middle = (inside + outside) / 2
        excluded = _any_margin_p(lost, gained, count, middle) <= alpha
        inside, outside = (inside, middle) if excluded else (middle, outside)
    return outside


def _any_margin_p(lost: int, gained: int, count: int, margin: float) -> float:
    """`binary_within_p`, also for a margin of zero or less: "the true gain is at most -margin" has the roles of lost
    and gained exchanged.
    """
    if margin > 0:
        return binary_within_p(lost, gained, count, margin) if margin < 1 else 0.0
    if margin == 0:
        return mid_p_mcnemar(lost, gained).greater
    return 1.0 - binary_within_p(gained, lost, count, -margin) if margin > -1 else 1.0


def _gains_on_margin(lost: int, gained: int, count: int, margin: float) -> float:
    """The maximum-likelihood share of gained documents, given that the drop is exactly `margin`."""
    b = -lost - gained + (2 * count - lost + gained) * margin
    c = -gained * margin * (1 - margin)
    return max(0.0, (math.sqrt(b * b - 8 * count * c) - b) / (4 * count))


def _score(lost: np.ndarray | int, gained: np.ndarray | int, count: int, margin: float) -> np.ndarray:
    """Tango's z of `(lost - gained) / count` against `margin`, with the constrained maximum-likelihood variance."""
    b = -lost - gained + (2 * count - lost + gained) * margin
    c = -gained * margin * (1 - margin)
    share = (np.sqrt(b * b - 8 * count * c) - b) / (4 * count)
    return (lost - gained - count * margin) / np.sqrt(count * (2 * share + margin * (1 - margin)))


@lru_cache(maxsize=65_536)
def _exact_tail(score: float, count: int, margin: float, gains: float) -> float:
    """P(statistic <= score) when a share `gains` of documents is gained and `gains + margin` lost.

    For every number of gained documents worth considering (within eight standard deviations), the largest number of
    lost ones whose statistic is at most `score` is found by bisection, the statistic being monotone in it; what remains
    is a sum of binomial tails.
    """
    from scipy.special import bdtr, gammaln, xlog1py, xlogy

    spread = math.sqrt(count * gains * (1 - gains))
    gained = np.arange(
        max(0, int(count * gains - 8 * spread - 8)), min(count, int(count * gains + 8 * spread + 12)) + 1
    )
    low, high = np.full(len(gained), -1), count - gained
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = _score(middle, gained, count, margin) <= score + 1e-9
        low, high = np.where(fits, middle, low), np.where(fits, high, np.maximum(middle - 1, low))
    log_mass = (
        gammaln(count + 1)
        - gammaln(gained + 1)
        - gammaln(count - gained + 1)
        + xlogy(gained, gains)
        + xlog1py(count - gained, -gains)
    )
    share_lost = min(1.0, (gains + margin) / (1 - gains))
    tails = np.where(low >= 0, bdtr(np.maximum(low, 0), count - gained, share_lost), 0.0)
    return min(1.0, float(np.sum(np.exp(log_mass) * tails)))
