"""Metrics of a whole corpus: what each document contributes to them, as counts whose sums make the score. Here those
of a table of right and wrong, F1 and MCC; texts have a module of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from leaderboard import metrics


class NoTest(Exception):
    """A corpus metric cannot be tested; the message is the reason, shown beside the difference."""


class Contributions(NamedTuple):
    """Of two runs on the same documents: counts `[n, k]` of each, the function of `[draws, k]` sums that is the score,
    `[draws]`, and the counts `[k]` of a document answered wholly right and wholly wrong."""

    before: np.ndarray
    after: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]
    right: np.ndarray
    wrong: np.ndarray


def contributions(metric: str, before: Sequence[str], after: Sequence[str]) -> Contributions:
    """Cells of the confusion table (gold, prediction), from `[gold, prediction]` samples of 0 and 1 as JSON. Raises
    `NoTest`.

    A document that is wholly right or wrong counts one half in either class.
    """
    statistic = metrics.named(metric).of_table
    first, second = binary_pairs(before), binary_pairs(after)
    if statistic is None or first is None or second is None or not np.array_equal(first[:, 0], second[:, 0]):
        raise NoTest(f"{metric} exists only over all documents together: no paired test for it yet")
    cells = np.eye(4)
    counts_before, counts_after = (cells[2 * pairs[:, 0] + pairs[:, 1]] for pairs in (first, second))
    return Contributions(
        counts_before,
        counts_after,
        lambda sums: statistic(sums.reshape(-1, 2, 2)),
        (cells[0] + cells[3]) / 2,
        (cells[1] + cells[2]) / 2,
    )


def binary_pairs(parts: Sequence[str]) -> np.ndarray | None:
    """`[n, 2]` of (gold, prediction), or None where they are anything but 0 and 1."""
    try:
        pairs = [json.loads(part) for part in parts]
    except (TypeError, ValueError):
        return None
    if not pairs or not all(
        isinstance(pair, list) and len(pair) == 2 and all(x in (0, 1) for x in pair) for pair in pairs
    ):
        return None
    return np.asarray(pairs, dtype=int)
