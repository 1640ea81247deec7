"""The receipt of a variant from its opening to its place on the disk.

Opened before anything is done to the model, closed when the variant is scored or has failed, and written with lm-eval's
files in one directory. A run that cost hours is never lost to a full disk: where
its place cannot take it, it is saved elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.editing.records import FORMAT, rows, versions
from harness_ext.errors import UserError
from harness_ext.recipe.recipe import Recipe
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.spec import RunSpec, digest
from harness_ext.storage import rundir
from harness_ext.storage.rundir import FinishedRun

if TYPE_CHECKING:
    from harness_ext.calibration.documents import CalibrationSet
    from harness_ext.editing.pipeline import AppliedRecipe
    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.lm_eval_adapter.config import RunConfig


def now() -> str:
    """The time as receipts have it: UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def opened(config: RunConfig, spec: RunSpec, lm: RecipeLM, recipe: Recipe, started: str) -> dict[str, Any]:
    """What is known before the recipe is applied: what was asked, of which model, with which versions."""
    return {
        "format": FORMAT,
        "status": "complete",
        "failure": None,
        "spec_id": spec.spec_id(recipe),
        "settings_id": spec.settings_id,
        "recipe_id": recipe.recipe_id,
        "command": list(config.command),
        "started": started,
        "model": _model(config, spec, lm),
        "recipe": {
            **recipe.model_dump(include={"name", "label", "summary", "source", "control", "control_of"}),
            "resolved": recipe.resolved(),
        },
        "warnings": [],
        "seeds": dict(zip(("python", "numpy", "torch", "fewshot"), config.harness.seed or [None] * 4, strict=False)),
        "settings": spec.settings,
        "tasks": spec.task_settings,
        "versions": versions(),
    }


def _model(config: RunConfig, spec: RunSpec, lm: RecipeLM) -> dict[str, Any]:
    arguments = config.harness.model_args
    return {
        "backend": "hf",
        "name": config.model_name,
        "pretrained": config.model_name,
        "revision": str(arguments.get("revision") or "main"),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "model_type": str(lm.model.config.model_type),
        "identity": spec.model["pretrained"],
        "parameters": lm.model.num_parameters(),
        "model_args": {**arguments, "pretrained": config.model_name},
    }


def closed(receipt: Mapping[str, Any], applied: AppliedRecipe | None, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What is known when the variant is done. operation: None where nothing was applied. seconds: of loading and
    evaluating.
    """
    model = receipt["model"]
    identity = {
        "model": model["identity"],
        "revision": model["revision"],
        "recipe": receipt["recipe_id"],
        "weights": receipt["weights"],
        "dtype": model["dtype"],
    }
    of_surgery = (
        {"calibrate": applied.seconds_calibrating, "edit": applied.seconds_editing}
        if applied
        else {"calibrate": 0.0, "edit": 0.0}
    )
    return {
        "variant_id": digest(identity),
        "matrices": rows(applied.records) if applied else [],
        "calibration": [_calibration(step, drawn) for step, drawn in applied.calibration] if applied else [],
        "log": applied.log if applied else [],
        "searches": applied.searches if applied else receipt.get("searches", []),
        "finished": now(),
        "seconds": {stage: round(value, 3) for stage, value in {**seconds, **of_surgery}.items()},
    }


def _calibration(step: int, drawn: CalibrationSet) -> dict[str, Any]:
    return {
        "step": step,
        "task": drawn.task,
        "split": drawn.split,
        "samples": len(drawn.documents),
        "seed": drawn.seed,
        "shuffled_labels": drawn.shuffled_labels,
        "left_out_because_scored": drawn.also_scored,
        "documents": [document.doc_hash for document in drawn.documents],
    }


def write(
    place: Path, receipt: Mapping[str, Any], results: dict[str, Any] | None, config: RunConfig, report: ProgressReport
) -> FinishedRun:
    """Write the run directory; results is None for a variant that failed. Raises UserError where neither its place nor
    any other can take it.
    """
    from harness_ext.lm_eval_adapter.evaluate import save

    def fill(target: Path) -> None:
        with rundir.writing(target) as folder:
            if results is not None:
                save(results, folder, config)
            rundir.write_json(folder / rundir.RECEIPT, receipt)

    try:
        fill(place)
    except OSError as error:
        place = _rescue(place, fill, error, report)
    return FinishedRun(place, receipt)


def _rescue(place: Path, fill: Callable[[Path], None], error: OSError, report: ProgressReport) -> Path:
    for folder in rundir.rescue_folders():
        rescued = folder / "lm-eval-recipes-rescued" / place.name
        try:
            fill(rescued)
        except OSError:
            with suppress(OSError):
                rescued.parent.rmdir()
            continue
        report.warn(
            f"{place} could not be written ({error.strerror or error}); the run is safe in {rescued}: move it to"
            f" {place.parent} when there is room, and run the same command again"
        )
        return rescued
    raise UserError(
        f"{place} could not be written: {error.strerror or error}; make room and run the same command again"
    ) from error
