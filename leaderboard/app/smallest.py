"""The decision that sizes and scores are for: the smallest recipe that makes no task worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from leaderboard.app.charts.size import SPEED, Measure
from leaderboard.app.page_queries import RunFacts
from leaderboard.board.cell import COMPARED
from leaderboard.board.standings import HARM, Standing, Standings
from leaderboard.terminal.format import counted, plain

_LESS, _MORE = 0.9995, 1.005
"""From where on a share, as it is written, is less or more than all."""


class Harmless(NamedTuple):
    """A recipe with no task worse, collapsed or failed. size: in the measure; share: of the unedited model's.
    undecided: the tasks of which that is not shown; missing: those that it was not compared on.
    """

    row: Standing
    size: float
    share: float
    undecided: tuple[str, ...]
    missing: tuple[str, ...]


def smallest(board: Standings, facts: Mapping[str, RunFacts], measure: Measure) -> list[Harmless]:
    """Those smaller than the unedited model, the smallest first; of tokens per second those that are faster, the
    fastest first.
    """
    found = [one for row in board.rows if row.is_recipe and (one := _harmless(row, board, facts, measure))]
    better = [one for one in found if (one.share > _MORE if measure == SPEED else one.share < _LESS)]
    return sorted(better, key=lambda one: (-one.share if measure == SPEED else one.share, one.row.name))


def _harmless(row: Standing, board: Standings, facts: Mapping[str, RunFacts], measure: Measure) -> Harmless | None:
    words = {task: row.cells[task].verdict if task in row.cells else "" for task in board.tasks}
    harmed = any(
        word in HARM or word == "failed" for word in (*words.values(), *(c.verdict for c in row.cells.values()))
    )
    run = facts.get(row.run_id)
    before, after = (getattr(run, f"{measure.field}_{when}", None) for when in ("before", "after"))
    if harmed or not any(word in COMPARED for word in words.values()) or not before or not after:
        return None
    return Harmless(
        row,
        after,
        after / before,
        tuple(task for task, word in words.items() if word == "undecided"),
        tuple(task for task, word in words.items() if word not in COMPARED),
    )


def caveat(one: Harmless, tasks: int) -> str:
    """What the decision rests on: `Undecided counts as not worse: on 2 of 5 tasks (int_mult, int_mult_clean).`"""
    said, of = [], f"of {counted(tasks, 'task', 'tasks')}"
    if one.undecided:
        said.append(f"Undecided counts as not worse: on {len(one.undecided)} {of} ({_listed(one.undecided)}).")
    if one.missing:
        said.append(f"Not compared on {len(one.missing)} {of} ({_listed(one.missing)}).")
    return " ".join(said) or "Same or better on every task."


def _listed(tasks: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(map(plain, tasks[:most]))
    return shown if len(tasks) <= most else f"{shown} and {len(tasks) - most} more"
