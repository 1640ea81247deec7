"""How many documents decide, and how small an effect those at hand can show; for one-sided tests with 80 % power."""

from __future__ import annotations

import math

POWER = 0.8
_POWER_80 = 6.18  # (z(.95) + z(.80))^2: one-sided 5 %, power 80 %


def documents_needed(variance: float, margin: float, alpha: float = 0.05) -> int:
    """Documents after which a truly equal recipe passes the margin with 80 % power: `6.18 variance / margin^2` at 5 %.

    `variance` is that of one document's difference; for binary scores it is about the flip rate.
    """
    return math.ceil(_factor(alpha) * variance / margin**2)


def detectable_effect(variance: float, count: int, alpha: float = 0.05) -> float:
    """The smallest true difference that `count` documents show with 80 % power: `2.487 sqrt(variance / count)` at 5 %.
    Units of the score.
    """
    return math.sqrt(_factor(alpha) * variance / count) if count else math.inf


def _factor(alpha: float) -> float:
    """`(z(1 - alpha) + z(power))^2`."""
    if alpha == 0.05:
        return _POWER_80
    from scipy.special import ndtri

    return float(ndtri(1 - alpha) + ndtri(POWER)) ** 2
