"""Applying a recipe to a loaded model: step by step, one matrix at a time, every change recorded.

Undo is the business of `Weights.restore`; a failure in the middle leaves a model that restores like any other.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness_ext.anatomy import Matrix
from harness_ext.errors import UserError
from harness_ext.evidence import check_observable, gather
from harness_ext.evidence.documents import CalibrationSet
from harness_ext.factors import Factors, NotConverged
from harness_ext.methods import Edit, registered_methods
from harness_ext.receipt import MatrixRecord, VariantFailed, stored_parameters
from harness_ext.recipe import Calibration, Recipe, Step
from harness_ext.weights import Weights, tensor_digest

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Generator, Tensor


Documents = Callable[[Calibration, str], list[CalibrationSet]]
"""Draws the documents of a step; the second argument opens its error messages."""


class Progress:
    """What surgery tells about its progress; this one says nothing."""

    def start(self, what: str, total: int) -> None:
        """A stage begins: `what` in words, of `total` units."""

    def advance(self, units: int = 1) -> None:
        """So many units of the stage are done."""

    def stop(self) -> None:
        """The stage is over."""


@dataclass
class Operation:
    """A recipe as it was carried out."""

    records: list[MatrixRecord] = field(default_factory=list)
    calibration: list[tuple[int, CalibrationSet]] = field(default_factory=list)
    seconds_calibrating: float = 0.0
    seconds_editing: float = 0.0


def operate(lm: HFLM, weights: Weights, factors: Factors, recipe: Recipe, documents: Documents, progress: Progress | None = None) -> Operation:
    """Apply every step of a recipe, in order; a later step sees what the earlier ones left.

    Raises UserError for what the recipe's author can mend, and VariantFailed for what the model's weights make impossible.
    """
    progress = progress or Progress()
    operation = Operation()
    for number, step in enumerate(recipe.steps):
        where = f"recipe {recipe.label!r}, step {number}: "
        matrices = weights.anatomy.select(step, where)
        weights.check_editable(matrices)
        evidence = _evidence(lm, weights, factors, step, number, matrices, documents, operation, where, progress)
        started = time.perf_counter()
        progress.start(f"{recipe.label}: decomposing", len(matrices))
        for matrix in matrices:
            operation.records.append(_edit(weights, factors, step, number, matrix, evidence.get(matrix.key, {}), where))
            progress.advance()
        progress.stop()
        operation.seconds_editing += time.perf_counter() - started
    return operation


def _evidence(
    lm: HFLM, weights: Weights, factors: Factors, step: Step, number: int, matrices: Sequence[Matrix], documents: Documents, operation: Operation, where: str, progress: Progress
) -> Mapping[str, Mapping[str, Tensor]]:
    if step.evidence is None:
        return {}
    started = time.perf_counter()
    check_observable(matrices, where)
    sets = documents(step.evidence, where)
    operation.calibration += [(number, drawn) for drawn in sets]
    labelled = [document for drawn in sets for document in drawn.documents]
    progress.start(f"{step.method}: calibrating", len(labelled))
    for matrix in matrices:
        _require_finite(weights, matrix)
    statistics = registered_methods()[step.method].statistics
    try:
        gathered = gather(lm, matrices, statistics, labelled, step.evidence.batch_size, lambda matrix: _decompose(factors, weights.read(matrix), matrix), progress.advance)
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    progress.stop()
    operation.seconds_calibrating += time.perf_counter() - started
    return gathered


def _edit(weights: Weights, factors: Factors, step: Step, number: int, matrix: Matrix, evidence: Mapping[str, Tensor], where: str) -> MatrixRecord:
    started = time.perf_counter()
    _require_finite(weights, matrix)
    weight = weights.read(matrix)
    before = weights.digest_of(matrix.parameter, matrix.expert)
    edit = _call(factors, step, matrix, weight, evidence, where)
    _require_finite_edit(edit, matrix)
    weights.replace(matrix, edit.weight())
    shifted = edit.bias_shift is not None and bool(edit.bias_shift.any())
    if shifted:
        weights.shift_bias(matrix, edit.bias_shift)
    after = weights.read(matrix)
    norm = float(weight.double().norm())
    return MatrixRecord(
        step=number,
        method=step.method,
        name=matrix.parameter,
        part=matrix.key.removeprefix(matrix.parameter).strip() or None,
        role=matrix.role,
        layer=matrix.layer,
        shape=matrix.shape,
        rank_before=min(matrix.shape),
        rank_after=edit.rank,
        energy_kept=(float(after.double().norm()) / norm) ** 2 if norm else 1.0,
        relative_error=float((weight - after).double().norm()) / norm if norm else 0.0,
        digest_before=before,
        digest_after=weights.digest_of(matrix.parameter, matrix.expert),
        seconds=time.perf_counter() - started,
        bias_shift=shifted,
        parameters_before=matrix.shape[0] * matrix.shape[1],
        parameters_after=stored_parameters(matrix.shape, edit.rank),
        fallback=factors.fallbacks.get(tensor_digest(weight)),
    )


def _call(factors: Factors, step: Step, matrix: Matrix, weight: Tensor, evidence: Mapping[str, Tensor], where: str) -> Edit:
    """Hand a method what its signature asks for."""
    method = registered_methods()[step.method]
    arguments: dict[str, Any] = {**step.parameters, **{name: value.to(weight) for name, value in evidence.items()}}
    if "svd" in method.engine_arguments:
        arguments["svd"] = _decompose(factors, weight, matrix)
    if "keep" in method.engine_arguments:
        arguments["keep"] = step.keep_budget
    if "generator" in method.engine_arguments:
        arguments["generator"] = generator_for(step.seed, matrix)
    try:
        return method.function(weight, **arguments)
    except UserError as error:
        raise UserError(f"{where}{matrix.key}: {error}") from None


def generator_for(seed: int, matrix: Matrix) -> Generator:
    """A CPU generator of its own for each matrix, so that neither order nor device changes what is drawn."""
    import torch

    digest = hashlib.sha256(f"{seed} {matrix.key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _decompose(factors: Factors, weight: Tensor, matrix: Matrix) -> Any:
    try:
        return factors.of(weight)
    except NotConverged as error:
        raise VariantFailed("not_converged", str(error), matrix.key) from None


def _require_finite(weights: Weights, matrix: Matrix) -> None:
    place = weights.first_not_finite(matrix)
    if place is not None:
        raise VariantFailed("non_finite_weight", f"{matrix.key} holds a NaN or an infinity at {place}, and cannot be decomposed", matrix.key)


def _require_finite_edit(edit: Edit, matrix: Matrix) -> None:
    import torch

    if not all(bool(torch.isfinite(part).all()) for part in (edit.left, edit.right, edit.bias_shift) if part is not None):
        raise VariantFailed("non_finite_edit", f"the edit of {matrix.key} holds a NaN or an infinity", matrix.key)
