"""Boards of one recipe in tests, and its cell."""

from __future__ import annotations

from typing import Any

from leaderboard.board.cell import Cell


def recipe_cell(cells: list[Cell], recipe: str = "laser", task: str = "sums") -> Cell:
    """The one cell of a recipe and task."""
    (cell,) = [cell for cell in cells if (cell.recipe, cell.task) == (recipe, task)]
    return cell


def judged(made: Any, baseline: Any, recipe: Any, **options: Any) -> Cell:
    """The cell of one recipe on one task."""
    made.run("baseline", {"sums": baseline})
    made.run("laser", {"sums": recipe})
    return recipe_cell(made.board(**options))


def tasks_board(made: Any, kit: Any, count: int, flips: list[tuple[int, int]]) -> list[Cell]:
    """The board of one recipe on as many tasks of `count` documents as there are (lost, gained)."""
    tasks = {f"t{i}": kit.pair(count, count // 2, lost=lost, gained=gained) for i, (lost, gained) in enumerate(flips)}
    made.run("baseline", {name: pair[0] for name, pair in tasks.items()})
    made.run("laser", {name: pair[1] for name, pair in tasks.items()})
    return [cell for cell in made.board() if cell.recipe == "laser"]
