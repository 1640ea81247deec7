"""Is a reported number true? The rules, of an interval measured here and of the control.

An improvement is positive where it is good. Scores are compared as they are; perplexities by their logarithms, so that
a share of a claim means a share of the factor's exponent. `[low, high]` is the 95 % interval of the improvement that
was measured, `reported` the paper's, `slack` the share of it that two measurements may differ by (a quarter).

- **supported**: `reported - measured` lies within the slack with its whole interval, and the edit is better than its
  control at the same budget.
- **contradicted**: it is shown to be worse than reported by more than the slack; and, of a gain, no gain is shown. Of a
  cost, also where it is shown to be smaller by more than the slack, and none is shown.
- **partly**: of a gain, a gain is shown, but smaller or larger than reported, of undecided size, or one that the
  control has too; of a cost, it is shown to be as reported or smaller, but not to be better than the control's or not
  within the slack.
- **undecided**: all else: too few documents.
- **incomparable**: the run is of other settings or of a part of the documents (all but those that the recipe learned
  from are no such part), or the unedited model does not score as reported: by more than the slack or the board's
  margin, and beyond the interval of its own score; a perplexity, by more than 5 % however large the effect.

Where the unedited model's score differs by less than that, and yet by more than sampling and rounding explain, the word
stands with both scores beside it.

A row of the unedited model claims a level: supported where the interval of the score lies within the margin of it (a
perplexity: within 1 %), contradicted where the score differs by more and the interval excludes it.

Of a claim that nothing changes, the margin of the board stands in place of the slack, which is no less than the
rounding of the printed scores. Where the board counts a document for a bound at most, a claim is about the plain mean,
every document counted whole, with its t interval: papers know no bound. By the interval's level, an edit
whose effect differs by the slack or more is called supported in at most one case of forty, and one whose effect is the
reported one contradicted in at most one of forty.
"""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

from leaderboard import metrics
from leaderboard.board.cell import Cell
from leaderboard.board.claims import is_as_asked, of_unedited, recipe_for
from leaderboard.board.reported import Reported, as_printed
from leaderboard.board.retained_quality import how_asked_differs
from leaderboard.report.words import ImprovementLimits, improvement_limits, improvement_point
from leaderboard.statistics import wilson

ClaimWord = Literal["supported", "partly", "contradicted", "undecided", "incomparable"]
CLAIM_WORDS: tuple[ClaimWord, ...] = ("supported", "partly", "contradicted", "undecided", "incomparable")
_OF_THE_ARENA = "lowrankarena"
SLACK = 0.25
"""The share of a reported change by which two measurements of it may differ."""
UNCHANGED = 0.02
"""What counts as no change, where none is reported."""
FARTHEST = 0.05
"""By how much the logarithm of an unedited model's perplexity may differ from the reported one's."""
AS_REPORTED = 0.01
"""The same where the level itself is the claim."""
TWINS = 0.01
"""Which share of the documents may be out of the score because they ask what documents ask that were learned from."""
_SO_MANY_OF = re.compile(r"([\d,]+) of ([\d,]+) documents")


class ClaimState(NamedTuple):
    """What became of a claim, and why."""

    word: ClaimWord
    why: str


class ClaimEffect(NamedTuple):
    """An improvement with its 95 % interval, on the scale on which claims are compared."""

    point: float
    low: float
    high: float


def state_of(
    reported: float,
    measured: ClaimEffect,
    beats_control: bool | None,
    slack: float = SLACK,
    rounding: float = 0.0,
) -> ClaimState:
    """The state of a claim by the rules above. reported: the improvement that is claimed; beats_control: None where no
    control was run. rounding: by how much the reported improvement may be off. Raises ValueError for an interval that
    does not hold its point, or a slack outside (0, 1).
    """
    if not measured.low <= measured.point <= measured.high or not 0 < slack < 1:
        raise ValueError(f"no interval around a point, or no share: {measured}, {slack}")
    allowed = max(slack * abs(reported), rounding) if reported else max(UNCHANGED, rounding)
    worse, better = measured.high < reported - allowed, measured.low > reported + allowed
    within = measured.low >= reported - allowed and measured.high <= reported + allowed
    if within and beats_control:
        return ClaimState("supported", "as large as reported, and better than its control")
    control = {None: "no control was run", False: "its control is not shown to do worse", True: ""}[beats_control]
    if reported > 0:
        return _of_a_gain(measured, worse, better, within, control)
    if worse:
        return ClaimState("contradicted", "shown to be worse than reported")
    if reported < 0 and better and measured.high >= 0:
        return ClaimState("contradicted", "no loss is shown, and one as large as reported is excluded")
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


def why_incomparable(entry: Reported, cell: Cell, slack: float = SLACK) -> str | None:
    """Why a run of a claim's model, task, metric and method says nothing of the claim; None where it does."""
    if not is_as_asked(entry, cell):
        return f"run as {cell.recipe}, where {recipe_for(entry)} stands for the claim"
    if cell.subset is not None and not is_all_but_learned(cell):
        return f"only {cell.scored} were asked"
    if (how := _how_asked_differs(entry, cell)) is not None:
        return how
    before = cell.baseline_score
    if of_unedited(entry) or before is None:
        return None
    allowed = max(slack * abs(claimed_effect(entry)), UNCHANGED)
    # That of a method which breaks the model would let any model pass.
    allowed = min(allowed, FARTHEST) if _is_perplexity(entry.metric) else allowed
    if abs(_between(entry.metric, entry.before, before)) <= allowed:
        return None
    limits = _limits_of_score(entry, before, cell.n)
    if limits is not None and limits.low <= entry.before <= limits.high:
        return None
    return _both_unedited(entry, before)


