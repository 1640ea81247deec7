"""Two reported scores of one metric, where documents cannot be paired: the difference, and what it may be by chance.

Never a verdict: the words *better*, *worse* and *same* are for pairs of documents, and those here are in no correction
over a board. A gate may decide by the one-sided limits where its policy says so.
"""

from __future__ import annotations

from typing import NamedTuple

from leaderboard.compare.comparability import UNKNOWN_TASK, same_task_known
from leaderboard.metrics import Kind, named
from leaderboard.statistics.unpaired import (
    FEWEST,
    FEWEST_UNBOUNDED,
    Aggregate,
    is_share,
    own_limits,
    unpaired_interval,
    unpaired_p_worse,
)
from leaderboard.store.queries import RunTaskRow, ScoreRow

NOTE = "unpaired: the two scores by themselves, as of independent runs; no verdict follows"


class ReportedTask(NamedTuple):
    """What a results file says of one score, and of the documents behind it."""

    score: ScoreRow
    task: RunTaskRow


class Unpaired(NamedTuple):
    """Recipe minus baseline in the metric's own units, with its 95 % interval. reason: why there is no interval;
    None where there is one. drop_low, drop_high: one-sided limits of the drop at the level asked for, and p_worse its
    p-value; None where none was asked for, or there are none.
    """

    delta: float
    low: float | None
    high: float | None
    reason: str | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    p_worse: float | None = None
    margin: float | None = None
    reason_not_gated: str | None = None

    @property
    def why_not_gated(self) -> str:
        """Why a gate cannot decide by it."""
        return (
            self.reason
            or self.reason_not_gated
            or "only scores that are means of documents between 0 and 1 are decided unpaired"
        )

    @property
    def note(self) -> str:
        """What is to be said beside it."""
        return NOTE if self.reason is None else f"unpaired, and without an interval: {self.reason}"


def unpaired(baseline: ReportedTask, recipe: ReportedTask) -> Unpaired:
    """The difference of two scores that are numbers."""
    before, after = aggregate(baseline), aggregate(recipe)
    delta = after.score - before.score
    span = None if recipe.task.cluster_by else unpaired_interval(before, after)
    if span is None:
        return Unpaired(delta, None, None, _why_none(recipe, before, after))
    return Unpaired(delta, span.low, span.high)


def gated(
    baseline: ReportedTask, recipe: ReportedTask, level: float, margin: float | None, default_margin: float
) -> Unpaired:
    """`unpaired`, with what a gate needs: limits of the drop at a one-sided level. margin: in the metric's units, the
    policy's or the task's own; default_margin: for scores within [0, 1]. Only scores that are means of documents within
    [0, 1] have limits that hold for any run, and only those are gated.
    """
    found = unpaired(baseline, recipe)
    before, after, score = aggregate(baseline), aggregate(recipe), recipe.score
    bounded = all(is_share(run) or (run.is_mean and run.low >= 0 and run.high <= 1) for run in (before, after))
    if found.low is None or score.best_value is not None or not bounded:
        return found
    if same_task_known(baseline.task, recipe.task) == UNKNOWN_TASK:
        return found._replace(reason_not_gated="nothing in the two files says that both ran the same task")
    span = unpaired_interval(before, after, 1 - 2 * level)
    if span is None:
        return found
    sign = -1.0 if score.higher_is_better is False else 1.0
    low, high = (-span.high, -span.low) if sign > 0 else (span.low, span.high)
    return found._replace(
        drop_low=low,
        drop_high=high,
        p_worse=unpaired_p_worse(before, after, sign),
        margin=margin or score.margin or default_margin,
    )


def aggregate(reported: ReportedTask) -> Aggregate:
    """A score as the formulas take it. A value outside the range of its metric is of another scale, of which nothing is
    known.
    """
    score, known = reported.score, named(reported.score.metric)
    assert score.score is not None
    limits = known.range if known.range.low <= score.score <= known.range.high else named("").range
    return Aggregate(
        score.score,
        score.stderr,
        reported.task.document_count,
        limits.low,
        limits.high,
        is_mean=known.kind is Kind.MEAN,
    )


def _why_none(recipe: ReportedTask, before: Aggregate, after: Aggregate) -> str:
    if recipe.task.cluster_by:
        return f"documents depend on each other by {recipe.task.cluster_by}, which a reported error leaves out"
    lacking = [run for run in (before, after) if own_limits(run) is None]
    if any(run.documents is None for run in lacking):
        return "a results file does not say how many documents there were"
    if any((run.documents or 0) < FEWEST for run in lacking):
        return f"fewer than {FEWEST} documents"
    if any(not run.standard_error for run in lacking):
        return "a results file has no standard error of this metric"
    return f"fewer than {FEWEST_UNBOUNDED} documents of a metric without bounds"
