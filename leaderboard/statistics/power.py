"""How many documents decide, and how small a difference those at hand can show.

A verdict excludes one bound (a drop of the margin, no difference) or two (*same*: a margin on either side), each by a
one-sided test. `Side` holds what the power of one such test rests on, whatever the number of tests that the level is
corrected for; `documents_for` gives the smallest number of documents with which all sides together reach a share of
verdicts, if the truth is the one hoped for. Notable choices:
- Right or wrong answers: the test's own variance at the bound, which Tango's constrained estimate gives, beside the
  true one: `N = (z(level) sqrt(V_bound) + z(share) sqrt(V))^2 / distance^2`. With one variance for both, N is a quarter
  too small at 2 % flips. Below it, no answers at all exclude a margin m with fewer than `ln(1/level) / -ln(1 - m)`.
- The clipped rule: the least of what its three parts allow (t, exact bet, saddlepoint), and its own floor,
  `ln(1/level) / ln(c / (c - m))` for a bound c and equal units.
- Two sides: `power(low) + power(high) - 1`, which is exact as long as both rarely fail together.
Sources: Miettinen (1968), Biometrics 24:339, for two variances; Tango (1998), Statistics in Medicine 17:891. The
tables that the tests print say what share of simulated verdicts N gives.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

POWER = 0.8
_MOST_DOCUMENTS = 2**40


class Side(NamedTuple):
    """One bound to be excluded: everything per document, or per cluster of `size` documents on average.

    distance: from the truth hoped for to the bound, in the score's units, above zero. deviation: the SD at that truth.
    deviation_at_bound: the SD that the test takes for the bound. reach: how much one document (not cluster) can say
    against the bound at most, in nats. evidence, evidence_deviation: of the clipped rule, mean and SD of the log of the
    likeliest bet against the bound; None for other tests. at_limit: that bet is the largest possible.
    """

    distance: float
    deviation: float
    deviation_at_bound: float
    reach: float | None = None
    evidence: float | None = None
    evidence_deviation: float = 0.0
    at_limit: bool = False
    size: float = 1.0


def power_of(sides: tuple[Side, ...], count: float, level: float) -> float:
    """The chance that `count` documents exclude every side at one-sided `level`, if the truth is the one hoped for."""
    return max(0.0, sum(_power(side, count, level) for side in sides) - (len(sides) - 1)) if sides else 0.0


@lru_cache(maxsize=65_536)
def documents_for(sides: tuple[Side, ...], level: float, share: float = POWER) -> int | None:
    """The smallest number of documents with which `power_of` is at least `share`; None where no number is enough.

    With more than one side it lies between what the hardest side needs for `share`, and what each needs where all
    together may fail in `1 - share` of cases.
    """
    if not sides or not all(side.distance > 0 for side in sides) or not 0 < level < 1:
        return None
    least = max(_documents(side, level, share) for side in sides)
    enough = max(_documents(side, level, 1 - (1 - share) / len(sides)) for side in sides)
    if enough > _MOST_DOCUMENTS:
        return None
    low, high = max(0, math.floor(least) - 1), math.ceil(enough) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(sides, middle, level) >= share else (middle, high)
    return high


def _documents(side: Side, level: float, share: float) -> float:
    """`_power` solved for the number of documents: the most that one of its parts needs."""
    z, beyond, steps = _upper_quantile(level), _upper_quantile(1 - share), -math.log(level)
    found = [(max(0.0, z * side.deviation_at_bound + beyond * side.deviation) / side.distance) ** 2]
    if side.evidence is not None and side.evidence > 0:
        root, spread = math.sqrt(2 * side.evidence), beyond * side.evidence_deviation
        found.append((max(0.0, z + spread / root) / root) ** 2)
        if side.at_limit:
            found.append(((spread + math.sqrt(spread**2 + 4 * side.evidence * steps)) / (2 * side.evidence)) ** 2)
    elif side.evidence is not None:
        return math.inf
    floor = steps / side.reach if side.reach else 0.0
    return max(floor, side.size * max(found))


def _power(side: Side, count: float, level: float) -> float:
    if side.reach is not None and count * side.reach < -math.log(level):
        return 0.0
    units, z = count / side.size, _upper_quantile(level)
    gaps = [_divided(math.sqrt(units) * side.distance - z * side.deviation_at_bound, side.deviation)]
    if side.evidence is not None:
        root = math.sqrt(2 * side.evidence)
        gaps.append(_divided((math.sqrt(units) * root - z) * root, side.evidence_deviation))
        if side.at_limit:
            gaps.append(
                _divided(units * side.evidence + math.log(level), side.evidence_deviation * math.sqrt(max(units, 1e-9)))
            )
    return 0.5 * math.erfc(-min(gaps) / math.sqrt(2))


def _divided(value: float, spread: float) -> float:
    return value / spread if spread > 0 else math.copysign(math.inf, value)


@lru_cache(maxsize=4096)
def _upper_quantile(level: float) -> float:
    from scipy.special import ndtri

    return float(-ndtri(level))


def normal_side(distance: float, variance: float, at_bound: float | None = None) -> Side:
    """A mean of which only the variance of a document is known; `at_bound`: that which the test takes for the bound."""
    return Side(distance, math.sqrt(variance), math.sqrt(variance if at_bound is None else at_bound))


def flip_side(lost: float, gained: float, margin: float) -> Side:
    """Of Tango's test of a drop of `margin`, if shares `lost` and `gained` of the documents truly change."""
    drop = lost - gained
    b, c = -lost - gained + (2 - drop) * margin, -gained * margin * (1 - margin)
    share = max(0.0, (math.sqrt(b * b - 8 * c) - b) / 4)
    at_bound = 2 * share + margin * (1 - margin)
    side = normal_side(margin - drop, max(lost + gained - drop**2, 0.0), at_bound)
    return side._replace(reach=-math.log1p(-margin)) if margin < 1 else side


