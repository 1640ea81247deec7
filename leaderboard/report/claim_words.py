"""Claims in words: what a paper reports, what was measured, and whether the one bears the other out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from leaderboard.board.cell import Cell
from leaderboard.board.claims import command_for, of_unedited, why_not_measured
from leaderboard.board.reported import SURE, Reported, as_printed
from leaderboard.report.claim_verdict import (
    SLACK,
    ClaimState,
    claimed_effect,
    digits,
    effect_between,
    how_unedited_differs,
    in_units_of,
    is_all_but_learned,
    measured_effect,
    rounding_of,
    state_of,
    state_of_level,
    why_incomparable,
)
from leaderboard.terminal.format import TOO_FEW, plain


def judged_claim(entry: Reported, cell: Cell, slack: float = SLACK) -> ClaimState:
    """The state of a claim by one run of its model, task, metric and recipe, with what a reader must know beside it."""
    if (why := why_incomparable(entry, cell, slack)) is not None:
        return ClaimState("incomparable", why)
    state = _state(entry, cell, slack)
    return ClaimState(state.word, "; ".join(_with_remarks(state.why, entry, cell)))


def _with_remarks(why: str, entry: Reported, cell: Cell) -> Iterator[str]:
    if differs := how_unedited_differs(entry, cell):
        yield differs
    yield why
    if entry.chosen_on:
        yield f"among the documents scored are those that the paper chose this setting on, {entry.chosen_on}"


def _state(entry: Reported, cell: Cell, slack: float) -> ClaimState:
    if of_unedited(entry):
        return state_of_level(entry, cell)
    effect = measured_effect(cell)
    if effect is None:
        return ClaimState("undecided", f"the run has no interval: {_why_none(cell)}")
    return state_of(claimed_effect(entry), effect, cell.beats_controls, slack, rounding_of(entry))


def verdict_sentence(entry: Reported, cell: Cell, *, is_the_claim: bool = True, slack: float = SLACK) -> str:
    """`eigenprune-released on 80 documents: reported 0.1375 -> 0.9750, +0.8375; measured 0.1400 -> 0.9500, +0.8100
    [+0.7000, +0.8900]; its random-subspace: +0.0100, and the edit against it +0.8000 (better); the claim is
    supported: ...`.

    is_the_claim: whether model and documents are the claim's; a smaller form settles nothing.
    """
    is_mean = bool(entry.members) and cell.task == entry.task
    scored = f" on {len(entry.members)} tasks" if is_mean else f" on {cell.scored}" if cell.scored else ""
    if is_all_but_learned(cell):
        scored += ", without those that it learned from or was chosen on"
    if of_unedited(entry):
        parts = [f"{cell.name}{scored}: reported {as_printed(entry.after)}; measured {_score(cell.score)}"]
    else:
        reported = in_units_of(entry.metric, claimed_effect(entry))
        parts = [
            f"{cell.name}{scored}: reported {entry.change()}, {reported}",
            f"measured {_score(cell.baseline_score)} -> {_score(cell.score)}, {_measured(entry.metric, cell)}",
            *([_of_control(entry, cell, pair) for pair in cell.against_controls] or ["no control was run"]),
        ]
    state = judged_claim(entry, cell, slack)
    if is_the_claim:
        parts.append(f"the claim is {state.word}: {state.why}")
    else:
        parts.append(as_open_as_before(entry, cell))
    return "; ".join(parts)


def as_open_as_before(entry: Reported, cell: Cell) -> str:
    """What a smaller form settles: nothing. Its model is another, and its task may be."""
    if cell.task == entry.task:
        return "this is not the claim's model, so the claim is as open as before"
    return (
        f"this is neither the claim's model nor its task ({plain(cell.task)} for {entry.task}), so the claim is as open"
        " as before"
    )


def _score(score: float | None) -> str:
    return "nothing" if score is None else digits(score)


def _why_none(cell: Cell) -> str:
    """Why a cell has no interval."""
    if cell.says_nothing:
        return TOO_FEW
    return cell.notes[0] if cell.notes else cell.verdict


def _measured(metric: str, cell: Cell) -> str:
    effect = measured_effect(cell)
    if effect is None:
        return f"no interval ({_why_none(cell)})"
    low, high = sorted((effect.low, effect.high), reverse=in_units_of(metric, 0.0).startswith("perplexity"))
    point, ends = in_units_of(metric, effect.point), [in_units_of(metric, end) for end in (low, high)]
    return f"{point} [{', '.join(end.removeprefix('perplexity x ') for end in ends)}]"


def _of_control(entry: Reported, cell: Cell, pair: Cell) -> str:
    """A control by itself and the edit against it, both of plain scores; the word is of the board's comparison."""
    alone, against = (
        None if effect is None else in_units_of(entry.metric, effect)
        for effect in (
            effect_between(cell, cell.baseline_score, pair.baseline_score),
            effect_between(cell, pair.baseline_score, pair.score),
        )
    )
    return (
        f"its {pair.control}: {alone or 'no score'}, and the edit against it {against or 'no score'} ({pair.verdict})"
    )


def _run_line(entry: Reported, command: str | None) -> str:
    return why_not_measured(entry) or command or str(command_for(entry))


def _weighing(entry: Reported) -> str:
    return ", each document counted once" if entry.pooled else ""


def claim_lines(
    rows: Sequence[Reported], command: str | None = None, of_recipe: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Everything about one claim: its rows are one a metric. command: what runs it, if not the plain command.
    of_recipe: facts of the recipe that is run, each with its name.
    """
    first = rows[0]
    facts = [
        ("claim", first.identity),
        ("paper", f"{first.paper} ({first.source})"),
        ("where", first.where or "not stated"),
        ("how sure", SURE[first.sure]),
        ("model", " or ".join(first.hub_names) or first.model),
        ("task", first.task),
        ("mean of", ", ".join(f"{task} ({metric})" for task, metric in first.members) + _weighing(first)),
        ("method", first.method),
        *((f"{row.metric}", row.change()) for row in rows),
        ("kept", "" if first.kept is None else f"{first.kept:.0%} of the parameters"),
        ("setting", first.setting),
        ("chosen on", f"{first.chosen_on}, which the run here scores too" if first.chosen_on else ""),
        *of_recipe,
        ("run", _run_line(first, command)),
    ]
    return [f"{name:9} {text}" for name, text in facts if text]
