"""One run's proportion by itself: the share of its documents that are right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from leaderboard.statistics.values import normal_quantile


class Limits(NamedTuple):
    """Both ends of `[n]` intervals."""

    low: np.ndarray
    high: np.ndarray


def wilson(hits: npt.ArrayLike, counts: npt.ArrayLike, confidence: float = 0.95) -> Limits:
    """Score intervals of `[n]` proportions `hits / counts`, counts above zero. Within [0, 1]; none and all of the
    documents have exactly 0 and 1 as one end, and a width.

    Source: Wilson (1927), Journal of the American Statistical Association 22:209.
    """
    hits, counts = np.asarray(hits, dtype=float), np.asarray(counts, dtype=float)
    z = normal_quantile(confidence)
    share = hits / counts
    centre = (share + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z / (1 + z**2 / counts) * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2))
    return Limits(np.where(hits == 0, 0.0, centre - half), np.where(hits == counts, 1.0, centre + half))