def changed_side(lost: float, gained: float) -> Side:
    """Of McNemar's test of no difference, if shares `lost` and `gained` of the documents truly change."""
    flips, drop = lost + gained, lost - gained
    return normal_side(abs(drop), max(flips - drop**2, 0.0), flips)


def clipped_side(z: np.ndarray, worst: float, size: float = 1.0) -> Side:
    """Of the clipped rule: `z` `[n]` its standardised values, of documents or of clusters of `size` documents,
    recentred at the truth hoped for, none below `-worst`, which is above zero. No test is surer than if every value
    were the mean.
    """
    mean = float(np.mean(z))
    if not mean > 0 or not worst > 0 or len(z) < 2:
        return Side(0.0, 0.0, 0.0)
    stake = _best_stake(z, worst)
    logs = np.log1p(stake * z)
    deviation = float(np.std(z, ddof=1))
    return Side(
        mean,
        deviation,
        deviation,
        math.log1p(mean / worst) / size,
        max(0.0, float(np.mean(logs))),
        float(np.std(logs, ddof=1)),
        bool(stake * worst > 1 - 1e-9),
        size,
    )


def _best_stake(z: np.ndarray, worst: float) -> float:
    """The stake in [0, 1 / worst] at which the mean of `log(1 + stake z)` is largest: bisection of its slope."""
    low, high = 0.0, (1 - 1e-12) / worst
    if float(np.sum(z / (1 + high * z))) >= 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(np.sum(z / (1 + middle * z))) > 0 else (low, middle)
    return low


def detectable_difference(variance: float, count: int, level: float, *, flips: bool = False) -> float:
    """The smallest true difference that `count` documents show with 80 % power at one-sided `level`, in units of the
    score: `(z(level) + z(.8)) sqrt(variance / count)`.

    `variance` is that of one document's difference, or, for right or wrong answers (`flips`), the share that changes; a
    difference larger than that share needs more changes than were seen, and then they count.
    """
    if not count:
        return math.inf
    steps = (_upper_quantile(level) + _upper_quantile(1 - POWER)) ** 2
    found = math.sqrt(steps * variance / count)
    return min(1.0, steps / count) if flips and found > variance else found


def detectable_within_bound(variance: float, count: int, level: float, bound: float, size: float = 1.0) -> float:
    """The smallest true difference that the clipped rule shows with 80 % power: below it, `count` documents cannot tell
    it from a few unseen ones that gain the bound.

    The bet at the bound, `sum log(1 + z / c) >= ln(1/level)`, to second order in the spread of z: `D = c (level ^
    (-1/units) - 1) + variance / (2 size c) + z(.8) sqrt(variance / count)`. `size`: documents of an independent unit.
    """
    allowance = bound * math.expm1(-math.log(level) * size / count)
    return allowance + variance / (2 * size * bound) + _upper_quantile(1 - POWER) * math.sqrt(variance / count)
