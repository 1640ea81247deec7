"""One recipe against its baseline on metrics that are no means of samples: perplexities of texts; F1, MCC, BLEU, chrF
and TER of a whole corpus.
"""

from __future__ import annotations

import math

import numpy as np

from leaderboard import statistics as stats
from leaderboard.compare import corpus_metrics, corpus_text_metrics
from leaderboard.compare.corpus_metrics import Contributions, NoTest
from leaderboard.compare.effect import Effect, Scored, finite_or_none, needed, reproduces, untested

LIKELIHOOD_METRICS = frozenset({"perplexity", "token_perplexity", "word_perplexity", "byte_perplexity"})
TEXT_DRAWS = 1_999  # of the test: a draw costs two calls of sacrebleu


def likelihood_effect(
    metric: str,
    baseline: Scored,
    recipe: Scored,
    sign: float,
    margin: float | None,
    default: float,
    seed: int,
    limits_at: float | None,
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
    ends = (
        (None, None)
        if limits_at is None
        else stats.log_ratio(baseline.values, recipe.values, weights, 1 - 2 * limits_at)[1:3]
    )
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
        detectable=finite_or_none(in_units(stats.detectable_effect(count * ratio.standard_error**2, count))),
    )


def _perplexity(values: np.ndarray, weights: np.ndarray) -> float:
    exponent = -float(np.sum(values)) / float(np.sum(weights))
    return math.exp(exponent) if exponent < 700 else math.inf


def _bits(values: np.ndarray, weights: np.ndarray) -> float:
    return -float(np.sum(values)) / float(np.sum(weights)) / math.log(2)


def corpus_effect(
    metric: str,
    baseline: Scored,
    recipe: Scored,
    sign: float,
    margin: float | None,
    default: float,
    clusters: np.ndarray | None,
    seed: int,
    limits_at: float | None,
) -> Effect:
    """F1 and MCC from (gold, prediction) pairs of 0 and 1, BLEU, chrF and TER from texts; other corpus metrics are
    shown without a test, and the reason said.
    """
    count, delta, of_text = len(recipe.values), recipe.score - baseline.score, metric in corpus_text_metrics.METRICS
    try:
        contributed = (corpus_text_metrics.contributions if of_text else corpus_metrics.contributions)(
            metric, baseline.parts or (), recipe.parts or ()
        )
    except NoTest as reason:
        return untested(count, delta, str(reason))
    scores = [
        float(contributed.score(counts.sum(axis=0, keepdims=True))[0])
        for counts in (contributed.before, contributed.after)
    ]
    if not all(reproduces(run.score, score) for run, score in zip((baseline, recipe), scores)):
        return untested(count, delta, "the reported score cannot be recomputed from its samples")
    pair, margin = (
        _corpora(contributed, sign, clusters),
        margin or default * (corpus_text_metrics.POINTS if of_text else 1.0),
    )
    draws = {"draws": TEXT_DRAWS} if of_text else {}
    estimate, tails = stats.corpus_interval(pair, seed=seed), stats.corpus_test(pair, seed=seed, **draws)
    limits = None if limits_at is None else stats.corpus_interval(pair, 1 - 2 * limits_at, seed=seed)
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
        drop_low=None if limits is None else -limits.high,
        drop_high=None if limits is None else -limits.low,
        standard_error=estimate.standard_error,
        degrees=estimate.degrees,
        detectable=stats.detectable_effect(count * estimate.standard_error**2, count),
        unit=metric == "f1",
    )


def _corpora(found: Contributions, sign: float, clusters: np.ndarray | None) -> stats.Corpora:
    """Two documents are added that are wholly lost and gained; where documents come in clusters, of a size that leans
    to the large ones.
    """
    before, after, size = found.before, found.after, 1.0
    if clusters is not None:
        sizes = np.unique(clusters, return_counts=True)[1].astype(float)
        before, after, size = (
            _by_cluster(before, clusters),
            _by_cluster(after, clusters),
            float(np.sum(sizes**3) / np.sum(sizes**2)),
        )
    added = size * np.stack([found.right, found.wrong])
    return stats.Corpora(before, after, lambda sums: sign * found.score(sums), added, added[::-1])


def _by_cluster(counts: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums of `[n, k]` by cluster, `[G, k]`."""
    return np.stack([stats.cluster_sums(column, clusters) for column in counts.T], axis=1)
