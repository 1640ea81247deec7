"""Corpus metrics that depend on documents only through a table of counts, so that a bootstrap over documents is a multinomial draw."""

from __future__ import annotations

import json

import numpy as np


def binary_pairs(parts: list[str] | None) -> np.ndarray | None:
    """`[n, 2]` of (gold, prediction), or None where they are anything but 0 and 1."""
    try:
        pairs = [json.loads(part) for part in parts or ()]
    except (TypeError, ValueError):
        return None
    if not pairs or not all(isinstance(pair, list) and len(pair) == 2 and all(x in (0, 1) for x in pair) for pair in pairs):
        return None
    return np.asarray(pairs, dtype=int)


def tables(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts `[draws, 8]` by (gold, before, after) -> two confusion tables `[draws, gold, prediction]`."""
    cube = counts.reshape(-1, 2, 2, 2)
    return cube.sum(axis=3), cube.sum(axis=2)


def f1(table: np.ndarray) -> np.ndarray:
    """F1 of the positive class, `[draws, 2, 2] -> [draws]`; 0 where nothing is positive, as scikit-learn has it."""
    hits, errors = table[:, 1, 1], table[:, 0, 1] + table[:, 1, 0]
    return np.divide(2 * hits, 2 * hits + errors, out=np.zeros_like(hits), where=(2 * hits + errors) > 0)


def mcc(table: np.ndarray) -> np.ndarray:
    """Matthews correlation, `[draws, 2, 2] -> [draws]`; 0 where a margin is empty."""
    numerator = table[:, 1, 1] * table[:, 0, 0] - table[:, 0, 1] * table[:, 1, 0]
    product = table.sum(axis=1).prod(axis=1) * table.sum(axis=2).prod(axis=1)
    return np.divide(numerator, np.sqrt(product), out=np.zeros_like(numerator), where=product > 0)
