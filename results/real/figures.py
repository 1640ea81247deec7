"""The figures of the real result: what each recipe changes, read from runs, and kept in `figures.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.real.asked import HERE, parted, recipes, written

if TYPE_CHECKING:
    from leaderboard.board.cell import Cell
    from leaderboard.store.queries import RunRow

FIGURES = HERE / "figures.json"
BASELINE = "baseline"


@dataclass(frozen=True)
class Outcome:
    """What one task says, in the board's words. unedited: the score of the unedited model on the same machine. low,
    high: 95 %, of the score minus that. beats: what the recipe is against its control. metric: the task's primary one.
    n: documents.
    """

    score: float
    unedited: float
    low: float | None
    high: float | None
    verdict: str
    beats: str | None
    metric: str
    higher_is_better: bool
    n: int | None

    @property
    def difference(self) -> float:
        return self.score - self.unedited


@dataclass(frozen=True)
class Figure:
    """One recipe at one budget, from one calibration seed; or its control.

    recipe_id: its fingerprint, None of the unedited model. kept: share of the parameters if stored as factors.
    seconds: to learn and to edit. outcomes: by task.
    """

    recipe: str
    seed: int
    control: bool
    recipe_id: str | None
    kept: float | None
    seconds: float
    outcomes: dict[str, Outcome]


def measured(runs: Path) -> list[Figure]:
    """The figures of the runs that are there, but for those of a recipe that has changed since, or by an earlier
    revision of a method. Raises LeaderboardError where there is none.
    """
    from leaderboard.board.board import board
    from leaderboard.store import queries
    from leaderboard.store.database import open_store

    with open_store(runs / "leaderboard.duckdb", read_only=True) as store:
        by_id = {run.run_id: run for run in queries.runs(store)}
        cells = [cell for cell in board(store) if cell.score is not None]
    of_run: dict[str, list[Cell]] = {}
    for cell in cells:
        of_run.setdefault(cell.run_id, []).append(cell)
    receipts = {run_id: json.loads(Path(by_id[run_id].path, "receipt.json").read_text("utf-8")) for run_id in of_run}
    asked = {receipt["recipe_id"] for receipt in receipts.values() if _is_as_today(receipt)}
    figures = (
        _figure(by_id[run_id], receipts[run_id], found)
        for run_id, found in of_run.items()
        if (receipts[run_id]["recipe"]["control_of"] or receipts[run_id]["recipe_id"]) in asked
    )
    return in_order(one for one in figures if one is not None)


def _is_as_today(receipt: dict[str, Any]) -> bool:
    """Whether the settings of a run are those that its label stands for today; never those of a control."""
    from harness_ext.recipe.recipe import parse_recipe

    if receipt["recipe"]["control"] is not None:
        return False
    steps = receipt["recipe"]["resolved"]["steps"]
    tasks = next((step["calibration"]["task"] for step in steps if "calibration" in step), [])
    today = parse_recipe(written(*parted(receipt["recipe"]["label"]))).for_tasks(lambda _: tasks)
    return receipt["recipe_id"] == today.recipe_id


def in_order(figures: Iterable[Figure]) -> list[Figure]:
    """The unedited model first, then by recipe, seed, and the recipe before its control."""
    return sorted(figures, key=lambda one: (one.recipe != BASELINE, one.recipe, one.seed, one.control))


def _figure(run: RunRow, receipt: dict[str, Any], cells: Sequence[Cell]) -> Figure | None:
    from harness_ext.recipe.recipe import parse_recipe

    size = run.parameters_after / run.parameters_before if run.parameters_after and run.parameters_before else None
    name, seed = parted(run.recipe_label)
    recipe = parse_recipe(written(name, seed))
    by = receipt["recipe"].get("revisions" if run.control is None else "control_of_revisions", {})
    if by != recipe.revisions:
        return None
    return Figure(
        recipe=name,
        seed=seed,
        control=run.control is not None,
        recipe_id=None if name == BASELINE else recipe.fingerprint,
        kept=None if size is None else round(size, 3),
        seconds=round(receipt["seconds"]["calibrate"] + receipt["seconds"]["edit"], 1),
        outcomes={cell.task: _outcome(cell) for cell in cells},
    )


def _outcome(cell: Cell) -> Outcome:
    low, high = (None if limit is None else round(limit, 6) for limit in (cell.low, cell.high))
    beats = cell.against_controls[0].verdict if cell.against_controls else None
    score = round(cell.score, 6)
    unedited = score if cell.verdict == BASELINE or cell.baseline_score is None else round(cell.baseline_score, 6)
    return Outcome(score, unedited, low, high, cell.verdict, beats, cell.metric, cell.higher_is_better, cell.n)


def stored() -> list[Figure]:
    """The figures of `figures.json`, none where it is not there."""
    if not FIGURES.is_file():
        return []
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))
    return [
        Figure(**row | {"outcomes": {task: Outcome(**one) for task, one in row["outcomes"].items()}}) for row in rows
    ]


def merged(earlier: Sequence[Figure], new: Sequence[Figure]) -> list[Figure]:
    """What is new, and what was measured before and is not measured again: hours of another machine are not lost.

    Two machines round differently, so each figure keeps the unedited model of its own, and the unedited model has a
    figure for each. Left out are recipes that have changed since. Raises OtherTasks where the tasks differ: recipes
    learn from their documents.
    """
    from harness_ext.recipe.recipe import parse_recipe

    if not earlier:
        return list(new)
    if earlier[0].outcomes.keys() != new[0].outcomes.keys():
        raise OtherTasks(
            f"the runs are of {', '.join(new[0].outcomes)}, and the {len(earlier)} figures in {FIGURES.name} of"
            f" {', '.join(earlier[0].outcomes)}: recipes learn from the tasks' documents, so that these do not stand"
            " beside each other; --anew (make real ANEW=1) leaves the earlier ones out"
        )
    asked = {parse_recipe(one).fingerprint for one in recipes()}
    again = {(one.recipe, one.seed) for one in new}
    kept = [one for one in earlier if (one.recipe, one.seed) not in again and one.recipe_id in asked]
    edited = [*(one for one in new if one.recipe != BASELINE), *kept]
    machines = {_unedited(one): one for one in [*earlier, *new] if one.recipe == BASELINE}
    found_on = {_unedited(one) for one in edited} or {_unedited(new[0])}
    return in_order([*(one for scores, one in machines.items() if scores in found_on), *edited])


def left_out(earlier: Sequence[Figure], figures: Sequence[Figure]) -> list[str]:
    """The recipes of earlier figures that have none from their seed now."""
    here = {(one.recipe, one.seed) for one in figures}
    return sorted({written(one.recipe, one.seed) for one in earlier if (one.recipe, one.seed) not in here})


class OtherTasks(ValueError):
    """Figures that cannot stand beside those that are there."""


def _unedited(figure: Figure) -> tuple[tuple[str, float], ...]:
    """What the unedited model scores where this was measured."""
    return tuple((task, outcome.unedited) for task, outcome in figure.outcomes.items())
