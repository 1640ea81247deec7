"""One recipe against its baseline on one metric: which test fits, and what it finds. Pure: arrays in, `Effect` out.

Which test fits depends on what the samples are, never on the metric's name alone:
- numbers whose mean is the reported score: binary (McNemar, Bonett-Price) or other (sign-flip, t interval), clustered or not;
- a metric with a best value in the middle: the same, and `middle_best_test` for whether the distance to it changed;
- log-likelihoods of texts: the ratio of perplexities;
- gold and prediction: F1 or MCC by a paired bootstrap over documents;
- anything else: the difference is shown without an interval, and the reason said.
A test is used only if recomputing the reported score from the samples gives it back, for both runs.

The margin within which a recipe counts as the same is 2 points (`DEFAULT_MARGIN = 0.02`) where scores lie in [0, 1]. Elsewhere
it is relative for perplexities and bits per byte, and otherwise `2 * 0.02 * SD` of the baseline's documents, or of their
distances from the best value where that lies in the middle: for a proportion near one half (SD 0.5) that is 2 points again, and
for log-odds of 1 about 1 point of probability. A task's `metadata.margin: {metric: value}` overrides it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from leaderboard import corpus
from leaderboard import statistics as stats

DEFAULT_MARGIN = 0.02
LIKELIHOOD_METRICS = frozenset({"perplexity", "token_perplexity", "word_perplexity", "byte_perplexity"})


@dataclass(frozen=True)
class Scored:
    """One run's samples of one metric, in an order shared by both runs, and its reported score."""

    score: float
    values: np.ndarray
    weights: np.ndarray | None = None
    parts: list[str] | None = None


@dataclass(frozen=True)
class Effect:
    """What the pair shows. Fields that the kind of metric does not have are None; `improvement` > 0 is better."""

    count: int
    delta: float
    low: float | None = None
    high: float | None = None
    improvement: float | None = None
    p_value: float | None = None
    p_same: float | None = None
    lost: int | None = None
    gained: int | None = None
    flip_rate: float | None = None
    documents_needed: int | None = None
    margin: float | None = None
    notes: tuple[str, ...] = ()


