"""Many tests at once: Holm over the tasks of a gate, Benjamini-Hochberg over the cells of a board."""

from __future__ import annotations

import numpy as np


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """q-values `[n]`: the smallest false discovery rate at which each hypothesis would be rejected.

    Source: Benjamini and Hochberg (1995).
    """
    count = len(p_values)
    if count == 0:
        return np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * count / np.arange(1, count + 1)
    adjusted = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    result = np.empty(count)
    result[order] = adjusted
    return result


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjusted p-values `[n]`: the smallest family-wise error rate at which each hypothesis would be rejected, whatever
    their dependence.

    Source: Holm (1979).
    """
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(count, 0, -1)
    result = np.empty(count)
    result[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if count else scaled
    return result
