"""The receipt of a variant from its opening to its place on the disk.

Opened before anything is done to the model, closed when the variant is scored or has failed, and written with lm-eval's
files in one directory. A run that cost hours is never lost to a full disk: where its place cannot take it, it is saved
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.calibration.rewording import hashed_signs
from harness_ext.editing.records import statistics_used
from harness_ext.errors import UserError, VariantFailed
from harness_ext.recipe.recipe import Recipe
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.ran_on import gathered
from harness_ext.runs.spec import RunSpec, digest
from harness_ext.runs.versions import versions
from harness_ext.storage import rundir
from harness_ext.storage.integrity import listed_files
from harness_ext.storage.rundir import FinishedRun
from leaderboard.readers.receipt import (
    FORMAT,
    Receipt,
    ReceiptCalibration,
    ReceiptFailure,
    ReceiptModel,
    ReceiptRecipe,
    public_receipt,
)
from leaderboard.readers.secrets import redacted_command, without_secrets

if TYPE_CHECKING:
    from harness_ext.calibration.documents import CalibrationSet
    from harness_ext.editing.pipeline import AppliedRecipe
    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.lm_eval_adapter.config import RunConfig


def now() -> str:
    """The time as receipts have it: UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def opened(config: RunConfig, spec: RunSpec, lm: RecipeLM, recipe: Recipe, started: str) -> Receipt:
    """What is known before the recipe is applied: what was asked, of which model, with which versions."""
    return Receipt(
        format=FORMAT,
        status="complete",
        failure=None,
        spec_id=spec.spec_id(recipe),
        settings_id=spec.settings_id,
        recipe_id=recipe.recipe_id,
        command=redacted_command(config.command),
        started=started,
        model=_model(config, spec, lm),
        recipe=described(recipe),
        warnings=[],
        seeds=dict(zip(("python", "numpy", "torch", "fewshot"), config.harness.seed or [None] * 4, strict=False)),
        settings=spec.settings,
        tasks=spec.task_settings,
        versions=versions(),
        ran_on=gathered(lm),
    )


def described(recipe: Recipe) -> ReceiptRecipe:
    """The recipe as receipts have it; revisions only where one is above 1."""
    names = recipe.model_dump(include={"name", "label", "summary", "source", "control", "control_of"})
    revisions = {"revisions": recipe.revisions, "control_of_revisions": recipe.control_of_revisions}
    above_one = {name: found for name, found in revisions.items() if found}
    return ReceiptRecipe.model_validate({**names, "resolved": recipe.resolved(), **above_one})


def _model(config: RunConfig, spec: RunSpec, lm: RecipeLM) -> ReceiptModel:
    arguments = config.harness.model_args
    unpacked = {} if lm.dequantized_from is None else {"dequantized_from": lm.dequantized_from}
    return ReceiptModel(
        backend="hf" if config.engine is None else config.engine.name,
        name=config.model_name,
        pretrained=config.model_name,
        revision=str(arguments.get("revision") or "main"),
        dtype=str(lm.model.dtype).removeprefix("torch."),
        device=str(lm.device),
        model_type=str(lm.model.config.model_type),
        identity=spec.model_identity,
        parameters=lm.model.num_parameters(),
        model_args=without_secrets({**arguments, "pretrained": config.model_name}),
        **unpacked,
    )


def mark_failed(receipt: Receipt, error: VariantFailed) -> None:
    """Record why the variant has no result, and the searches that were under way."""
    receipt.status = "failed"
    receipt.failure = ReceiptFailure(kind=error.kind, reason=error.reason, where=error.where)
    receipt.searches = error.searches


def finish(receipt: Receipt, **seconds: float) -> None:
    """Bring a closed receipt up to date, where a variant is scored after the model is gone. seconds: of stages."""
    receipt.finished = now()
    receipt.seconds = receipt.seconds | {stage: round(value, 3) for stage, value in seconds.items()}


def close(receipt: Receipt, applied: AppliedRecipe | None, seconds: Mapping[str, float]) -> None:
    """Fill in what is known when the variant is done. applied: None where nothing was applied. seconds: of loading and
    evaluating.
    """
    identity = {
        "model": receipt.model.identity,
        "revision": receipt.model.revision,
        "recipe": receipt.recipe_id,
        "weights": receipt.weights.to_json(),
        "dtype": receipt.model.dtype,
    }
    if receipt.recipe.control_of is not None:  # one edit may be the control of several recipes
        identity["control of"] = receipt.recipe.control_of
    receipt.variant_id = digest(identity)
    receipt.matrices = list(applied.records) if applied else []
    receipt.calibration = [_calibration(step, drawn) for step, drawn in applied.calibration] if applied else []
    receipt.statistics = statistics_used(applied.edited) if applied else []
    receipt.log = applied.log if applied else []
    receipt.searches = applied.searches if applied else receipt.searches
    receipt.calibration_loss = applied.losses if applied else []
    receipt.finished = now()
    stages = {
        **seconds,
        "calibrate": applied.seconds_calibrating if applied else 0.0,
        "edit": applied.seconds_editing if applied else 0.0,
    }
    receipt.seconds = {stage: round(value, 3) for stage, value in stages.items()}


def _calibration(step: int, drawn: CalibrationSet) -> ReceiptCalibration:
    return ReceiptCalibration(
        step=step,
        task=drawn.task,
        split=drawn.split,
        samples=len(drawn.documents),
        seed=drawn.seed,
        shuffled_labels=drawn.shuffled_labels,
        left_out_because_scored=drawn.also_scored,
        documents=[document.doc_hash for document in drawn.documents],
        contents=sorted({digest for document in drawn.documents for digest in document.digests}),
        wordings=hashed_signs(drawn),
    )


def write(
    place: Path, receipt: Receipt, results: dict[str, Any] | None, config: RunConfig, report: ProgressReport
) -> FinishedRun:
    """Write the run directory; results is None for a variant that failed. Raises UserError where neither its place nor
    any other can take it.
    """
    from harness_ext.lm_eval_adapter.evaluate import save

    written = public_receipt(receipt.to_json())

    def fill(target: Path) -> None:
        with rundir.writing(target) as folder:
            if results is not None:
                save(results, folder, config)
            written["files"] = listed_files(folder)
            rundir.write_json(folder / rundir.RECEIPT, written)

    try:
        fill(place)
    except OSError as error:
        place = _rescue(place, fill, error, report)
    return FinishedRun(place, written)


def _rescue(place: Path, fill: Callable[[Path], None], error: OSError, report: ProgressReport) -> Path:
    for folder in rundir.rescue_folders():
        rescued = folder / rundir.RESCUED / place.name
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
