"""The decision: rows, one for each task or suite and baseline, and the word for each.

PASS: the drop's one-sided upper limit lies below the margin, and few documents can have collapsed. FAIL: the drop is
significant and larger than the margin, the candidate collapsed, a floor is broken, or something required is missing.
WARN: the drop is significant, and the margin lies between it and its limit; never of a critical row. UNDECIDED: none of
these, so more documents are needed.
INCOMPARABLE: the two runs were not asked the same. Notable choices:
- Significance after Holm over all rows of the gate, of both baselines and of the suites: a gate stops on any of them. A
  pass needs no correction, since all must pass.
- The gate's word is that of its worst row, in the order FAIL, INCOMPARABLE, UNDECIDED, WARN, PASS.
- A policy may name one margin for the weighted mean of its tasks (`overall`). Then a task in that mean that is not
  critical only informs: the gate can pass while it is undecided. Fifty tasks that are each to pass need three times the
  documents of one, and their mean far fewer. But it still fails the gate by a drop that is significant after Holm and
  larger than its margin, by a broken floor, or by being required and missing. The mean itself never says WARN, and
  neither does what is critical: what decides must show that it is within the margin. WARN lets a loss through that is
  sure and seems small, where one that is less sure is UNDECIDED and stops: so only what may lose a little says it.
- A run whose weights are the baseline's to the last bit, and its score too, passes, however few its documents: it is
  the same model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from leaderboard import statistics as stats
from leaderboard.compare import needs
from leaderboard.compare.choice_shift import Choices
from leaderboard.compare.clipping import Clipping
from leaderboard.compare.needs import Needs

Verdict = Literal["PASS", "WARN", "UNDECIDED", "INCOMPARABLE", "FAIL"]
BY_WEIGHT: tuple[Verdict, ...] = ("PASS", "WARN", "UNDECIDED", "INCOMPARABLE", "FAIL")
EXIT_CODES: dict[Verdict, int] = {"PASS": 0, "WARN": 0, "FAIL": 1, "INCOMPARABLE": 2, "UNDECIDED": 3}


@dataclass(frozen=True)
class GateRow:
    """A task, a suite, or the policy's overall mean against one baseline.

    `drop` is how much worse the candidate is, in the metric's own units, `drop_low` and `drop_high` its one-sided
    limits; `p_worse` is before, `p_holm` after correction. `baseline` is the id of the run compared with, since two may
    be in one role. `decided` is set where a word holds without statistics (a floor, something missing, incomparable
    runs); `identical` where both runs are one. `clipping` is as that of a `Cell`.
    `unpaired`: the drop and its limits are of the two scores by themselves. `documents_needed` is of an undecided row,
    for what its reason says. `decides` is False for a row that the overall mean speaks for: then it counts only where
    it is no mere UNDECIDED. `needs`: what the number of documents was worked out from.
    `collapse`: what shows that the candidate collapsed, as that of a `Cell`.
    """

    role: str
    name: str
    baseline: str = ""
    kind: Literal["task", "suite", "overall"] = "task"
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
    clipping: Clipping | None = None
    unpaired: bool = False
    decides: bool = True
    needs: Needs | None = None
    collapse: tuple[str, ...] | None = None

    @property
    def change(self) -> float | None:
        """The improvement as tables show it: above 0 is better, below 0 worse."""
        return None if self.drop is None else 0.0 - self.drop

    @property
    def change_at_worst(self) -> float | None:
        """Its one-sided lower limit."""
        return None if self.drop_high is None else 0.0 - self.drop_high

    @property
    def is_beyond_margin(self) -> bool:
        """Whether the drop is larger than the margin. 6 of 300 documents are 0.02, however the means are rounded."""
        if self.drop is None or self.margin is None:
            return False
        return self.drop > self.margin and not math.isclose(self.drop, self.margin)

    @property
    def only_unsure(self) -> bool:
        """Whether it is undecided, and that does not matter."""
        return self.verdict == "UNDECIDED" and not self.decides

    @property
    def got_worse(self) -> bool:
        """Whether it is worth asking what changed."""
        return self.verdict in ("FAIL", "WARN") and self.drop is not None and (self.drop > 0 or bool(self.collapse))


def decide(rows: Sequence[GateRow], alpha: float) -> list[GateRow]:
    """Correct over all rows that have a test, and put each into a word with its reasons."""
    tested = [i for i, row in enumerate(rows) if row.p_worse is not None]
    adjusted = stats.holm(np.array([rows[i].p_worse for i in tested], dtype=float))
    corrected = dict(zip(tested, map(float, adjusted)))
    return _with_needs([_worded(replace(row, p_holm=corrected.get(i)), alpha) for i, row in enumerate(rows)], alpha)


def overall(rows: Iterable[GateRow]) -> Verdict:
    """The worst word among the rows; that a row is undecided does not count where it only informs."""
    return max(("PASS" if row.only_unsure else row.verdict for row in rows), key=BY_WEIGHT.index)


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
    doubt = row.clipping.doubt(row.documents, row.margin) if row.clipping else None
    if row.drop_high < row.margin and not doubt:
        return "PASS", "worse, but by less than the margin" if harmful else None
    if harmful and row.is_beyond_margin:
        return "FAIL", "worse by more than the margin"
    if harmful and row.kind != "overall" and not row.critical:
        return "WARN", "worse; by less than the margin as far as is seen, but it may be more"
    if doubt and row.drop_high < row.margin:
        return "UNDECIDED", doubt
    must = harmful and row.critical
    return "UNDECIDED", "worse; critical, so that it has to be shown to be by less than the margin" if must else None


def _with_needs(rows: list[GateRow], alpha: float) -> list[GateRow]:
    """What the undecided rows still need.

    A gate passes where all its rows do: so that it does in four of five cases, each of `u` undecided ones has to with a
    chance of `.8^(1/u)`. A row that only informs speaks for itself. Harm is tested at the level of Holm's next step.
    """
    open_rows = [row for row in rows if row.decides and _open(row)]
    left = sum(row.p_holm is not None and row.p_holm > alpha for row in rows)
    tested = sum(row.p_worse is not None for row in rows)
    return [
        _with_detectable(
            _lacking(row, alpha, len(open_rows) if row.decides else 1, alpha / max(left, 1)), alpha / tested
        )
        if row.p_worse is not None
        else row
        for row in rows
    ]


def _open(row: GateRow) -> bool:
    """Whether more documents would decide it."""
    tested = row.p_worse is not None and row.drop_high is not None and row.margin is not None
    return tested and row.verdict == "UNDECIDED" and row.decided is None


def _with_detectable(row: GateRow, level: float) -> GateRow:
    if row.needs is None or row.documents is None:
        return row
    return replace(row, detectable=needs.detectable(row.needs, row.documents, level))


def _lacking(row: GateRow, alpha: float, rows: int, harm_level: float) -> GateRow:
    """The row with the number of documents that it needs, and the sentence; others as they are."""
    if not _open(row) or row.drop is None or row.margin is None:
        return row
    harmful = row.is_beyond_margin
    documents = _documents(row, harmful, harm_level if harmful else alpha, rows)
    more = documents is not None and row.documents is not None and documents > row.documents
    if row.unpaired:
        said = "the two scores alone cannot tell: samples of both runs (--log_samples) tell more"
    elif row.drop_high is not None and row.drop_high < row.margin:
        return replace(row, documents_needed=documents)  # and the reason is there: documents got far worse
    elif harmful:
        size = f"needs about {documents:,} documents to tell, has {row.documents:,}" if more else "more would tell"
        said = f"looks worse by more than the margin, but chance is not excluded: {size}"
    elif documents is None or row.documents is None:
        said = "cannot exclude a drop as large as the margin"
    elif more:
        together = f" for all {rows} undecided rows to pass" if rows > 1 else ""
        over = " over its tasks" if row.kind != "task" else ""
        said = (
            f"cannot exclude a drop as large as the margin: needs about {documents:,} documents{over}{together}, has"
            f" {row.documents:,}"
        )
    else:
        said = (
            f"cannot exclude a drop as large as the margin, close to it: somewhat more than its {row.documents:,}"
            " documents are needed"
        )
    return replace(row, documents_needed=documents, reasons=(*_too_few(row, alpha), said, *row.reasons))


def _too_few(row: GateRow, alpha: float) -> tuple[str, ...]:
    """The sentence about documents of which no result, however good or bad, would decide; or nothing."""
    few = needs.too_few(row.needs, row.documents, alpha) if row.needs and row.documents else None
    if few is None or few.least is None:
        return ()
    count = f"{row.documents:,} {'document' if row.documents == 1 else 'documents'}"
    return (f"too few documents: whatever they answer, no test of {count} reaches {100 * alpha:g} %",)


def _documents(row: GateRow, harmful: bool, level: float, rows: int) -> int | None:
    """Documents after which harm shows, or else all `rows` pass: if nothing changed, or, where those are there already,
    if the drop is the one seen.
    """
    if row.needs is None:
        return None
    if harmful:
        return stats.documents_for(row.needs.difference, level)
    share = stats.POWER ** (1 / rows)
    unchanged = stats.documents_for(row.needs.within[:1], level, share)
    as_seen = stats.documents_for(row.needs.as_seen[:1], level, share)
    excluded = row.p_holm is not None and row.p_holm <= level  # that nothing changed
    there = unchanged is not None and row.documents is not None and unchanged <= row.documents
    documents = as_seen if excluded else as_seen or unchanged if there else unchanged
    enough = row.needs.enough
    return None if documents is None or enough is None else max(documents, enough)
