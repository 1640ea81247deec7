"""Claims in words: what a paper reports, what was measured, and whether the one bears the other out."""

from __future__ import annotations

from collections.abc import Sequence

from leaderboard.board.cell import Cell
from leaderboard.board.claims import command_for
from leaderboard.board.reported import SURE, Reported
from leaderboard.report.claim_verdict import (
    SLACK,
    ClaimState,
    claimed_effect,
    in_units_of,
    measured_effect,
    state_of,
)


def judged_claim(entry: Reported, cell: Cell, slack: float = SLACK) -> ClaimState:
    """The state of a claim by one run of its model, task, metric and recipe."""
    effect = measured_effect(cell)
    if effect is None:
        return ClaimState("undecided", f"the run has no interval: {cell.notes[0] if cell.notes else cell.verdict}")
    return state_of(claimed_effect(entry), effect, cell.beats_controls, slack)


def verdict_sentence(entry: Reported, cell: Cell, *, is_the_claim: bool = True, slack: float = SLACK) -> str:
    """`reported +0.8375; measured +0.8 [+0.7, +0.9]; its random-subspace: +0.01; the claim is supported: ...`.

    is_the_claim: whether model and documents are the claim's; a smaller form settles nothing.
    """
    effect = measured_effect(cell)
    parts = [f"reported {in_units_of(entry.metric, claimed_effect(entry))}"]
    if effect is None:
        parts.append(f"measured: no interval ({cell.notes[0] if cell.notes else cell.verdict})")
    else:
        low, high = sorted((effect.low, effect.high), reverse=in_units_of(entry.metric, 0.0).startswith("perplexity"))
        point, ends = in_units_of(entry.metric, effect.point), [in_units_of(entry.metric, end) for end in (low, high)]
        parts.append(f"measured {point} [{', '.join(end.removeprefix('perplexity x ') for end in ends)}]")
    parts += [_of_control(entry, pair) for pair in cell.against_controls] or ["no control was run"]
    state = judged_claim(entry, cell, slack)
    if is_the_claim:
        parts.append(f"the claim is {state.word}: {state.why}")
    else:
        parts.append("another model than the claim's, so the claim is as open as before")
    return "; ".join(parts)


def _of_control(entry: Reported, pair: Cell) -> str:
    effect = measured_effect(pair)
    ahead = "no interval" if effect is None else in_units_of(entry.metric, effect.point)
    return f"ahead of its {pair.control} by {ahead} ({pair.verdict})"


def _run_line(entry: Reported, command: str | None) -> str:
    if not entry.asked:
        return f"no task here asks what {entry.task} does"
    known = command_for(entry)
    return (known and command) or known or "no recipe here stands for this method"


def claim_lines(rows: Sequence[Reported], command: str | None = None) -> list[str]:
    """Everything about one claim: its rows are one a metric. command: what runs it, if not the plain command."""
    first = rows[0]
    facts = [
        ("claim", first.identity),
        ("paper", f"{first.paper} ({first.source})"),
        ("where", first.where or "not stated"),
        ("how sure", SURE[first.sure]),
        ("model", " or ".join(first.hub_names) or first.model),
        ("task", first.task),
        ("method", first.method),
        *((f"{row.metric}", f"{row.before:.4g} -> {row.after:.4g}") for row in rows),
        ("kept", "" if first.kept is None else f"{first.kept:.0%} of the parameters"),
        ("setting", first.setting),
        ("run", _run_line(first, command)),
    ]
    return [f"{name:10}{text}" for name, text in facts if text]
