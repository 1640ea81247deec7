"""One recipe against its baseline on one metric: which test fits, and what it finds. Pure: arrays in, `Effect` out.

Which test fits depends on what the samples are, and on the metric's entry in `leaderboard.metrics`, never on its name:
- numbers whose mean is the reported score: binary (McNemar, Bonett-Price, Tango), other scores within [0, 1]
  (sign-flip, bounded interval), or any others (sign-flip, t interval), clustered or not;
- a metric with a best value in the middle: the same, and `middle_best_test` for whether the distance to it changed;
- log-likelihoods of texts: the ratio of perplexities;
- gold and prediction: F1 or MCC, BLEU, chrF or TER, by a paired bootstrap over documents;
- anything else: the difference is shown without an interval, and the reason said.

A test is used only if recomputing the reported score from the samples gives it back, for both runs.

Beside the two-sided answers of a board an `Effect` has the one-sided ones of a gate, about the *drop*: how much worse
the recipe is, in the metric's own units, in whichever direction is worse. `p_worse` is small where there is one, and
limits of its size are given at the level asked for.

The margin within which a recipe counts as the same is 2 points (`DEFAULT_MARGIN = 0.02`) where scores lie in [0, 1].
Elsewhere it is as many of the metric's scale (2 of 100 for BLEU, chrF and TER), relative for perplexities and bits per
byte, and otherwise `2 * 0.02 * SD` of the baseline's documents, or of their distances from the best value where that
lies in the middle: for a proportion near one half (SD 0.5) that is 2 points again, and for log-odds of 1 about 1 point
of probability. A task's `metadata.margin: {metric: value}` overrides it.
"""

from __future__ import annotations

import numpy as np

from leaderboard import statistics as stats
from leaderboard.compare import needs
from leaderboard.compare.effect import Comparison, Effect, finite_or_none
from leaderboard.compare.judge_corpus import corpus_effect, likelihood_effect
from leaderboard.compare.paired_scores import PairedScores
from leaderboard.metrics import Kind, Metric


def judge(comparison: Comparison) -> Effect:
    """Compare paired samples of one metric."""
    baseline, recipe, known = comparison.baseline, comparison.recipe, comparison.known
    if comparison.count == 0:
        return comparison.untested("no sample bears this metric")
    if baseline.parts is not None or recipe.parts is not None:
        return corpus_effect(comparison)
    if np.isnan(baseline.values).any() or np.isnan(recipe.values).any():
        return comparison.untested("some documents have a score that is not a finite number")
    if known.of_likelihoods and (baseline.weights is not None or not known.weighted):
        return likelihood_effect(comparison)
    return _mean(comparison)


def _mean(comparison: Comparison) -> Effect:
    baseline, recipe, best = comparison.baseline, comparison.recipe, comparison.best_value
    if not comparison.reproduced_by(float(np.mean(baseline.values)), float(np.mean(recipe.values))):
        return comparison.untested("the reported score is not the mean of its samples")
    unit = _within_unit(comparison)
    margin = comparison.margin or _default_margin(comparison, unit)
    sign, count = comparison.sign, comparison.count
    pair = PairedScores(baseline.values, recipe.values, sign, unit, comparison.clusters, comparison.seed)
    directed = best is None
    if best is None:
        tails = pair.test()
        improvement, p_value, p_worse = sign * comparison.delta, tails.two_sided, tails.less
        low, high = pair.drop_limits(comparison.limits_at)
    else:
        improvement, p_value, p_worse = stats.middle_best_test(
            baseline.values, recipe.values, best, comparison.clusters, seed=comparison.seed
        )
        low, high = pair.distance_limits(best, comparison.limits_at)
    estimate = pair.estimate()
    flips = pair.flips
    return Effect(
        count=count,
        delta=comparison.delta,
        low=finite_or_none(sign * (estimate.low if sign > 0 else estimate.high)),
        high=finite_or_none(sign * (estimate.high if sign > 0 else estimate.low)),
        improvement=improvement,
        p_value=p_value,
        p_same=pair.same_p(margin),
        lost=flips.lost if unit and directed else None,
        gained=flips.gained if unit and directed else None,
        flip_rate=flips.rate if pair.binary else None,
        margin=margin,
        notes=_mean_notes(baseline.score, recipe.score, best, pair.differences),
        p_worse=p_worse,
        drop_low=low,
        drop_high=high,
        standard_error=finite_or_none(estimate.standard_error),
        degrees=estimate.degrees,
        unit=unit and directed,
        needs=_needs(pair, margin, None if directed else improvement),
    )


def _needs(pair: PairedScores, margin: float, change: float | None) -> needs.Needs:
    """`change`: that of the distance to a best value in the middle."""
    if pair.binary and margin < 1 and change is None:
        return needs.of_flips(pair.flips, margin)
    drop, whole = -float(np.mean(pair.differences)), 0.0
    error, _ = stats.standard_error(pair.differences, pair.clusters)
    if pair.unit:
        sizes = np.ones(1) if pair.clusters is None else np.unique(pair.clusters, return_counts=True)[1].astype(float)
        whole = float(np.sum(sizes**3) / np.sum(sizes**2))
    return needs.of_mean(len(pair.differences) * error**2, drop, margin, change=change, whole=whole)


def _scale(known: Metric) -> float | None:
    """That of a mean. A corpus metric whose samples are numbers is none of its own kind, and may be of any scale."""
    return known.scale if known.kind is Kind.MEAN else None


def _within_unit(comparison: Comparison) -> bool:
    """Whether every score lies in [0, 1], and not just by chance: the scale of the metric may be known to be wider."""
    if _scale(comparison.known) is not None and not comparison.known.range.is_unit:
        return False
    return all(bool(np.all((run.values >= 0) & (run.values <= 1))) for run in (comparison.baseline, comparison.recipe))


def _default_margin(comparison: Comparison, unit: bool) -> float:
    scale = _scale(comparison.known)
    if scale is None:
        scale = 1.0 if unit else 2 * _spread(comparison.baseline.values, comparison.best_value)
    return comparison.default_margin * scale


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
