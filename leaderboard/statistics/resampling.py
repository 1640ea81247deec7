"""Sign flips: drawn, counted out where there are few, or their normal limit where there are many. Takes a seed; equal
input gives equal output.
"""

from __future__ import annotations

import numpy as np

from leaderboard.statistics.values import Tails, normal_tails

EXACT_SIGN_FLIPS = 12  # up to this many non-zero differences every sign pattern is tried
LARGE_SIGN_FLIPS = 2000  # from here on the normal limit of the sign-flip distribution is used
SIGN_FLIP_DRAWS = 9_999


def cluster_sums(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums of `[n]` values by cluster, `[G]`."""
    _, positions = np.unique(clusters, return_inverse=True)
    return np.bincount(positions.ravel(), weights=values)


def sign_flip_test(
    differences: np.ndarray, clusters: np.ndarray | None = None, *, seed: int = 0, draws: int = SIGN_FLIP_DRAWS
) -> Tails:
    """Permutation test of a zero mean by flipping signs (of whole clusters, where given).

    Exact up to `EXACT_SIGN_FLIPS` non-zero values, `draws` seeded patterns up to `LARGE_SIGN_FLIPS`, the normal limit
    beyond. Draws count the observed pattern too, so that no p-value is zero.
    """
    values = differences if clusters is None else cluster_sums(differences, clusters)
    values = values[values != 0]
    if len(values) == 0:
        return Tails(1.0, 1.0, 1.0)
    observed = float(np.sum(values))
    if len(values) > LARGE_SIGN_FLIPS:
        return normal_tails(observed / float(np.sqrt(np.sum(values**2))))
    extra, sums = _flipped_sums(values, seed, draws)
    slack = 2e-6 * float(np.sum(np.abs(values)))  # drawn sums are float32: equal ones must stay ties
    less = (np.count_nonzero(sums <= observed + slack) + extra) / (len(sums) + extra)
    greater = (np.count_nonzero(sums >= observed - slack) + extra) / (len(sums) + extra)
    both = (np.count_nonzero(np.abs(sums) >= abs(observed) - slack) + extra) / (len(sums) + extra)
    return Tails(float(less), float(greater), float(both))


def _flipped_sums(values: np.ndarray, seed: int, draws: int) -> tuple[int, np.ndarray]:
    """(1 if the observed pattern must be added, sums under the sign patterns).

    A drawn sum is twice that of the values kept positive less that of all: one matrix product over random bits.
    """
    if len(values) <= EXACT_SIGN_FLIPS:
        patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return 0, (patterns * 2.0 - 1.0) @ values
    generator = np.random.default_rng(seed)
    blocks = []
    for start in range(0, draws, 1000):
        bits = np.unpackbits(
            generator.integers(0, 256, size=(min(1000, draws - start), -(-len(values) // 8)), dtype=np.uint8), axis=1
        )
        blocks.append(2.0 * (bits[:, : len(values)].astype(np.float32) @ values.astype(np.float32)) - values.sum())
    return 1, np.concatenate(blocks)
