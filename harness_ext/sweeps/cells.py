"""The cells of a sweep: each is one ordinary `lm_eval run`, of one model and some recipes with their controls.

Cells are grouped by model, so that one load of it serves several recipes. A model's baseline is a cell of its own, and
the others wait for it: started together, each would compute it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness_ext.editing.controls import why_not
from harness_ext.recipe.overrides import split_specification
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.recipe.settings import EVALUATED
from harness_ext.storage.rundir import safe_name
from harness_ext.sweeps.contents import SweepContents, digest_of
from harness_ext.sweeps.engines.base import Job
from harness_ext.sweeps.run_flags import words
from harness_ext.sweeps.sweep_file import BASELINE, SweepFile, SweptModel
from leaderboard.readers.sweep_state import CELLS, MANIFEST

_ID_DIGITS = 10


class AskedVariant(NamedTuple):
    """What one run folder of a cell is of. label: as receipts have it. recipe_id: None where it is not known before the
    run, as of controls.
    """

    label: str
    recipe_id: str | None


@dataclass(frozen=True)
class SweepCell:
    """One command. key: its name, which holds a digest of its words and of what they point to (`contents`); safe as a
    file name.

    recipes: as they are written; the baseline alone, or those of one group. after: the key of its baseline's cell.
    swept: the model as the file has it.
    """

    key: str
    model: str
    recipes: tuple[str, ...]
    controls: tuple[str, ...]
    gpus: int
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    swept: SweptModel | None = field(default=None, compare=False, repr=False)

    @property
    def variants(self) -> int:
        """How many run folders it leaves."""
        return len(self.leaves)

    @property
    def leaves(self) -> list[AskedVariant]:
        """The run folders that it leaves: of its recipes, and of the controls that they can have. What is found may
        still leave one of them nothing to control.
        """
        return [variant for recipe in self.recipes for variant in _variants_of(recipe, self.controls)]


def cells_of(sweep: SweepFile) -> list[SweepCell]:
    """All cells, each model's baseline before its others."""
    contents = SweepContents(sweep)
    return [cell for model in sweep.models for cell in _of_model(sweep, model, contents)]


def is_of_now(cell: SweepCell, sweep: SweepFile) -> bool:
    """Whether what a cell's words point to is what it was when the cell got its name."""
    if cell.swept is None:
        return True
    return _cell(sweep, cell.swept, cell.recipes, SweepContents(sweep), cell.after).key == cell.key


def job(cell: SweepCell, sweep: SweepFile, folder: Path, output_path: str) -> Job:
    """What an engine is handed. folder: the sweep's; output_path: where the run folders go."""
    place = folder / CELLS / cell.key
    own = ["--output_path", output_path, "--manifest", str(place / MANIFEST)]
    environment = {"LM_EVAL_SWEEP": sweep.name, "LM_EVAL_SWEEP_CELL": cell.key}
    command = (sys.executable, "-m", "harness_ext", "run", *cell.words, *own)
    return Job(cell.key, command, environment, place, cell.gpus, sweep.cells.timeout_s, cell.after)


def _variants_of(recipe: str, controls: tuple[str, ...]) -> tuple[AskedVariant, ...]:
    """A recipe and the controls that it can have. A file may say something else at the next look."""
    is_file = split_specification(recipe)[0].endswith((".yaml", ".yml"))
    return (_read_variants if is_file else _kept_variants)(recipe, controls)


def _read_variants(recipe: str, controls: tuple[str, ...]) -> tuple[AskedVariant, ...]:
    parsed = parse_recipe(recipe)
    open_ = any(step.calibration is not None and step.calibration.task == EVALUATED for step in parsed.steps)
    possible = [control for control in controls if why_not(control, parsed) is None]
    own = AskedVariant(parsed.label, None if open_ else parsed.recipe_id)
    return own, *(AskedVariant(f"{parsed.label}+{control}", None) for control in possible)


_kept_variants = cache(_read_variants)


def _of_model(sweep: SweepFile, model: SweptModel, contents: SweepContents) -> Iterator[SweepCell]:
    baseline = _cell(sweep, model, (BASELINE,), contents)
    yield baseline
    recipes, size = sweep.recipes_of(model), sweep.cells.recipes_per_cell
    for first in range(0, len(recipes), size):
        yield _cell(sweep, model, tuple(recipes[first : first + size]), contents, (baseline.key,))


def _cell(
    sweep: SweepFile,
    model: SweptModel,
    recipes: tuple[str, ...],
    contents: SweepContents,
    after: tuple[str, ...] = (),
) -> SweepCell:
    controls = tuple(sweep.controls) if after else ()
    asked = ["--model", model.model, *_model_args(model.arguments), "--tasks", ",".join(sweep.tasks), *words(sweep.run)]
    asked += [word for recipe in recipes for word in ("--recipe", recipe)]
    asked += [word for control in controls for word in ("--control", control)]
    told = digest_of([sweep.output_path, *asked, *contents.of_cell(model, recipes)])[:_ID_DIGITS]
    last = safe_name(os.path.basename(model.pretrained.rstrip("/")))[:40]
    what = safe_name(recipes[0])[:40] + (f"+{len(recipes) - 1}" if len(recipes) > 1 else "")
    return SweepCell(
        f"{last}-{what}-{told}", model.pretrained, recipes, controls, model.gpus, tuple(asked), after, model
    )


def _model_args(arguments: Mapping[str, Any]) -> list[str]:
    """`--model_args` as one would type it where that says the same, else as JSON."""
    plain = all(
        isinstance(value, (str, int, float)) and not (set(str(value)) & set(',=" {}[]')) for value in arguments.values()
    )
    texts = all(not isinstance(value, str) or not _looks_like_a_number(value) for value in arguments.values())
    if plain and texts:
        return ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    return ["--model_args", json.dumps(dict(arguments))]


def _looks_like_a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "none", "null")
    return True
