"""The decision: rows, one for each task or suite and baseline, and the word for each.

PASS: the drop's one-sided upper limit lies below the margin, and few documents can have collapsed. FAIL: the drop is
significant and larger than the margin, or a floor is broken, or something required is missing. WARN: the drop is
significant, and the margin lies between it and its limit. UNDECIDED: none of these, so more documents are needed.
INCOMPARABLE: the two runs were not asked the same. Notable choices:
- Significance after Holm over all rows of the gate, of both baselines and of the suites: a gate stops on any of them. A
  pass needs no correction, since all must pass.
- The gate's word is that of its worst row, in the order FAIL, INCOMPARABLE, UNDECIDED, WARN, PASS.
- A run that came out as the baseline to the last bit passes, however few its documents: it is the same model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from leaderboard import statistics as stats
from leaderboard.compare.choice_shift import Choices
from leaderboard.compare.collapses import withheld

Verdict = Literal["PASS", "WARN", "UNDECIDED", "INCOMPARABLE", "FAIL"]
BY_WEIGHT: tuple[Verdict, ...] = ("PASS", "WARN", "UNDECIDED", "INCOMPARABLE", "FAIL")
EXIT_CODES: dict[Verdict, int] = {"PASS": 0, "WARN": 0, "FAIL": 1, "INCOMPARABLE": 2, "UNDECIDED": 3}


@dataclass(frozen=True)
class GateRow:
    """A task or a suite against one baseline.

    `drop` is how much worse the candidate is, in the metric's own units, `drop_low` and `drop_high` its one-sided
    limits; `p_worse` is before, `p_holm` after correction. `baseline` is the id of the run compared with, since two may
    be in one role. `decided` is set where a word holds without statistics (a floor, something missing, incomparable
    runs); `identical` where both runs are one. `clipped_at` and the next three are as those of a `Cell`.
    `unpaired`: the drop and its limits are of the two scores by themselves.
    """

    role: str
    name: str
    baseline: str = ""
    kind: Literal["task", "suite"] = "task"
    metric: str = ""
    documents: int | None = None
    baseline_score: float | None = None
    score: float | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    margin: float | None = None
    critical: bool = False
    p_worse: float | None = None
    p_holm: float | None = None
    standard_error: float | None = None
    degrees: float | None = None
    unit: bool = False
    lost: int | None = None
    gained: int | None = None
    flip_rate: float | None = None
    noise_floor: float | None = None
    detectable: float | None = None
    documents_needed: int | None = None
    choices: Choices | None = None
    identical: bool = False
    decided: Verdict | None = None
    verdict: Verdict = "UNDECIDED"
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    clipped_at: float | None = None
    far_lost: int | None = None
    far_gained: int | None = None
    far_lost_limit: float | None = None
    unpaired: bool = False

    @property
    def got_worse(self) -> bool:
        """Whether it is worth asking what changed."""
        return self.verdict in ("FAIL", "WARN") and self.drop is not None and self.drop > 0


def decide(rows: Sequence[GateRow], alpha: float) -> list[GateRow]:
    """Correct over all rows that have a test, and put each into a word with its reasons."""
    tested = [i for i, row in enumerate(rows) if row.p_worse is not None]
    adjusted = stats.holm(np.array([rows[i].p_worse for i in tested], dtype=float))
    corrected = dict(zip(tested, map(float, adjusted)))
    return [_worded(replace(row, p_holm=corrected.get(i)), alpha) for i, row in enumerate(rows)]


def overall(rows: Iterable[GateRow]) -> Verdict:
    """The worst word among the rows."""
    return max((row.verdict for row in rows), key=BY_WEIGHT.index)


def _worded(row: GateRow, alpha: float) -> GateRow:
    if row.decided is not None:
        return replace(row, verdict=row.decided)
    verdict, reason = _by_statistics(row, alpha)
    return replace(row, verdict=verdict, reasons=(*filter(None, [reason]), *row.reasons))


def _by_statistics(row: GateRow, alpha: float) -> tuple[Verdict, str | None]:
    if row.identical:
        return "PASS", None
    if row.drop is None or row.drop_high is None or row.margin is None or row.p_holm is None:
        return "UNDECIDED", None if row.notes or row.reasons else "there is no test for this metric"
    harmful = row.p_holm <= alpha
    doubt = withheld(row.far_lost, row.far_lost_limit, row.documents)
    if row.drop_high < row.margin and not doubt:
        return "PASS", "worse, but by less than the margin" if harmful else None
    if harmful and row.drop > row.margin:
        return "FAIL", "worse by more than the margin"
    if harmful:
        return "WARN", "worse; by less than the margin as far as is seen, but it may be more"
    return "UNDECIDED", doubt if doubt and row.drop_high < row.margin else _lacking(row)


def _lacking(row: GateRow) -> str:
    assert row.drop is not None and row.margin is not None
    if row.unpaired:
        return "the two scores alone cannot tell: samples of both runs (--log_samples) tell more"
    if row.drop > row.margin:
        return "looks worse by more than the margin, but chance is not excluded: more documents would tell"
    if row.documents_needed is None or row.documents is None:
        return "cannot exclude a drop as large as the margin"
    if row.documents_needed <= row.documents:
        return (
            f"cannot exclude a drop as large as the margin, close to it: somewhat more than its {row.documents:,}"
            " documents are needed"
        )
    return (
        f"cannot exclude a drop as large as the margin: needs about {row.documents_needed:,} documents, has"
        f" {row.documents:,}"
    )
