"""Is a reported number true? The rules, of an interval measured here and of the control.

An improvement is positive where it is good. Scores are compared as they are; perplexities by their logarithms, so that
a share of a claim means a share of the factor's exponent. `[low, high]` is the 95 % interval of the improvement that
was measured, `reported` the paper's, `slack` the share of it that two measurements may differ by (a quarter).

- **supported**: `reported - measured` lies within the slack with its whole interval, and the edit is better than its
  control at the same budget.
- **contradicted**: it is shown to be worse than reported by more than the slack; and, of a gain, no gain is shown.
- **partly**: of a gain, a gain is shown, but smaller or larger than reported, of undecided size, or one that the
  control has too; of a cost, it is shown to be as reported or smaller, but not to be better than the control's or not
  within the slack.
- **undecided**: all else: too few documents.

Of a claim that nothing changes, the margin of the board stands in place of the slack. By the interval's level, an edit
whose effect differs by the slack or more is called supported in at most one case of forty, and one whose effect is the
reported one contradicted in at most one of forty.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from leaderboard import metrics
from leaderboard.board.cell import Cell
from leaderboard.board.reported import Reported
from leaderboard.report.words import improvement_limits, improvement_point

ClaimWord = Literal["supported", "partly", "contradicted", "undecided"]
CLAIM_WORDS: tuple[ClaimWord, ...] = ("supported", "partly", "contradicted", "undecided")
SLACK = 0.25
"""The share of a reported change by which two measurements of it may differ."""
UNCHANGED = 0.02
"""What counts as no change, where none is reported."""


class ClaimState(NamedTuple):
    """What became of a claim, and why."""

    word: ClaimWord
    why: str


class ClaimEffect(NamedTuple):
    """An improvement with its 95 % interval, on the scale on which claims are compared."""

    point: float
    low: float
    high: float


def state_of(reported: float, measured: ClaimEffect, beats_control: bool | None, slack: float = SLACK) -> ClaimState:
    """The state of a claim by the rules above. reported: the improvement that is claimed; beats_control: None where no
    control was run. Raises ValueError for an interval that does not hold its point, or a slack outside (0, 1).
    """
    if not measured.low <= measured.point <= measured.high or not 0 < slack < 1:
        raise ValueError(f"no interval around a point, or no share: {measured}, {slack}")
    allowed = slack * abs(reported) or UNCHANGED
    worse, better = measured.high < reported - allowed, measured.low > reported + allowed
    within = measured.low >= reported - allowed and measured.high <= reported + allowed
    if within and beats_control:
        return ClaimState("supported", "as large as reported, and better than its control")
    control = {None: "no control was run", False: "its control is not shown to do worse", True: ""}[beats_control]
    if reported > 0:
        return _of_a_gain(measured, worse, better, within, control)
    if worse:
        return ClaimState("contradicted", "shown to be worse than reported")
    if within or better:
        size = "as reported" if within else "better than reported"
        return ClaimState("partly", " but ".join(part for part in (size, control) if part))
    return ClaimState("undecided", "too few documents to tell")


def _of_a_gain(measured: ClaimEffect, worse: bool, better: bool, within: bool, control: str) -> ClaimState:
    if measured.low > 0:
        size = (
            "as large as reported" if within
            else "smaller than reported" if worse
            else "larger than reported" if better
            else "there, but too few documents tell its size"
        )  # fmt: skip
        return ClaimState("partly", ", and ".join(part for part in (f"the gain is {size}", control) if part))
    if worse:
        return ClaimState("contradicted", "no gain is shown, and one as large as reported is excluded")
    return ClaimState("undecided", "too few documents to tell")


def claimed_effect(entry: Reported) -> float:
    """The improvement that is reported, on the scale of claims."""
    if _is_perplexity(entry.metric):
        return math.log(entry.before / entry.after)
    return (entry.after - entry.before) * (1 if entry.higher_is_better else -1)


def measured_effect(cell: Cell) -> ClaimEffect | None:
    """The improvement of a run, on the scale of claims; None where it has no interval."""
    limits, point = improvement_limits(cell), improvement_point(cell)
    if limits is None or point is None:
        return None
    if not _is_perplexity(cell.metric):
        return ClaimEffect(point, limits.low, limits.high)
    before = cell.baseline_score
    if before is None or before <= 0 or limits.high >= before:
        return None
    # an improvement is a fall, by so much of the baseline's perplexity
    return ClaimEffect(*(-math.log1p(-fall / before) for fall in (point, limits.low, limits.high)))


def in_units_of(metric: str, effect: float) -> str:
    """An effect in words: points of a score, or the factor of a perplexity."""
    return f"perplexity x {math.exp(-effect):.4g}" if _is_perplexity(metric) else f"{effect:+.4f}"


def _is_perplexity(metric: str) -> bool:
    return metrics.named(metric).kind is metrics.Kind.PERPLEXITY
