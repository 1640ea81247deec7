"""One recipe against its baseline on metrics that are no means of samples: of texts' log-likelihoods, and of a whole
corpus.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from leaderboard import statistics as stats
from leaderboard.compare import corpus_metrics, corpus_text_metrics, needs
from leaderboard.compare.clipping import clipping, documents_enough
from leaderboard.compare.corpus_metrics import Contributions, NoTest
from leaderboard.compare.effect import DEFAULT_BOUND, Comparison, Effect, finite_or_none
from leaderboard.metrics import Kind
from leaderboard.statistics.corpora import TEST_DRAWS

TEXT_DRAWS = 1_999  # of the test: a draw costs two calls of sacrebleu


def likelihood_effect(comparison: Comparison) -> Effect:
    """The ratio of two perplexities, or the difference of two rates of bits, from the texts' log-likelihoods."""
    baseline, recipe, count = comparison.baseline, comparison.recipe, comparison.count
    weights = baseline.weights if baseline.weights is not None else np.ones(count)
    other = recipe.weights if recipe.weights is not None else weights
    if not np.array_equal(weights, other):
        return comparison.untested("the two runs count words or bytes differently")
    exponential = comparison.known.kind is Kind.PERPLEXITY
    aggregate = _perplexity if exponential else _bits
    if not comparison.reproduced_by(aggregate(baseline.values, weights), aggregate(recipe.values, weights)):
        return comparison.untested("the reported score cannot be recomputed from its samples")
    if not baseline.score > 0 or not weights.any():
        return comparison.untested("the baseline's score is not above zero, and the margin is relative to it")
    return _texts_effect(comparison, weights, exponential)


def _texts_effect(comparison: Comparison, weights: np.ndarray, exponential: bool) -> Effect:
    """Log-likelihoods lost and gained a word, each text with its words as its weight."""
    score, count, level = comparison.baseline.score, comparison.count, comparison.limits_at
    relative = comparison.margin / score if comparison.margin else comparison.default_margin

    def in_logs(change: float) -> float:
        return math.log1p(change / score) if exponential else change * math.log(2)

    def in_units(log_ratio: float) -> float:
        return score * math.expm1(log_ratio) if exponential else log_ratio / math.log(2)

    limit = in_logs(relative * score)
    bound = comparison.bound_above(relative * score, in_units(DEFAULT_BOUND * limit))
    changes = comparison.recipe.values - comparison.baseline.values
    sample = stats.clipped_sample(changes, in_logs(bound), comparison.groups, weights)
    tails, estimate = stats.clipped_tails(sample), stats.clipped_interval(sample)
    low, high = comparison.possible(in_units(-estimate.high), in_units(-estimate.low), comparison.range())
    effect = Effect(
        count=count,
        delta=comparison.delta,
        low=finite_or_none(low),
        high=finite_or_none(high),
        improvement=-in_units(-sample.mean),
        p_value=tails.two_sided,
        p_same=stats.clipped_same_p(sample, limit),
        margin=relative * score,
        p_worse=tails.less,
        drop_low=_limit(level, lambda at: in_units(-stats.clipped_drop_limit(sample.mirrored, at))),
        drop_high=_limit(level, lambda at: in_units(stats.clipped_drop_limit(sample, at))),
        standard_error=finite_or_none(estimate.standard_error * (score if exponential else 1 / math.log(2))),
        degrees=estimate.degrees,
        needs=needs.of_clipped(stats.standardised, changes, limit, in_logs(bound), comparison.groups, weights)._replace(
            base_score=score if exponential else None,
            unit=1 / math.log(2),
            width=bound - in_units(-in_logs(bound)),
            largest=bound,
        ),
    )
    far, groups = in_logs(bound) * weights, comparison.groups
    found = clipping(changes < -far, changes > far, bound, -comparison.delta, groups)
    plain = _plain_interval(changes, weights, groups)
    found = found._replace(
        plain_low=finite_or_none(-in_units(-plain.low)), plain_high=finite_or_none(-in_units(-plain.high))
    )
    words = f"{bound / score:+.0%} of the perplexity" if exponential else f"{bound:.3g} bits"
    return replace(
        effect,
        clipping=found,
        notes=(found.note(in_units(-sample.mean), effect.delta, words, "lower is better"), *effect.notes),
        needs=effect.needs and effect.needs._replace(enough=documents_enough(changes < -far, groups)),
    )


