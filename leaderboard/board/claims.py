"""Claims: what papers report, beside what was measured here of the same model, task, recipe and metric.

Notable choices: a run is beside a claim whatever its settings, since papers and recipes name them differently; so both
settings are said, and nothing is subtracted from each other. A number of a paper is part of no verdict.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from leaderboard.board.cell import COMPARED, Cell
from leaderboard.board.reported import Reported, published
from leaderboard.readers.records import BASELINE


class Claim(NamedTuple):
    """A reported pair of scores, and the run of ours beside it; None where nobody has run it."""

    reported: Reported
    cell: Cell | None

    @property
    def improvement(self) -> float:
        """The reported one: positive where it is good."""
        change = self.reported.after - self.reported.before
        return change if self.reported.higher_is_better else -change

    @property
    def agrees(self) -> bool | None:
        """Whether the verdict here is of the reported direction; None without a verdict, or where none was reported."""
        if self.cell is None or self.cell.verdict not in COMPARED or not self.improvement:
            return None
        return self.cell.verdict == ("better" if self.improvement > 0 else "worse")


def claims(cells: Iterable[Cell], entries: Sequence[Reported] | None = None) -> list[Claim]:
    """Every reported pair in the order of the papers: a claim a run of ours that is beside it, or one without a run.
    cells: of any models, baselines and controls among them.
    """
    beside: dict[Reported, list[Cell]] = {}
    for cell in cells:
        for one in (cell, *cell.further):
            if one.verdict == BASELINE or one.control is not None:
                continue
            for entry in _of(one, published() if entries is None else entries):
                beside.setdefault(entry, []).append(one)
    return [
        Claim(entry, cell)
        for entry in (published() if entries is None else entries)
        for cell in beside.get(entry) or [None]  # type: ignore[list-item]
    ]


def _of(cell: Cell, entries: Sequence[Reported]) -> list[Reported]:
    recipe = cell.recipe.partition(":")[0]
    return [
        entry
        for entry in entries
        if entry.task == cell.task
        and entry.metric == cell.metric
        and recipe in entry.recipes
        and is_of_model(entry, cell.model)
    ]


def is_of_model(entry: Reported, model: str) -> bool:
    """Whether a model of ours (a hub name, or a folder of that name, as the board shows it) is the claim's."""
    own = _last_part(model.partition(" (")[0].lower())
    return any(own == _last_part(alias) for alias in entry.models)


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def command_for(entry: Reported) -> str | None:
    """The command that would measure a claim, with the recipe as it is shipped; None where no recipe of ours stands for
    the method.
    """
    if not entry.recipes or not entry.hub_names:
        return None
    words = [
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={entry.hub_names[0]}",
        "--tasks",
        entry.task,
    ]
    return shlex.join([*words, "--recipe", entry.recipes[0], "--control", "random-subspace"])
