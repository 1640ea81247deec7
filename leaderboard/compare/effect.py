"""What a comparison of two runs on one metric takes and gives, and the few rules that all kinds of metric share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from leaderboard import metrics
from leaderboard.compare.needs import Needs


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

    @cached_property
    def known(self) -> metrics.Metric:
        """What is known of the metric."""
        return metrics.named(self.metric)

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

    def reproduced_by(self, baseline: float, recipe: float) -> bool:
        """Whether these scores, recomputed from the samples, are the reported ones."""
        return reproduces(self.baseline.score, baseline) and reproduces(self.recipe.score, recipe)


@dataclass(frozen=True)
class Effect:
    """What the pair shows. Fields that the kind of metric does not have are None; `improvement` > 0 is better.

    `drop_low` and `drop_high` are one-sided limits of the drop at the level asked for, None where none was.
    `unit`: scores lie within [0, 1], so that drops of different tasks may be averaged. `needs`: what the number of
    documents that decide rests on.
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
    needs: Needs | None = None

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
