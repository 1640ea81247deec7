"""What the formulas return, and the quantiles they share.

Distributions come from `scipy.special`, whose plain functions take a microsecond where `scipy.stats` takes a hundred: a
board has tens of thousands of cells. It is imported inside functions, because messages and help must not wait for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple


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


def normal_quantile(confidence: float) -> float:
    """Half-width of the two-sided normal interval in standard errors."""
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def quantile(confidence: float, degrees: float) -> float:
    """Half-width of the two-sided t interval in standard errors; normal for infinite degrees."""
    from scipy.special import stdtrit

    return normal_quantile(confidence) if math.isinf(degrees) else float(stdtrit(degrees, (1 + confidence) / 2))


def upper_tail(distance: float, degrees: float) -> float:
    """P(T > distance) of the t distribution; normal for infinite degrees."""
    from scipy.special import ndtr, stdtr

    return float(ndtr(-distance) if math.isinf(degrees) else stdtr(degrees, -distance))
