"""The difference of two scores of which only the aggregates are known: no documents, so nothing to pair.

Each run has limits of its own, and those of the difference follow from them (MOVER: Zou and Donner 2008, Statistics in
Medicine 27:1693): with scores `a`, `b` and limits `[la, ua]`, `[lb, ub]`, the difference `b - a` lies within
`b - a - sqrt((b - lb)^2 + (ua - a)^2)` and `b - a + sqrt((ub - b)^2 + (a - la)^2)`.

Notable choices:
- The two variances are added, as for independent runs. Two runs on the same documents are nearly always positively
  correlated, and then this is too wide, never too narrow. It would be too narrow only where a model is right on just
  those documents on which the other is wrong.
- A share of right answers: Clopper and Pearson's exact limits with half a document added in either direction. Plain
  exact limits covered 92.7 % at a nominal 95 % (10 documents, shares near opposite ends), Wilson's 83 %, these 95.07 %
  at least from 10 documents on. The error that a results file reports is not needed, and may be missing or zero.
- Other scores within [0, 1] (partial credit): t limits from the reported error, with two documents added, one at each
  end, for changes too rare to have been seen.
- Scores without known bounds, or of a whole corpus: a few documents may hold most of the variance, and an aggregate
  does not show it. Twice the t limits, from 300 documents on; below that the difference is shown alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from leaderboard.statistics.values import quantile

FEWEST = 10
FEWEST_UNBOUNDED = 300
_WIDER = 2.0
_SAME = 1e-6  # relative: two numbers of which one was computed from the other


class Aggregate(NamedTuple):
    """What is known of one run's score. low, high: the values that the metric can have. is_mean: whether it is a mean
    of documents' numbers.
    """

    score: float
    standard_error: float | None
    documents: int | None
    low: float = -math.inf
    high: float = math.inf
    is_mean: bool = True


class Span(NamedTuple):
    """Both ends of an interval."""

    low: float
    high: float


def unpaired_interval(baseline: Aggregate, recipe: Aggregate, confidence: float = 0.95) -> Span | None:
    """Limits of recipe minus baseline; None where the aggregates do not carry any."""
    before, after = own_limits(baseline, confidence), own_limits(recipe, confidence)
    if before is None or after is None:
        return None
    a, b = baseline.score, recipe.score
    return Span(
        b - a - math.hypot(b - after.low, before.high - a),
        b - a + math.hypot(after.high - b, a - before.low),
    )


def unpaired_p_worse(baseline: Aggregate, recipe: Aggregate, sign: float) -> float | None:
    """One-sided p-value of a drop in the direction that counts (sign: 1 where higher is better, else -1): the smallest
    level at which the interval's end lies beyond zero; 1 where none below one half does.
    """
    drop = -sign * (recipe.score - baseline.score)
    if unpaired_interval(baseline, recipe) is None:
        return None

    def excluded(level: float) -> bool:
        span = unpaired_interval(baseline, recipe, 1 - 2 * level)
        return span is not None and (span.high < 0 if sign > 0 else span.low > 0)

    smallest, largest = 1e-9, 0.5 - 1e-9
    if drop <= 0 or not excluded(largest):
        return 1.0
    while largest / smallest > 1 + 1e-4:
        middle = math.sqrt(smallest * largest)
        smallest, largest = (smallest, middle) if excluded(middle) else (middle, largest)
    return largest


def own_limits(run: Aggregate, confidence: float = 0.95) -> Span | None:
    """Limits of one run's score, within what its metric can be; None where its aggregate does not carry any."""
    if run.documents is None or run.documents < FEWEST or not math.isfinite(run.score):
        return None
    if is_share(run):
        return _share_limits(run.score, run.documents, confidence)
    error = run.standard_error
    if not error or not math.isfinite(error) or error < 0:
        return None
    if run.is_mean and _within_unit(run):
        return _unit_limits(run.score, error, run.documents, confidence)
    if run.documents < FEWEST_UNBOUNDED:
        return None
    reach = _WIDER * quantile(confidence, run.documents - 1) * error
    return Span(
        min(run.score, max(run.low, run.score - reach)),
        max(run.score, min(run.high, run.score + reach)),
    )


def is_share(run: Aggregate) -> bool:
    """Whether the score is a share of right answers: its error is that of one, or is not reported and its metric lies
    within [0, 1] and is a mean.
    """
    if run.documents is None or run.documents < 2 or not run.is_mean or not 0 <= run.score <= 1:
        return False
    if not run.standard_error:
        return _within_unit(run)
    whole = math.isclose(run.score * run.documents, round(run.score * run.documents), rel_tol=0, abs_tol=1e-4)
    return whole and math.isclose(run.standard_error, _share_error(run.score, run.documents), rel_tol=_SAME)


def _share_error(share: float, count: int) -> float:
    """lm-eval's, with the variance of a sample."""
    return math.sqrt(share * (1 - share) / (count - 1))


def _within_unit(run: Aggregate) -> bool:
    return run.low >= 0 and run.high <= 1 and run.low <= run.score <= run.high


def _share_limits(share: float, count: int, confidence: float) -> Span:
    """Clopper and Pearson (1934, Biometrika 26:404), with half a document fewer below and half a one more above."""
    from scipy.special import betaincinv

    tail, hits = (1 - confidence) / 2, share * count
    fewer, more = max(hits - 0.5, 0.0), min(hits + 0.5, count)
    low = float(betaincinv(fewer, count - fewer + 1, tail)) if fewer > 0 else 0.0
    high = float(betaincinv(more + 1, count - more, 1 - tail)) if more < count else 1.0
    return Span(min(low, share), max(high, share))


def _unit_limits(score: float, error: float, count: int, confidence: float) -> Span:
    """t limits with one document added at 0 and one at 1."""
    total = count + 2
    mean = (count * score + 1) / total
    squares = (count - 1) * count * error**2 + count * score**2 + 1 - total * mean**2
    reach = quantile(confidence, count - 1) * math.sqrt(max(squares, 0.0) / (total - 1) / total)
    return Span(max(0.0, min(mean - reach, score)), min(1.0, max(mean + reach, score)))
