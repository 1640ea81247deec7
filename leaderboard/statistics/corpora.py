"""A metric of a whole corpus (F1, MCC, BLEU), which no document has by itself: what two runs' documents contribute, put
together in two ways.

A document contributes a few counts, the score is a function of their sums. Notable choices:
- Test: baseline's and recipe's counts of a document change places with probability one half, which leaves the truth as
  it is where the recipe changes nothing. The share beyond zero of a bootstrap, which is the usual p-value, called up to
  7 % of equal recipes different at a nominal 5 % (F1, 100 and 1,000 documents).
- Interval: t, with the standard error of a paired bootstrap over documents. To those seen two are added, one wholly
  lost and one wholly gained, as Bonett and Price do for proportions: without them it has no width where nothing
  changed. The degrees of freedom are the documents that changed, added ones included: no others tell how far a score
  may move.
- Documents whose counts are alike are drawn together, as kinds with a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from leaderboard.statistics.values import Estimate, Tails, quantile

TEST_DRAWS, BOOTSTRAP_DRAWS = 9_999, 1_999
_CHUNK = 4_000_000  # numbers drawn at once


class Corpora(NamedTuple):
    """Two runs on the same documents, or clusters of them: their counts `[n, k]`, the function that makes `[draws, k]`
    sums into scores `[draws]` (higher is better), and counts of two more documents `[2, k]`, one wholly lost and one
    wholly gained."""

    before: np.ndarray
    after: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]
    added_before: np.ndarray
    added_after: np.ndarray

    @property
    def value(self) -> float:
        """The observed gain."""
        return self._gain(self.before.sum(axis=0, keepdims=True), self.after.sum(axis=0, keepdims=True))

    def _gain(self, before: np.ndarray, after: np.ndarray) -> float:
        return float((self.score(after) - self.score(before))[0])


def corpus_test(corpora: Corpora, *, seed: int = 0, draws: int = TEST_DRAWS) -> Tails:
    """Permutation test of no difference. Draws count the observed pattern too, so that no p-value is zero; one-sided
    ones are 1 where nothing changed.
    """
    changed = (corpora.before != corpora.after).any(axis=1)
    kinds, numbers = np.unique(np.hstack([corpora.before, corpora.after])[changed], axis=0, return_counts=True)
    before, after = np.hsplit(kinds, 2)
    sums, totals = corpora.before.sum(axis=0), corpora.after.sum(axis=0)
    generator, gains = np.random.default_rng(seed), [np.empty(0)]
    for size in _sizes(draws, len(kinds)) if len(kinds) else ():
        moved = generator.binomial(numbers, 0.5, size=(size, len(kinds))) @ (after - before)
        gains.append(corpora.score(totals - moved) - corpora.score(sums + moved))
    gain, slack = np.concatenate(gains), 1e-9 * max(1.0, abs(corpora.value))
    less, greater = (
        float((np.count_nonzero(beyond) + 1) / (len(gain) + 1))
        for beyond in (gain <= corpora.value + slack, gain >= corpora.value - slack)
    )
    both = float((np.count_nonzero(np.abs(gain) >= abs(corpora.value) - slack) + 1) / (len(gain) + 1))
    return Tails(less, greater, both)


def corpus_interval(
    corpora: Corpora, confidence: float = 0.95, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Estimate:
    """Interval of the gain; its centre is that of all documents with the two added, its value the observed gain."""
    before, after = np.vstack([corpora.before, corpora.added_before]), np.vstack([corpora.after, corpora.added_after])
    kinds, numbers = np.unique(np.hstack([before, after]), axis=0, return_counts=True)
    width, total, gains, generator = before.shape[1], len(before), [], np.random.default_rng(seed)
    for size in _sizes(draws, len(kinds)):
        sums = generator.multinomial(total, numbers / total, size=size) @ kinds
        gains.append(corpora.score(sums[:, width:]) - corpora.score(sums[:, :width]))
    error, degrees = float(np.std(np.concatenate(gains))), float((before != after).any(axis=1).sum())
    centre, half = (
        corpora._gain(before.sum(axis=0, keepdims=True), after.sum(axis=0, keepdims=True)),
        quantile(confidence, degrees) * error,
    )
    return Estimate(corpora.value, centre - half, centre + half, error, degrees)


def _sizes(draws: int, kinds: int) -> list[int]:
    """How many to draw at a time."""
    most = max(1, _CHUNK // kinds)
    return [min(most, draws - start) for start in range(0, draws, most)]