def _plain_interval(changes: np.ndarray, weights: np.ndarray, groups: np.ndarray | None) -> stats.Estimate:
    """The t interval of the mean change a word, none clipped: of a ratio of sums, by its linear terms."""
    mean = float(np.sum(changes) / np.sum(weights))
    return stats.paired_interval(mean + (changes - mean * weights) * len(changes) / np.sum(weights), groups)


def _limit(level: float | None, limit: Callable[[float], float]) -> float | None:
    return None if level is None else finite_or_none(limit(level))


def _perplexity(values: np.ndarray, weights: np.ndarray) -> float:
    exponent = -float(np.sum(values)) / float(np.sum(weights))
    return math.exp(exponent) if exponent < 700 else math.inf


def _bits(values: np.ndarray, weights: np.ndarray) -> float:
    return -float(np.sum(values)) / float(np.sum(weights)) / math.log(2)


def corpus_effect(comparison: Comparison) -> Effect:
    """A metric of a whole corpus, from (gold, prediction) pairs of 0 and 1 or from texts; one of another kind is shown
    without a test, and the reason said.
    """
    known, count = comparison.known, comparison.count
    of_text = known.kind is Kind.TEXT
    contributions = corpus_text_metrics.contributions if of_text else corpus_metrics.contributions
    try:
        contributed = contributions(comparison.metric, comparison.baseline.parts or (), comparison.recipe.parts or ())
    except NoTest as reason:
        return comparison.untested(str(reason))
    before, after = (
        float(contributed.score(counts.sum(axis=0, keepdims=True))[0])
        for counts in (contributed.before, contributed.after)
    )
    if not comparison.reproduced_by(before, after):
        return comparison.untested("the reported score cannot be recomputed from its samples")
    corpora = _corpora(contributed, comparison.sign, comparison.groups)
    margin, level, seed = _corpus_margin(comparison), comparison.limits_at, comparison.seed
    estimate = stats.corpus_interval(corpora, seed=seed)
    tails = stats.corpus_test(corpora, seed=seed, draws=TEXT_DRAWS if of_text else TEST_DRAWS)
    widest = comparison.range().high - comparison.range().low
    limits = None if level is None else stats.corpus_interval(corpora, 1 - 2 * level, seed=seed)
    low, high = (estimate.low, estimate.high) if comparison.sign > 0 else (-estimate.high, -estimate.low)
    low, high = comparison.possible(low, high, comparison.range())
    return Effect(
        count=count,
        delta=comparison.delta,
        low=low,
        high=high,
        improvement=comparison.sign * comparison.delta,
        p_value=tails.two_sided,
        p_same=stats.equivalence_p(estimate, margin),
        margin=margin,
        p_worse=tails.less,
        drop_low=None if limits is None else max(-limits.high, -widest),
        drop_high=None if limits is None else min(-limits.low, widest),
        standard_error=estimate.standard_error,
        degrees=estimate.degrees,
        unit=known.range.is_unit,
        needs=needs.of_mean(count * estimate.standard_error**2, -estimate.value, margin)._replace(
            width=widest if math.isfinite(widest) else None,
            largest=_largest(comparison) if math.isfinite(widest) else None,
        ),
    )


def _largest(comparison: Comparison) -> float:
    """The largest difference from the baseline's score that the metric's range has room for."""
    before, within = comparison.baseline.score, comparison.range()
    return max(before - within.low, within.high - before)


def _corpus_margin(comparison: Comparison) -> float:
    scale = comparison.known.scale
    return comparison.margin or comparison.default_margin * (1.0 if scale is None else scale)


def _corpora(contributed: Contributions, sign: float, clusters: np.ndarray | None) -> stats.Corpora:
    """Two documents are added that are wholly lost and gained; where documents come in clusters, of a size that leans
    to the large ones.
    """
    before, after, size = contributed.before, contributed.after, 1.0
    if clusters is not None:
        sizes = np.unique(clusters, return_counts=True)[1].astype(float)
        before, after, size = (
            _by_cluster(before, clusters),
            _by_cluster(after, clusters),
            float(np.sum(sizes**3) / np.sum(sizes**2)),
        )
    added = size * np.stack([contributed.right, contributed.wrong])
    return stats.Corpora(before, after, lambda sums: sign * contributed.score(sums), added, added[::-1])


def _by_cluster(counts: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums of `[n, k]` by cluster, `[G, k]`."""
    return np.stack([stats.cluster_sums(column, clusters) for column in counts.T], axis=1)