def judge(
    metric: str,
    baseline: Scored,
    recipe: Scored,
    *,
    higher_is_better: bool,
    best_value: float | None = None,
    margin: float | None = None,
    default_margin: float = DEFAULT_MARGIN,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> Effect:
    """Compare paired samples of one metric. `margin` is the task's own, in the metric's units, where it has one."""
    count, delta = len(recipe.values), recipe.score - baseline.score
    sign = 1.0 if higher_is_better else -1.0
    if count == 0:
        return Effect(0, delta, notes=("no sample bears this metric",))
    if baseline.parts is not None or recipe.parts is not None:
        return _corpus(metric, baseline, recipe, sign, margin or default_margin, seed)
    if np.isnan(baseline.values).any() or np.isnan(recipe.values).any():
        return Effect(count, delta, notes=("some documents have a score that is not a finite number",))
    if baseline.weights is not None or metric == "perplexity":
        return _likelihood(metric, baseline, recipe, sign, margin, default_margin, seed)
    return _mean(baseline, recipe, sign, best_value, margin, default_margin, clusters, seed)


def _mean(
    baseline: Scored, recipe: Scored, sign: float, best: float | None, margin: float | None, default: float, clusters: np.ndarray | None, seed: int
) -> Effect:
    count, delta = len(recipe.values), recipe.score - baseline.score
    if not all(_reproduces(run.score, float(np.mean(run.values))) for run in (baseline, recipe)):
        return _untested(count, delta, "the reported score is not the mean of its samples")
    differences = recipe.values - baseline.values
    unit = _within_unit(baseline.values) and _within_unit(recipe.values)
    binary = unit and clusters is None and bool(np.all(np.isin(differences, (-1.0, 0.0, 1.0))))
    lost, gained = int(np.sum(sign * differences < 0)), int(np.sum(sign * differences > 0))
    estimate = _estimate(differences, clusters, unit, binary)
    flips = int(np.sum(differences < 0)), int(np.sum(differences > 0))
    margin = margin if margin else default if unit else 2 * default * _spread(baseline.values, best)
    if best is None:
        p_value, improvement = stats.paired_test(differences, clusters, seed=seed).two_sided, sign * delta
    else:
        improvement, p_value = stats.middle_best_test(baseline.values, recipe.values, best, clusters, seed=seed)
    notes = _mean_notes(baseline.score, recipe.score, best, differences)
    return Effect(
        count=count,
        delta=delta,
        low=_number(estimate.low),
        high=_number(estimate.high),
        improvement=improvement,
        p_value=p_value,
        p_same=stats.binary_equivalence_p(*flips, count, margin) if binary and margin < 1 else stats.equivalence_p(estimate, margin),
        lost=lost if unit and best is None else None,
        gained=gained if unit and best is None else None,
        flip_rate=float(np.mean(differences != 0)) if binary else None,
        documents_needed=_needed(estimate, count, margin, improvement),
        margin=margin,
        notes=notes,
    )


def _spread(values: np.ndarray, best: float | None) -> float:
    """Root mean square distance from the mean, or from the best value where that lies in the middle."""
    centre = float(np.mean(values)) if best is None else best
    return float(np.sqrt(np.mean((values - centre) ** 2)))


def _estimate(differences: np.ndarray, clusters: np.ndarray | None, unit: bool, binary: bool) -> stats.Estimate:
    """The interval of the mean difference. Scores within [0, 1] never get a narrower one than no flip at all would have."""
    count = len(differences)
    if binary:
        return stats.bonett_price(int(np.sum(differences < 0)), int(np.sum(differences > 0)), count)
    estimate = stats.paired_interval(differences, clusters)
    floor = stats.bonett_price(0, 0, count) if unit else None
    if floor is None or not estimate.standard_error < floor.standard_error:
        return estimate
    half = (floor.high - floor.low) / 2
    return stats.Estimate(estimate.value, estimate.value - half, estimate.value + half, floor.standard_error, math.inf)


def _mean_notes(baseline: float, recipe: float, best: float | None, differences: np.ndarray) -> tuple[str, ...]:
    notes = []
    if best is not None and (baseline - best) * (recipe - best) < 0:
        notes.append(f"crossed its best value {best:g}")
    if not differences.any():
        notes.append("no document's score changed")
    return tuple(notes)


def _likelihood(
    metric: str, baseline: Scored, recipe: Scored, sign: float, margin: float | None, default: float, seed: int
) -> Effect:
    count, delta = len(recipe.values), recipe.score - baseline.score
    weights = baseline.weights if baseline.weights is not None else np.ones(count)
    other = recipe.weights if recipe.weights is not None else weights
    if not np.array_equal(weights, other):
        return _untested(count, delta, "the two runs count words or bytes differently")
    aggregate = _perplexity if metric in LIKELIHOOD_METRICS else _bits
    if not all(_reproduces(run.score, aggregate(run.values, weights)) for run in (baseline, recipe)):
        return _untested(count, delta, "the reported score cannot be recomputed from its samples")
    ratio = stats.log_ratio(baseline.values, recipe.values, weights)
    relative = margin / baseline.score if margin else default
    if metric in LIKELIHOOD_METRICS:
        limit, (low, high) = math.log1p(relative), (baseline.score * math.expm1(x) for x in (ratio.low, ratio.high))
    else:
        limit, (low, high) = relative * baseline.score * math.log(2), (x / math.log(2) for x in (ratio.low, ratio.high))
    return Effect(
        count=count,
        delta=delta,
        low=_number(low),
        high=_number(high),
        improvement=sign * delta,
        p_value=stats.paired_test(recipe.values - baseline.values, seed=seed).two_sided,
        p_same=stats.equivalence_p(ratio, limit),
        documents_needed=_needed(ratio, count, limit),
        margin=relative * baseline.score,
    )


def _perplexity(values: np.ndarray, weights: np.ndarray) -> float:
    exponent = -float(np.sum(values)) / float(np.sum(weights))
    return math.exp(exponent) if exponent < 700 else math.inf


def _bits(values: np.ndarray, weights: np.ndarray) -> float:
    return -float(np.sum(values)) / float(np.sum(weights)) / math.log(2)


def _corpus(metric: str, baseline: Scored, recipe: Scored, sign: float, margin: float, seed: int) -> Effect:
    """F1 and MCC from (gold, prediction) pairs of 0 and 1; other corpus metrics are shown without a test."""
    count, delta = len(recipe.values), recipe.score - baseline.score
    statistic = {"f1": corpus.f1, "mcc": corpus.mcc}.get(metric)
    first, second = corpus.binary_pairs(baseline.parts), corpus.binary_pairs(recipe.parts)
    if statistic is None or first is None or second is None or not np.array_equal(first[:, 0], second[:, 0]):
        return _untested(count, delta, f"{metric} exists only over all documents together: no paired test for it yet")
    kinds = first[:, 0] * 4 + first[:, 1] * 2 + second[:, 1]
    counts = np.bincount(kinds, minlength=8)
    if not all(
        _reproduces(run.score, float(statistic(table)[0])) for run, table in zip((baseline, recipe), corpus.tables(counts[None, :].astype(float)))
    ):
        return _untested(count, delta, "the reported score cannot be recomputed from its samples")

    def difference(resampled: np.ndarray) -> np.ndarray:
        before, after = corpus.tables(resampled)
        return statistic(after) - statistic(before)

    estimate, tails = stats.bootstrap_counts(counts, difference, seed=seed)
    return Effect(
        count=count,
        delta=delta,
        low=estimate.low,
        high=estimate.high,
        improvement=sign * delta,
        p_value=tails.two_sided,
        p_same=stats.equivalence_p(estimate, margin),
        documents_needed=_needed(estimate, count, margin),
        margin=margin,
    )


def _needed(estimate: stats.Estimate, count: int, margin: float, change: float | None = None) -> int | None:
    """Documents that decide with 80 % power, for what is seen: a difference beyond the margin is to be confirmed at its size,
    a smaller one shown to be within the margin.

    `change` is what the test of a difference is about, where that is not the estimate itself (the distance to a best value in
    the middle). At most `count` where those documents are there already, and bad luck or the correction kept the answer away.
    """
    variance, seen = count * estimate.standard_error**2, abs(estimate.value)
    settled = abs(estimate.value if change is None else change)
    if not math.isfinite(variance) or margin <= 0:
        return None
    if seen >= margin:
        return stats.documents_needed(variance, settled) if settled > 0 else None
    needed = stats.documents_needed(variance, margin)
    return needed if needed > count else stats.documents_needed(variance, max(settled, margin - seen))


def _untested(count: int, delta: float, reason: str) -> Effect:
    return Effect(count, delta, notes=(reason,))


def _reproduces(reported: float, recomputed: float) -> bool:
    return math.isclose(reported, recomputed, rel_tol=1e-6, abs_tol=1e-9)


def _within_unit(values: np.ndarray) -> bool:
    return bool(np.all((values >= 0) & (values <= 1)))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
