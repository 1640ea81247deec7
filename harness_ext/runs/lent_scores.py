"""The scores of one control for two recipes: what leaves the same ranks has the same control, which is scored once.

A folder says of which recipe its control is, by its receipt and by lm-eval's own results, so that each recipe has a
folder of its own. What was scored is taken over with its times and its command, and the receipt tells whence.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from harness_ext.lm_eval_adapter.task_identity import digest
from harness_ext.recipe.recipe import Recipe
from harness_ext.runs.receipt import described
from harness_ext.storage import rundir
from harness_ext.storage.integrity import listed_files
from harness_ext.storage.rundir import FinishedRun

_SAMPLES = "samples_"


def is_of(run: FinishedRun, recipe: Recipe) -> bool:
    """Whether a run of this edit is that of this recipe, rather than the same control of another."""
    return (run.receipt.get("recipe") or {}).get("control_of") == recipe.control_of


def lent(run: FinishedRun, recipe: Recipe) -> FinishedRun:
    """The run again, as that of `recipe`, which makes the same edit: beside it, and its samples the same files where
    the disk allows it. Raises OSError where it cannot be written.
    """
    name = f"{rundir.safe_name(recipe.label)}-{run.receipt['spec_id'][:10]}-of-{(recipe.control_of or '')[:8]}"
    place = run.path.parent / name
    receipt: dict[str, Any] = {
        **run.receipt,
        "recipe": described(recipe).to_json(),
        "variant_id": digest([run.receipt.get("variant_id"), recipe.control_of]),
        "scored_as": {"label": run.receipt["recipe"]["label"], "run": run.path.name},
    }
    with rundir.writing(place) as folder:
        for listed in listed_files(run.path):
            _take_over(run.path / listed["name"], folder, recipe)
        receipt["files"] = listed_files(folder)
        rundir.write_json(folder / rundir.RECEIPT, receipt)
    return FinishedRun(place, receipt)


def _take_over(file: Path, folder: Path, recipe: Recipe) -> None:
    if file.name.startswith(_SAMPLES):
        try:
            os.link(file, folder / file.name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, folder / file.name)
        return
    results = json.loads(file.read_text(encoding="utf-8"))
    results["config"] |= {"recipe": recipe.label, "recipe_control_of": recipe.control_of}
    (folder / file.name).write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")
