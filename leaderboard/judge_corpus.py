"""One recipe against its baseline on metrics that are no means of samples: perplexities of texts; F1, MCC, BLEU, chrF and TER of a whole corpus."""

from __future__ import annotations

import math

import numpy as np

from leaderboard import corpus, corpus_text
from leaderboard import statistics as stats
from leaderboard.corpus_text import NoTest
from leaderboard.effect import Effect, Scored, finite_or_none, needed, reproduces, untested

LIKELIHOOD_METRICS = frozenset({"perplexity", "token_perplexity", "word_perplexity", "byte_perplexity"})
TEXT_DRAWS = 1_999  # a draw costs two calls of sacrebleu


def likelihood_effect(
    metric: str, baseline: Scored, recipe: Scored, sign: float, margin: float | None, default: float, seed: int, limits_at: float | None
) -> Effect:
    """The ratio of two perplexities, or the difference of two rates of bits, from the texts' log-likelihoods."""
    count, delta = len(recipe.values), recipe.score - baseline.score
    weights = baseline.weights if baseline.weights is not None else np.ones(count)
    other = recipe.weights if recipe.weights is not None else weights
    if not np.array_equal(weights, other):
        return untested(count, delta, "the two runs count words or bytes differently")
    exponential = metric in LIKELIHOOD_METRICS
    aggregate = _perplexity if exponential else _bits
    if not all(reproduces(run.score, aggregate(run.values, weights)) for run in (baseline, recipe)):
        return untested(count, delta, "the reported score cannot be recomputed from its samples")
    ratio = stats.log_ratio(baseline.values, recipe.values, weights)
    relative = margin / baseline.score if margin else default

    def in_units(log_ratio: float) -> float:
        return baseline.score * math.expm1(log_ratio) if exponential else log_ratio / math.log(2)

    limit = math.log1p(relative) if exponential else relative * baseline.score * math.log(2)
    tails = stats.paired_test(recipe.values - baseline.values, seed=seed)
    ends = (None, None) if limits_at is None else stats.log_ratio(baseline.values, recipe.values, weights, 1 - 2 * limits_at)[1:3]
    return Effect(
        count=count,
        delta=delta,
        low=finite_or_none(in_units(ratio.low)),
        high=finite_or_none(in_units(ratio.high)),
        improvement=sign * delta,
        p_value=tails.two_sided,
        p_same=stats.equivalence_p(ratio, limit),
        documents_needed=needed(ratio, count, limit),
        margin=relative * baseline.score,
        p_worse=tails.less,
        drop_low=None if ends[0] is None else finite_or_none(in_units(ends[0])),
        drop_high=None if ends[1] is None else finite_or_none(in_units(ends[1])),
        standard_error=finite_or_none(ratio.standard_error * (baseline.score if exponential else 1 / math.log(2))),
        degrees=ratio.degrees,
    )


def _perplexity(values: np.ndarray, weights: np.ndarray) -> float:
    exponent = -float(np.sum(values)) / float(np.sum(weights))
    return math.exp(exponent) if exponent < 700 else math.inf


def _bits(values: np.ndarray, weights: np.ndarray) -> float:
    return -float(np.sum(values)) / float(np.sum(weights)) / math.log(2)


def corpus_effect(
    metric: str, baseline: Scored, recipe: Scored, sign: float, margin: float | None, default: float, clusters: np.ndarray | None, seed: int, limits_at: float | None
) -> Effect:
    """F1 and MCC from (gold, prediction) pairs of 0 and 1, BLEU, chrF and TER from texts; other corpus metrics are shown without a test, and the reason said."""
    count, delta = len(recipe.values), recipe.score - baseline.score
    try:
        bootstrap = _of_texts if metric in corpus_text.METRICS else _of_tables
        estimate, tails = bootstrap(metric, baseline, recipe, sign, clusters, seed)
    except NoTest as reason:
        return untested(count, delta, str(reason))
    margin = margin or default * (corpus_text.POINTS if metric in corpus_text.METRICS else 1.0)
    half = None if limits_at is None else stats.normal_quantile(1 - 2 * limits_at) * estimate.standard_error
    low, high = (estimate.low, estimate.high) if sign > 0 else (-estimate.high, -estimate.low)
    return Effect(
        count=count,
        delta=delta,
        low=low,
        high=high,
        improvement=sign * delta,
        p_value=tails.two_sided,
        p_same=stats.equivalence_p(estimate, margin),
        documents_needed=needed(estimate, count, margin),
        margin=margin,
        p_worse=tails.less,
        drop_low=None if half is None else -estimate.value - half,
        drop_high=None if half is None else -estimate.value + half,
        standard_error=estimate.standard_error,
        degrees=estimate.degrees,
        detectable=stats.detectable_effect(count * estimate.standard_error**2, count),
        unit=metric == "f1",
    )


_NOT_RECOMPUTED = "the reported score cannot be recomputed from its samples"


def _of_tables(metric: str, baseline: Scored, recipe: Scored, sign: float, clusters: np.ndarray | None, seed: int) -> tuple[stats.Estimate, stats.Tails]:
    statistic = {"f1": corpus.f1, "mcc": corpus.mcc}.get(metric)
    first, second = corpus.binary_pairs(baseline.parts), corpus.binary_pairs(recipe.parts)
    if statistic is None or first is None or second is None or not np.array_equal(first[:, 0], second[:, 0]):
        raise NoTest(f"{metric} exists only over all documents together: no paired test for it yet")
    kinds = first[:, 0] * 4 + first[:, 1] * 2 + second[:, 1]
    counts = np.bincount(kinds, minlength=8)
    tables = corpus.tables(counts[None, :].astype(float))
    if not all(reproduces(run.score, float(statistic(table)[0])) for run, table in zip((baseline, recipe), tables)):
        raise NoTest(_NOT_RECOMPUTED)

    def gain(resampled: np.ndarray) -> np.ndarray:
        before, after = corpus.tables(resampled)
        return sign * (statistic(after) - statistic(before))

    if clusters is None:
        return stats.bootstrap_counts(counts, gain, seed=seed)
    return stats.bootstrap_sums(_by_cluster(np.eye(8)[kinds], clusters), gain, seed=seed)


def _of_texts(metric: str, baseline: Scored, recipe: Scored, sign: float, clusters: np.ndarray | None, seed: int) -> tuple[stats.Estimate, stats.Tails]:
    before, after = (corpus_text.counts(metric, run.parts or ()) for run in (baseline, recipe))
    if not all(reproduces(run.score, float(counts.score(counts.values.sum(axis=0, keepdims=True))[0])) for run, counts in ((baseline, before), (recipe, after))):
        raise NoTest(_NOT_RECOMPUTED)
    width = before.values.shape[1]

    def gain(sums: np.ndarray) -> np.ndarray:
        return sign * (after.score(sums[:, width:]) - before.score(sums[:, :width]))

    units = np.hstack([before.values, after.values])
    return stats.bootstrap_sums(units if clusters is None else _by_cluster(units, clusters), gain, seed=seed, draws=TEXT_DRAWS)


def _by_cluster(units: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums of `[n, k]` by cluster, `[G, k]`."""
    return np.stack([stats.cluster_sums(column, clusters) for column in units.T], axis=1)
