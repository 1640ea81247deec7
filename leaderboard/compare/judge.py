"""One recipe against its baseline on one metric: which test fits, and what it finds. Pure: arrays in, `Effect` out.

Which test fits depends on what the samples are, never on the metric's name alone:
- numbers whose mean is the reported score: binary (McNemar, Bonett-Price, Tango), other scores within [0, 1]
(sign-flip, bounded interval),
  or any others (sign-flip, t interval), clustered or not;
- a metric with a best value in the middle: the same, and `middle_best_test` for whether the distance to it changed;
- log-likelihoods of texts: the ratio of perplexities;
- gold and prediction: F1 or MCC, BLEU, chrF or TER, by a paired bootstrap over documents;
- anything else: the difference is shown without an interval, and the reason said.
A test is used only if recomputing the reported score from the samples gives it back, for both runs.

Beside the two-sided answers of a board an `Effect` has the one-sided ones of a gate, about the *drop*: how much worse
the recipe is, in the
metric's own units, in whichever direction is worse. `p_worse` is small where there is one, and limits of its size are
given at the level asked for.

The margin within which a recipe counts as the same is 2 points (`DEFAULT_MARGIN = 0.02`) where scores lie in [0, 1].
Elsewhere
it is 2 of 100 for BLEU, chrF and TER, relative for perplexities and bits per byte, and otherwise `2 * 0.02 * SD` of the
baseline's documents, or of their
distances from the best value where that lies in the middle: for a proportion near one half (SD 0.5) that is 2 points
again, and
for log-odds of 1 about 1 point of probability. A task's `metadata.margin: {metric: value}` overrides it.
"""

from __future__ import annotations

import numpy as np

from leaderboard import statistics as stats
from leaderboard.compare.effect import Effect, Scored, finite_or_none, needed, reproduces, untested
from leaderboard.compare.judge_corpus import corpus_effect, likelihood_effect
from leaderboard.compare.paired_scores import Pair

DEFAULT_MARGIN = 0.02


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
    limits_at: float | None = None,
) -> Effect:
    """Compare paired samples of one metric. `margin` is the task's own, in the metric's units, where it has one;
    `limits_at` the level of one-sided limits.
    """
    count, delta = len(recipe.values), recipe.score - baseline.score
    sign = 1.0 if higher_is_better else -1.0
    if count == 0:
        return Effect(0, delta, notes=("no sample bears this metric",))
    if baseline.parts is not None or recipe.parts is not None:
        return corpus_effect(metric, baseline, recipe, sign, margin, default_margin, clusters, seed, limits_at)
    if np.isnan(baseline.values).any() or np.isnan(recipe.values).any():
        return Effect(count, delta, notes=("some documents have a score that is not a finite number",))
    if baseline.weights is not None or metric == "perplexity":
        return likelihood_effect(metric, baseline, recipe, sign, margin, default_margin, seed, limits_at)
    return _mean(baseline, recipe, sign, best_value, margin, default_margin, clusters, seed, limits_at)


def _mean(
    baseline: Scored,
    recipe: Scored,
    sign: float,
    best: float | None,
    margin: float | None,
    default: float,
    clusters: np.ndarray | None,
    seed: int,
    limits_at: float | None,
) -> Effect:
    count, delta = len(recipe.values), recipe.score - baseline.score
    if not all(reproduces(run.score, float(np.mean(run.values))) for run in (baseline, recipe)):
        return untested(count, delta, "the reported score is not the mean of its samples")
    unit = _within_unit(baseline.values) and _within_unit(recipe.values)
    margin = margin if margin else default if unit else 2 * default * _spread(baseline.values, best)
    pair = Pair(baseline.values, recipe.values, sign, unit, clusters, seed)
    directed = best is None
    if best is None:
        tails = pair.test()
        improvement, p_value, p_worse = sign * delta, tails.two_sided, tails.less
        low, high = pair.drop_limits(limits_at)
    else:
        improvement, p_value, p_worse = stats.middle_best_test(
            baseline.values, recipe.values, best, clusters, seed=seed
        )
        low, high = pair.distance_limits(best, limits_at)
    estimate = pair.estimate()
    flips = pair.flips
    return Effect(
        count=count,
        delta=delta,
        low=finite_or_none(sign * (estimate.low if sign > 0 else estimate.high)),
        high=finite_or_none(sign * (estimate.high if sign > 0 else estimate.low)),
        improvement=improvement,
        p_value=p_value,
        p_same=pair.same_p(margin),
        lost=flips.lost if unit and directed else None,
        gained=flips.gained if unit and directed else None,
        flip_rate=flips.rate if pair.binary else None,
        documents_needed=needed(estimate, count, margin, improvement),
        margin=margin,
        notes=_mean_notes(baseline.score, recipe.score, best, pair.differences),
        p_worse=p_worse,
        drop_low=low,
        drop_high=high,
        standard_error=finite_or_none(estimate.standard_error),
        degrees=estimate.degrees,
        detectable=finite_or_none(stats.detectable_effect(count * estimate.standard_error**2, count)),
        unit=unit and directed,
    )


def _spread(values: np.ndarray, best: float | None) -> float:
    """Root mean square distance from the mean, or from the best value where that lies in the middle."""
    centre = float(np.mean(values)) if best is None else best
    return float(np.sqrt(np.mean((values - centre) ** 2)))


def _mean_notes(baseline: float, recipe: float, best: float | None, differences: np.ndarray) -> tuple[str, ...]:
    notes = []
    if best is not None and (baseline - best) * (recipe - best) < 0:
        notes.append(f"crossed its best value {best:g}")
    if not differences.any():
        notes.append("no document's score changed")
    return tuple(notes)


def _within_unit(values: np.ndarray) -> bool:
    return bool(np.all((values >= 0) & (values <= 1)))