def _how_asked_differs(entry: Reported, cell: Cell) -> str | None:
    """What the prompts have that no paper's do; of the benchmark's rows also how many examples."""
    if entry.identity.startswith(_OF_THE_ARENA):
        return how_asked_differs(cell)
    return None if cell.rephrased is None else f"run with a {cell.rephrased}"


def how_unedited_differs(entry: Reported, cell: Cell) -> str | None:
    """The unedited model's two scores, where neither sampling nor rounding explains that they differ; else None. A
    score without an interval may differ by what counts as no change.
    """
    before = cell.baseline_score
    if of_unedited(entry) or before is None:
        return None
    limits = _limits_of_score(entry, before, cell.n) or _Limits(before - UNCHANGED, before + UNCHANGED)
    printed = _unit_of(entry) / 2
    if limits.low - printed <= entry.before <= limits.high + printed:
        return None
    return _both_unedited(entry, before)


def _both_unedited(entry: Reported, before: float) -> str:
    return f"the unedited model has {digits(before)} here and {as_printed(entry.before)} there"


def is_all_but_learned(cell: Cell) -> bool:
    """Whether all documents were scored but those of the scored split that the recipe learned from, as a paper does
    that chooses on one part and reports the other.
    """
    counts = _SO_MANY_OF.fullmatch(cell.subset or "")
    if not cell.learned or counts is None:
        return False
    scored, documents = (int(count.replace(",", "")) for count in counts.groups())
    return cell.learned <= documents - scored <= cell.learned + TWINS * documents


def state_of_level(entry: Reported, cell: Cell) -> ClaimState:
    """Whether the unedited model scores as reported, by the rules above."""
    score = cell.score
    limits = None if score is None else _limits_of_score(entry, score, cell.n)
    if score is None or limits is None:
        return ClaimState("undecided", "its score has no interval")
    allowed = AS_REPORTED if _is_perplexity(entry.metric) else UNCHANGED
    off = [abs(_between(entry.metric, entry.after, end)) for end in (limits.low, limits.high)]
    if max(off) <= allowed:
        return ClaimState("supported", "the unedited model scores as reported")
    if abs(_between(entry.metric, entry.after, score)) > allowed and not limits.low <= entry.after <= limits.high:
        return ClaimState("contradicted", "the unedited model does not score as reported")
    return ClaimState("undecided", "too few documents to tell")


class _Limits(NamedTuple):
    low: float
    high: float


def _limits_of_score(entry: Reported, score: float, count: int | None) -> _Limits | None:
    """95 % limits of one score: of a share of documents; a perplexity of a fixed text has none but itself."""
    if _is_perplexity(entry.metric):
        return _Limits(score, score)
    if count and 0 <= score <= 1 and 0 <= entry.before <= 1 and metrics.named(entry.metric).range.is_unit:
        low, high = wilson([score * count], [count])
        return _Limits(float(low[0]), float(high[0]))
    return None


def _between(metric: str, before: float, after: float) -> float:
    return math.log(after / before) if _is_perplexity(metric) else after - before


def claimed_effect(entry: Reported) -> float:
    """The improvement that is reported, on the scale of claims."""
    if _is_perplexity(entry.metric):
        return math.log(entry.before / entry.after)
    return (entry.after - entry.before) * (1 if entry.higher_is_better else -1)


def effect_between(cell: Cell, before: float | None, after: float | None) -> float | None:
    """The improvement from one score of a cell's metric to another, on the scale of claims; None where one lacks."""
    if before is None or after is None or (_is_perplexity(cell.metric) and min(before, after) <= 0):
        return None
    change = _between(cell.metric, before, after)
    return change if cell.higher_is_better else -change


def measured_effect(cell: Cell) -> ClaimEffect | None:
    """The improvement of a run, on the scale of claims; None where it has no interval."""
    limits, point = improvement_limits(cell), improvement_point(cell)
    if limits is None or point is None:
        return None
    if (clipped := cell.clipping) is not None:
        if clipped.plain_low is None or clipped.plain_high is None:
            return None
        point, limits = clipped.plain_improvement, ImprovementLimits(clipped.plain_low, clipped.plain_high)
    if not _is_perplexity(cell.metric):
        return ClaimEffect(point, limits.low, limits.high)
    before = cell.baseline_score
    if before is None or before <= 0 or limits.high >= before:
        return None
    # an improvement is a fall, by so much of the baseline's perplexity
    return ClaimEffect(*(-math.log1p(-fall / before) for fall in (point, limits.low, limits.high)))


def rounding_of(entry: Reported) -> float:
    """By how much a claimed improvement may be off because both of its scores are printed to so many places."""
    unit = _unit_of(entry)
    return unit / 2 * (1 / entry.before + 1 / entry.after) if _is_perplexity(entry.metric) else unit


def _unit_of(entry: Reported) -> float:
    """One in the last place to which a row's scores are printed."""
    return 10.0 ** -max(_places(entry.before), _places(entry.after))


def _places(score: float) -> int:
    return len(as_printed(score).partition(".")[2])


def digits(score: float) -> str:
    """A measured score to four digits, or to a whole number, without an exponent."""
    return f"{score:.0f}" if abs(score) >= 1000 else as_printed(float(f"{score:.4g}"))


def in_units_of(metric: str, effect: float) -> str:
    """An effect in words: points of a score, or the factor of a perplexity."""
    return f"perplexity x {digits(math.exp(-effect))}" if _is_perplexity(metric) else f"{effect:+.4f}"


def _is_perplexity(metric: str) -> bool:
    return metrics.named(metric).kind is metrics.Kind.PERPLEXITY
