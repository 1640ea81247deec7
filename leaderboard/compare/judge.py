"""One recipe against its baseline on one metric: which test fits, and what it finds. Pure: arrays in, `Effect` out.

Which test fits depends on what the samples are, and on the metric's entry in `leaderboard.metrics`, never on its name:
- numbers whose mean is the reported score: right or wrong and independent (McNemar, Bonett-Price, Tango), or any
  others, clustered or not, as the mean of differences clipped at a bound (`statistics.clipped`);
- a metric with a best value in the middle: the same, and `middle_best_test` for whether the distance to it changed;
- log-likelihoods of texts: the ratio of perplexities, as the mean of changes a word clipped at a bound;
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

The bound, by which a document counts at most, is 1 where scores lie in [0, 1], so that nothing is clipped, and 20
margins elsewhere: no test of an unbounded mean both keeps its level and has power. A task's `metadata.bound: {metric:
value}` overrides it. Where a document may lie beyond it, interval and words are about the mean of the clipped
differences; the note says so, `delta` stays the plain difference, and the documents beyond the bound are counted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from leaderboard import statistics as stats
from leaderboard.compare import needs
from leaderboard.compare.clipping import clipping, documents_enough
from leaderboard.compare.effect import DEFAULT_BOUND, Comparison, Effect, finite_or_none
from leaderboard.compare.judge_corpus import corpus_effect, likelihood_effect
from leaderboard.compare.paired_scores import MiddleScores, PairedScores
from leaderboard.metrics import Kind, Metric

_MOST_DISTANCES = 3.0
"""How many root mean squares a score of a metric without limits counts at most as far from its best value."""


def judge(comparison: Comparison) -> Effect:
    """Compare paired samples of one metric."""
    baseline, recipe, known = comparison.baseline, comparison.recipe, comparison.known
    if comparison.count == 0:
        return comparison.untested("no sample bears this metric")
    if baseline.parts is not None or recipe.parts is not None:
        return corpus_effect(comparison)
    if not (np.isfinite(baseline.values).all() and np.isfinite(recipe.values).all()):
        return comparison.untested("some documents have a score that is not a finite number")
    if known.of_likelihoods and (baseline.weights is not None or not known.weighted):
        return likelihood_effect(comparison)
    return _mean(comparison)


def _mean(comparison: Comparison) -> Effect:
    baseline, recipe = comparison.baseline, comparison.recipe
    if not comparison.reproduced_by(float(np.mean(baseline.values)), float(np.mean(recipe.values))):
        return comparison.untested("the reported score is not the mean of its samples")
    unit = _within_unit(comparison)
    margin = comparison.margin or _default_margin(comparison, unit)
    default = 1.0 if unit else DEFAULT_BOUND * margin or _spread(recipe.values - baseline.values, 0.0) or 1.0
    bound = comparison.bound_above(margin, default)
    pair = PairedScores(baseline.values, recipe.values, comparison.sign, unit, comparison.groups, bound)
    effect = _effect(comparison, pair, margin)
    best = comparison.best_value
    if best is not None:
        effect = _in_the_middle(effect, comparison, pair, best)
    if not pair.clipped:
        return effect
    before, after = baseline.score, recipe.score
    plain = comparison.sign * comparison.delta if best is None else abs(before - best) - abs(after - best)
    far, worse = np.abs(pair.differences) > pair.bound, _got_worse(pair, best)
    found = clipping(far & worse, far & ~worse, pair.bound, plain, pair.clusters)
    if best is None:
        whole = stats.paired_interval(pair.differences, pair.clusters)
        found = found._replace(plain_low=finite_or_none(whole.low), plain_high=finite_or_none(whole.high))
    return replace(
        effect,
        clipping=found,
        notes=(found.note(pair.sign * pair.sample.mean, effect.delta, way=_good_way(comparison)), *effect.notes),
        needs=effect.needs and effect.needs._replace(enough=documents_enough(far & worse, pair.clusters)),
    )


def _good_way(comparison: Comparison) -> str:
    if comparison.best_value is not None:
        return f"best at {comparison.best_value:g}"
    return "lower is better" if comparison.sign < 0 else ""


def _effect(comparison: Comparison, pair: PairedScores, margin: float) -> Effect:
    """Of a metric of which more is better, or less."""
    count, sign, unit = comparison.count, comparison.sign, pair.unit
    tails, estimate, flips = pair.test(), pair.estimate(), pair.flips
    drop_low, drop_high = pair.drop_limits(comparison.limits_at)
    improvement = pair.improvement if pair.clipped else sign * comparison.delta
    low, high = (estimate.low, estimate.high) if sign > 0 else (-estimate.high, -estimate.low)
    low, high = comparison.possible(low, high, comparison.range(unit))
    return Effect(
        count=count,
        delta=comparison.delta,
        low=finite_or_none(low),
        high=finite_or_none(high),
        improvement=improvement,
        p_value=tails.two_sided,
        p_same=pair.same_p(margin),
        lost=flips.lost if unit else None,
        gained=flips.gained if unit else None,
        flip_rate=flips.rate if pair.binary else None,
        margin=margin,
        notes=_no_change(comparison.metric, pair.differences),
        p_worse=tails.less,
        drop_low=drop_low,
        drop_high=drop_high,
        standard_error=finite_or_none(estimate.standard_error),
        degrees=estimate.degrees,
        unit=unit and not pair.clipped,
        needs=_needs(pair, margin),
    )


def _in_the_middle(effect: Effect, comparison: Comparison, pair: PairedScores, best: float) -> Effect:
    """Of a metric with a best value in the middle, whose distance is what gets better or worse."""
    bounds = stats.MiddleBounds(pair.bound, _sides_bound(comparison, pair.unit, best))
    middle = MiddleScores(pair, best, bounds, comparison.range(pair.unit))
    improvement, p_value, p_worse = middle.test()
    low, high = middle.growth_limits(comparison.limits_at)
    if effect.low is not None and effect.high is not None:
        ends = middle.improvement_limits((effect.low, effect.high))
        effect = replace(effect, improvement_low=finite_or_none(ends[0]), improvement_high=finite_or_none(ends[1]))
    crossed = (comparison.baseline.score - best) * (comparison.recipe.score - best) < 0
    notes = (f"crossed its best value {best:g}",) if crossed else ()
    return replace(
        effect,
        improvement=improvement,
        p_value=p_value,
        p_worse=p_worse,
        drop_low=low,
        drop_high=high,
        lost=None,
        gained=None,
        notes=(*notes, *effect.notes),
        unit=False,
        needs=effect.needs and effect.needs.of_distance(improvement),
    )


def _needs(pair: PairedScores, margin: float) -> needs.Needs:
    if pair.binary and 0 < margin < 1:
        found = needs.of_flips(pair.flips, margin)
    else:
        found = needs.of_clipped(stats.standardised, pair.differences, margin, pair.bound, pair.clusters)
    before = float(np.mean(pair.baseline))
    if pair.unit:
        return found._replace(width=1.0, largest=max(before, 1 - before))
    return found._replace(width=2 * pair.bound, largest=pair.bound)


def _sides_bound(comparison: Comparison, unit: bool, best: float) -> float:
    """The largest sum of two scores' distances from the best value; without limits, six root mean squares."""
    if unit:
        return 2 * max(best, 1 - best)
    return 2 * _MOST_DISTANCES * _spread(comparison.baseline.values, best) or 1.0


def _got_worse(pair: PairedScores, best: float | None) -> np.ndarray:
    """Documents `[n]` that got worse. Where the best value lies in the middle, those whose own distance to it did not
    shrink.
    """
    return pair.differences < 0 if best is None else np.abs(pair.recipe - best) >= np.abs(pair.baseline - best)


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


def _no_change(metric: str, differences: np.ndarray) -> tuple[str, ...]:
    return () if differences.any() else (f"no document's {metric} changed",)
