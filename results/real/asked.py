"""What the real result asks for: the recipes at their budgets and seeds, and the sweep of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

NAME = "SmolLM2-135M-Instruct"
SEEDS = (0, 1, 2)
BUDGETS = (0.9, 0.8)
CONTROL = "random-subspace"
OF_THE_HUB = ("arc_easy", "boolq", "piqa")
TOO_FEW = ("real_copa", "real_wikitext")
"""Sets with fewer training documents than recipes draw from each task."""
OF_SEED = "calibration.seed="


def tasks() -> list[str]:
    """The real items where `prepare` found some, else lm-eval's own tasks, from the hub."""
    return [name for name in _made() if name not in TOO_FEW] or list(OF_THE_HUB)


def asked_tasks(names: Sequence[str]) -> list[str]:
    """The tasks that were named, or all. Raises UnknownTask for one that is neither made of items nor the hub's."""
    known = [*_made(), *OF_THE_HUB]
    if unknown := [name for name in names if name not in known]:
        raise UnknownTask(
            f"no task {', '.join(unknown)} here; there are {', '.join(known)}; others are made of a folder of items"
            " with a make_tasks.py: make real ITEMS=DIR"
        )
    return list(names) or tasks()


class UnknownTask(ValueError):
    """A task whose items are not here."""


def _made() -> list[str]:
    return [path.stem for path in sorted((HERE / "tasks").glob("*.yaml"))]


def recipes() -> Iterator[str]:
    """Every shipped recipe but the controls: at its default, and at the budgets where it takes one for the whole model;
    from every seed where it draws calibration documents. The first seed of all comes first.
    """
    from harness_ext.recipe.recipe import parse_recipe, shipped_names

    for seed in SEEDS:
        known: set[str] = set()
        for name in shipped_names():
            recipe = parse_recipe(name)
            if recipe.group == "controls" and name != "identity":
                continue
            calibrated = any(step.calibration is not None for step in recipe.steps)
            if seed and not calibrated:
                continue
            for budget in ("", *_budgets(name)):
                asked = written(f"{name}:{budget}" if budget else name, seed)
                if (made := parse_recipe(asked).recipe_id) not in known:
                    known.add(made)
                    yield asked


def written(recipe: str, seed: int) -> str:
    """A recipe with its calibration seed, which the first seed's leaves out."""
    return f"{recipe}{',' if ':' in recipe else ':'}{OF_SEED}{seed}" if seed else recipe


def parted(label: str) -> tuple[str, int]:
    """A recipe and its calibration seed, as `written` has them; a control's name left out."""
    name, _, changes = label.partition("+")[0].partition(":")
    given = [change for change in changes.split(",") if change]
    seeds = [int(change.removeprefix(OF_SEED)) for change in given if change.startswith(OF_SEED)]
    kept = ",".join(change for change in given if not change.startswith(OF_SEED))
    return f"{name}:{kept}" if kept else name, seeds[0] if seeds else 0


def _budgets(name: str) -> list[str]:
    """The settings that give a recipe our budgets: of all matrices' parameters, or of units."""
    from harness_ext.errors import RecipeError
    from harness_ext.recipe.recipe import parse_recipe

    of_all = all(tuple(getattr(step, "matrices", ())) == ("all",) for step in parse_recipe(name).steps)
    for key in ("keep.param_fraction", "param_fraction") if of_all else ("unit_fraction",):
        changes = [f"{key}={budget:g}" for budget in BUDGETS]
        try:
            parse_recipe(f"{name}:{changes[0]}")
        except RecipeError:
            continue
        return changes
    return []


def sweep_file(asked: Sequence[str]) -> dict[str, Any]:
    """The sweep, of these tasks; a cell is one recipe with its control, so that little is lost when one dies."""
    here = HERE.relative_to(ROOT).as_posix()
    run = {"include_path": f"{here}/tasks"} if not set(asked) <= set(OF_THE_HUB) else {}
    return {
        "name": "real",
        "output_path": f"{here}/runs",
        "models": [{"pretrained": f"{here}/{NAME}", "dtype": "bfloat16"}],
        "tasks": list(asked),
        "recipes": list(recipes()),
        "controls": [CONTROL],
        "run": {**run, "batch_size": 16},
        "cells": {"recipes_per_cell": 1, "retries": 1},
    }
