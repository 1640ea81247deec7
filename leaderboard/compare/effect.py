"""What a comparison of two runs on one metric takes and gives, and the few rules that all kinds of metric share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from leaderboard import metrics
from leaderboard.compare.clipping import Clipping
from leaderboard.compare.needs import Needs

DEFAULT_BOUND = 20
"""Margins for which one document counts at most, where scores have no limits of their own."""


@dataclass(frozen=True)
class Scored:
    """One run's samples of one metric, in an order shared by both runs, and its reported score."""

    score: float
    values: np.ndarray
    weights: np.ndarray | None = None
    parts: list[str] | None = None


@dataclass(frozen=True)
class Comparison:
    """Two runs' samples of one metric, and on which terms they are judged.

    `margin` is the task's own, in the metric's units, where it has one; `default_margin` is for scores in [0, 1].
    `bound` is the task's own too: by how much one document counts at most.
    `clusters` `[n]` names the group of dependent documents of each. `limits_at`: the level of one-sided limits of the
    drop, None for none.
    """

    metric: str
    baseline: Scored
    recipe: Scored
    higher_is_better: bool
    best_value: float | None = None
    margin: float | None = None
    default_margin: float = metrics.DEFAULT_MARGIN
    clusters: np.ndarray | None = None
    seed: int = 0
    limits_at: float | None = None
    bound: float | None = None

    @cached_property
    def known(self) -> metrics.Metric:
        """What is known of the metric."""
        return metrics.named(self.metric)

    @cached_property
    def groups(self) -> np.ndarray | None:
        """The clusters, unless every document is its own."""
        alone = self.clusters is None or len(np.unique(self.clusters)) == len(self.clusters)
        return None if alone else self.clusters

    @property
    def sign(self) -> float:
        """1 where higher is better, else -1."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def count(self) -> int:
        """Documents."""
        return len(self.recipe.values)

    @property
    def delta(self) -> float:
        """Recipe minus baseline, in the metric's units."""
        return self.recipe.score - self.baseline.score

    def untested(self, reason: str) -> Effect:
        """The difference without a test, and why there is none."""
        return Effect(self.count, self.delta, notes=(reason,))

    def bound_above(self, margin: float, default: float) -> float:
        """The task's own bound, else the default one. A bound that is not above the margin can tell nothing, and is
        not taken.
        """
        return self.bound if self.bound is not None and self.bound > margin else default

    @staticmethod
    def possible(low: float, high: float, within: metrics.Range) -> tuple[float, float]:
        """Limits of the difference cut to what two scores can differ by. Not to what the baseline's score has room for:
        that score is itself an estimate, and a limit that takes it for the truth covers less than it promises.
        """
        widest = within.high - within.low
        return max(low, -widest), min(high, widest)

    def range(self, unit: bool = False) -> metrics.Range:
        """The possible scores; without limits where a score is beyond the metric's, and so of another scale."""
        within = metrics.Range(0.0, 1.0) if unit else self.known.range
        both = (self.baseline.score, self.recipe.score)
        return within if all(within.low <= score <= within.high for score in both) else metrics.ANY

    def reproduced_by(self, baseline: float, recipe: float) -> bool:
        """Whether these scores, recomputed from the samples, are the reported ones."""
        return reproduces(self.baseline.score, baseline) and reproduces(self.recipe.score, recipe)


@dataclass(frozen=True)
class Effect:
    """What the pair shows. Fields that the kind of metric does not have are None; `improvement` > 0 is better.

    `drop_low` and `drop_high` are one-sided limits of the drop at the level asked for, None where none was.
    `improvement_low` and `improvement_high` are the 95 % limits of the improvement where they do not follow from those
    of the difference: of a metric whose best value lies in the middle. `unit`: scores lie within [0, 1], so that drops
    of different tasks may be averaged. `needs`: what the number of documents that decide rests on.

    `clipping`: one document counts for at most its bound in the interval, the p-values and `improvement`, while `delta`
    is the plain difference; None where no document can lie beyond. `collapse`: of `compare.collapse.collapse_signs`.
    `chance`: the share of right answers that guessing gets, or always taking the same choice, and whether the recipe's
    are shown to be more (`compare.chance`); `chance_note`: the sentence where they are not.
    """

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
    margin: float | None = None
    notes: tuple[str, ...] = ()
    p_worse: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    standard_error: float | None = None
    degrees: float | None = None
    unit: bool = False
    clipping: Clipping | None = None
    needs: Needs | None = None
    collapse: tuple[str, ...] | None = None
    improvement_low: float | None = None
    improvement_high: float | None = None
    chance: float | None = None
    beats_chance: bool | None = None
    chance_note: str = ""

    @property
    def drop(self) -> float | None:
        """How much worse the recipe is, in the metric's units; below zero where it is better."""
        return None if self.improvement is None else -self.improvement


def reproduces(reported: float, recomputed: float) -> bool:
    """Whether a score recomputed from samples is the reported one."""
    return math.isclose(reported, recomputed, rel_tol=1e-6, abs_tol=1e-9)


def finite_or_none(value: float) -> float | None:
    """None for NaN and infinities, which have no place in a row."""
    return value if math.isfinite(value) else None
