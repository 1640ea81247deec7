"""Claims: what papers report, beside what was measured here of the same model, task, recipe and metric.

Notable choices: a run is shown beside a claim whatever its settings, and says nothing of it unless it is of the recipe
that stands for the row (`incomparable`). A number of a paper is part of no verdict of the board.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from leaderboard.board.cell import COMPARED, Cell
from leaderboard.board.reported import Reported, published
from leaderboard.board.task_means import run_means
from leaderboard.errors import LeaderboardError
from leaderboard.readers.records import BASELINE

_DECIDED = [verdict for verdict in COMPARED if verdict != "undecided"]


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
        """Whether the verdict here is of the reported direction; None where none was reported, or none is decided."""
        if self.cell is None or self.cell.verdict not in _DECIDED or not self.improvement:
            return None
        return self.cell.verdict == ("better" if self.improvement > 0 else "worse")


def claims(cells: Iterable[Cell], entries: Sequence[Reported] | None = None) -> list[Claim]:
    """Every reported pair in the order of the papers: a claim a run of ours that is beside it, or one without a run.
    cells: of any models, baselines and controls among them.
    """
    cells, beside = list(cells), dict[Reported, list[Cell]]()
    means: dict[tuple[Any, ...], list[Cell]] = {}
    for entry in published() if entries is None else entries:
        if entry.members:
            which = entry.task, entry.metric, entry.members, entry.pooled
            found = means[which] if which in means else means.setdefault(which, list(run_means(cells, *which)))
            beside[entry] = [one for one in found if _is_beside(entry, one)]
    for cell in cells:
        for one in (cell, *cell.further):
            if one.control is not None:
                continue
            for entry in _of(one, published() if entries is None else entries):
                beside.setdefault(entry, []).append(one)
    return [
        Claim(entry, cell)
        for entry in (published() if entries is None else entries)
        for cell in beside.get(entry) or [None]  # type: ignore[list-item]
    ]


def _of(cell: Cell, entries: Sequence[Reported]) -> list[Reported]:
    return [
        entry
        for entry in entries
        if entry.task == cell.task and entry.metric == cell.metric and _is_beside(entry, cell)
    ]


def _is_beside(entry: Reported, cell: Cell) -> bool:
    """Whether a run is of a row's model and method."""
    return cell.recipe.partition(":")[0] in entry.recipes and is_of_model(entry, cell.model)


def is_of_model(entry: Reported, model: str) -> bool:
    """Whether a model of ours (a hub name, or a folder of that name, as the board shows it) is the claim's."""
    own = _last_part(model.partition(" (")[0].lower())
    return any(own == _last_part(alias) for alias in entry.models)


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def recipe_for(entry: Reported) -> str | None:
    """The recipe that computes a row, as `--recipe` reads it; None where no recipe of ours stands for the method, or no
    task for the row's.
    """
    return (entry.run or next(iter(entry.recipes), None)) if entry.asked else None


def why_not_measured(entry: Reported) -> str | None:
    """Why nothing here measures a row; None where something does."""
    if not entry.asked:
        return f"no task here asks what {entry.task} does"
    if recipe_for(entry) is None:
        return f"no recipe here stands for {entry.method}" + (f": {entry.lacking}" if entry.lacking else "")
    return None if entry.hub_names else f"no name of {entry.model} on the hub is known"


def of_unedited(entry: Reported) -> bool:
    """Whether the row is of the model as it is: a level, and no change."""
    return recipe_for(entry) == BASELINE


def is_as_asked(entry: Reported, cell: Cell) -> bool:
    """Whether a run is of the recipe that stands for a row, in whatever order and form its settings are written."""
    asked = recipe_for(entry)
    return asked is not None and _parts(asked) == _parts(cell.recipe)


def _parts(recipe: str) -> tuple[str, list[str]]:
    """The name, and every setting as `key=value`: `keep={rank: 3}` is `keep.rank=3`."""
    name, _, changes = recipe.partition(":")
    found = []
    for change in re.split(r",(?![^{\[]*[}\]])", changes):
        key, _, value = change.partition("=")
        inner = re.fullmatch(r"\{(.*)\}", value.strip())
        pairs = [part.partition(":") for part in inner[1].split(",")] if inner else []
        found += [f"{key}.{one.strip()}={other.strip()}" for one, _, other in pairs] or [change.strip()]
    return name, sorted(found)


def command_for(entry: Reported) -> str | None:
    """The command that would measure a claim; None where no recipe of ours stands for the method, or no task for the
    row's.
    """
    recipe = recipe_for(entry)
    if recipe is None or not entry.hub_names:
        return None
    words = ["lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={entry.hub_names[0]}"]
    control = [] if of_unedited(entry) else ["--control", "random-subspace"]
    return shlex.join([*words, "--tasks", *entry.tasks, "--recipe", recipe, *control])


def of_identity(name: str, entries: Sequence[Reported] | None = None) -> list[Reported]:
    """The pairs of one row, one a metric, by its identity or a beginning of it that only one row has. Raises
    LeaderboardError for a name of none, or of several, or an empty one.
    """
    if not name.strip():
        raise LeaderboardError("no claim is named: give PAPER/MODEL/TASK or its beginning; `lm_eval claims` lists them")
    known = published() if entries is None else entries
    rows = dict.fromkeys(entry.identity for entry in known)
    found = [name] if name in rows else [row for row in rows if row.startswith(name)]
    if len(found) == 1:
        return [entry for entry in known if entry.identity == found[0]]
    if not found:
        close = get_close_matches(name, rows, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; `lm_eval claims` lists them"
        raise LeaderboardError(f"no claim {name}{hint}")
    shown = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
    raise LeaderboardError(f"{name} begins {len(found)} claims: {shown}")
