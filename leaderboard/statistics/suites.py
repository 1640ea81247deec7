"""Suites: a weighted mean of the drops of several tasks, with its error.

`D = sum w_t D_t`, `SE^2 = sum w_t^2 SE_t^2`: tasks are independent, since no document belongs to two. Notable choices:
the weights are scaled to sum to one, so a suite's margin is in the tasks' own units; its limits combine those of the
tasks, which hold for few flips too, rather than its standard error (Zou and Donner 2008, Statistics in Medicine
27:1693: `U = D + sqrt(sum w_t^2 (U_t - D_t)^2)`). Below, where such limits of rare flips are too narrow (8.9 % beyond,
nominal 5 %, for five tasks of 300 documents and 1 % flips), the standard error counts too. Degrees of freedom are
Satterthwaite's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from leaderboard.statistics.values import quantile, upper_tail


class SuitePart(NamedTuple):
    """One task of a suite: its weight, its drop with one-sided limits of one level, and the drop's error."""

    weight: float
    drop: float
    low: float
    high: float
    standard_error: float
    degrees: float


class Suite(NamedTuple):
    """The weighted mean drop, its one-sided limits, its error, and the p-value of "there is no drop"."""

    drop: float
    low: float
    high: float
    standard_error: float
    degrees: float
    p_worse: float


def suite(parts: Sequence[SuitePart], level: float = 0.05) -> Suite:
    """Put the tasks of a suite together; `level` is that of the parts' one-sided limits. Raises ValueError where there
    is no task, or no weight is above zero.
    """
    total = sum(part.weight for part in parts)
    if not total > 0:
        raise ValueError("a suite needs a task with a weight above zero")
    shares = [part.weight / total for part in parts]
    drop = sum(share * part.drop for share, part in zip(shares, parts))
    below = math.sqrt(sum((share * (part.drop - part.low)) ** 2 for share, part in zip(shares, parts)))
    above = math.sqrt(sum((share * (part.high - part.drop)) ** 2 for share, part in zip(shares, parts)))
    variances = [(share * part.standard_error) ** 2 for share, part in zip(shares, parts)]
    error = math.sqrt(sum(variances))
    degrees = _satterthwaite(variances, [part.degrees for part in parts])
    p_worse = upper_tail(drop / error, degrees) if error > 0 else math.nan
    below = max(below, quantile(1 - 2 * level, degrees) * error)
    return Suite(drop, drop - below, drop + above, error, degrees, p_worse)


def _satterthwaite(variances: Sequence[float], degrees: Sequence[float]) -> float:
    spread = sum(variance**2 / of for variance, of in zip(variances, degrees) if of > 0 and not math.isinf(of))
    return sum(variances) ** 2 / spread if spread > 0 else math.inf
