"""lm-eval's bootstrapped standard error of a perplexity, the same number to the last bit, many times as fast.

lm-eval draws 100,000 resamples, one document at a time, in Python: a minute of the processor for 5,000 documents and
one variant. Here the same draws are made by numpy, whose Mersenne Twister gives the numbers of Python's from the same
state, and the sums are taken in the order in which Python takes them, for a thousand resamples at once. Other
statistics (F1, BLEU, ...) spend their time in their own functions and stay with lm-eval.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.lm_eval_adapter.borrowed import metrics

Sums = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Bootstrap = Callable[[Any, Sequence[Any], int], float]

_CHUNK = 1000
"""Resamples that lm-eval draws from one seed."""
_THREADS = 4
_BLOCK = 1 << 17
"""Draws that a thread holds at once, of eight bytes, some four times over: what a processor's cache holds."""


def bootstrap_stderr(original: Bootstrap, f: Any, xs: Sequence[Any], iters: int) -> float:
    """The standard error of a statistic `f` as lm-eval's `bootstrap_stderr` (`original`) gives it, whose parameters the
    others are. That one is called itself for every statistic but `perplexity`, for what is no list of floats, and where
    Python sums in yet another way than the two that are known.
    """
    if f is not metrics.perplexity or not xs or not all(type(value) is float for value in xs):
        return original(f, xs, iters)
    sums = next((sums for sums in (_plain_sums, _compensated_sums) if _agrees(sums, xs)), None)
    if sums is None:
        return original(f, xs, iters)
    chunk = min(_CHUNK, iters)
    with ThreadPoolExecutor(_THREADS) as pool:
        chunks = pool.map(lambda seed: _perplexities(xs, seed, chunk, sums), range(iters // chunk))
        return float(metrics.sample_stddev([value for found in chunks for value in found]))


def _agrees(sums: Sums, values: Sequence[float]) -> bool:
    """Whether a way of summing gives what lm-eval's own code gives on a few resamples."""
    draw = random.Random(0)
    theirs = [metrics.perplexity(draw.choices(values, k=len(values))) for _ in range(8)]
    return theirs == _perplexities(values, 0, 8, sums)


def _perplexities(values: Sequence[float], seed: int, resamples: int, sums: Sums) -> list[float]:
    """The perplexity of each of some resamples of log-likelihoods, drawn as `random.Random(seed).choices` draws."""
    count, state = len(values), random.Random(seed).getstate()[1]
    generator = np.random.RandomState()
    generator.set_state(("MT19937", np.array(state[:-1], dtype=np.uint32), state[-1], 0, 0.0))
    array, rows = np.array(values), max(1, _BLOCK // count)
    found: list[float] = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        places = generator.random_sample((size, count))
        places *= count
        found += [math.exp(-(total / count)) for total in sums(array.take(places.astype(np.intp))).tolist()]
    return found


def _plain_sums(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of each row, from its first value to its last: `sum` before Python 3.12."""
    sums: NDArray[np.float64] = np.cumsum(rows, axis=1)[:, -1]
    return sums


def _compensated_sums(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same with Neumaier's correction for what each addition loses: `sum` since Python 3.12."""
    total, lost = np.zeros(len(rows)), np.zeros(len(rows))
    for values in np.ascontiguousarray(rows.T):
        added = total + values
        lost += np.where(np.abs(total) >= np.abs(values), (total - added) + values, (values - added) + total)
        total = added
    return np.where(np.isfinite(lost), total + lost, total)
