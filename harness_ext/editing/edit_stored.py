"""A recipe that needs nothing but the weights, carried out on a checkpoint parameter by parameter, each read, edited by
all steps in their order, and given back.

No matrix of such a recipe depends on another, so the numbers are those of `apply_recipe` on the loaded model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from harness_ext.calibration.cache import StatisticsCache
from harness_ext.calibration.context import EditableModel, StepContext
from harness_ext.calibration.experts import check_experts
from harness_ext.editing.edit_matrix import edit_matrix
from harness_ext.errors import located
from harness_ext.linalg.cache import lasting
from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods import registered_methods
from harness_ext.methods.registry import ORIGINAL
from harness_ext.model.digests import tensor_digest
from harness_ext.model.layout import Matrix
from harness_ext.model.stored_model import NotByShards, StoredModel, Unit
from harness_ext.model.stored_weights import StoredWeights
from harness_ext.progress import Progress
from harness_ext.storage.rundir import scratch_folder
from leaderboard.readers.receipt import FACTORS, MatrixRecord

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from harness_ext.recipe.recipe import Recipe
    from harness_ext.recipe.schema import Step


def needs_a_model(recipe: Recipe) -> str | None:
    """Why a recipe cannot be carried out without a loaded model; None where the weights are all that it needs."""
    for step in recipe.steps:
        if step.is_search:
            return f"{step.method} searches, which takes a model that computes"
        if step.trains:
            return f"{step.method} trains, which takes a model that computes"
        if step.calibration is not None or step.contrast is not None or registered_methods()[step.method].statistics:
            return f"{step.method} learns from documents, which takes a model that computes"
        if ORIGINAL in registered_methods()[step.method].engine_arguments:
            return f"{step.method} goes by the unedited weights, which a loaded model keeps"
        if registered_methods()[step.method].moves_bias(step.parameters):
            return f"{step.method} moves biases, which the model may have to be given first (bias=false keeps them)"
    return None


def needs_memory(recipe: Recipe) -> str | None:
    """Why a recipe cannot be scored while some weights are not in memory; None where the files of the checkpoint can be
    edited in their place.
    """
    if any(step.factored for step in recipe.steps):
        return "it computes matrices as two low-rank layers, which files of plain weights have not"
    return needs_a_model(recipe)


class _PlannedEdit(NamedTuple):
    """One edit. place: among all edits of the recipe, in the order in which a loaded model is edited."""

    place: int
    context: StepContext
    matrix: Matrix


class PlacedEdit(NamedTuple):
    """What became of one matrix, and its place among all edits of the recipe."""

    place: int
    record: MatrixRecord


class EditedUnit(NamedTuple):
    """A unit with its new values. digest: of them."""

    value: Tensor
    digest: str
    edits: list[PlacedEdit]


class StoredEdits:
    """The edits of a recipe on a checkpoint. device: where they are computed. scratch: an existing folder.

    Raises NotByShards where they take a loaded model, and UserError where the recipe does not fit the model.
    """

    def __init__(self, stored: StoredModel, recipe: Recipe, device: torch.device, scratch: Path) -> None:
        if (reason := needs_a_model(recipe)) is not None:
            raise NotByShards(reason)
        self.stored = stored
        self.weights = StoredWeights(stored.model, scratch)
        self._device = device
        # Methods that need only the weight are handed nothing of the model that computes.
        model = EditableModel(cast("Any", None), self.weights, Decomposer(lasting(scratch)), StatisticsCache(scratch))
        self._planned: dict[tuple[str, int | None], list[_PlannedEdit]] = {}
        self.count = 0
        for number, step in enumerate(recipe.steps):
            context = StepContext(model, step, number, Progress())
            with located(recipe.place(number)):
                for matrix in self._selected(step):
                    self._planned.setdefault((matrix.parameter, matrix.expert), []).append(
                        _PlannedEdit(self.count, context, matrix)
                    )
                    self.count += 1
        for (parameter, _), edits in self._planned.items():
            if any(edit.context.step.factored for edit in edits) and len({edit.context.number for edit in edits}) > 1:
                raise NotByShards(f"{parameter} is edited by several steps, one of which makes factors of it")

    def _selected(self, step: Step) -> Sequence[Matrix]:
        matrices = self.weights.layout.select(step)
        check_experts(step, matrices)
        if step.factored:
            self.weights.check_factorable(matrices)
        dtypes = {(unit.parameter, unit.expert): unit.dtype for unit in self.stored.units}
        for matrix in matrices:
            dtype = dtypes.get((matrix.parameter, matrix.expert))
            if dtype is None or not dtype.is_floating_point or dtype.itemsize == 1:
                raise NotByShards(f"{matrix.key} is not stored as plain numbers of its own")
        return matrices

    def planned(self, unit: Unit) -> int:
        """The number of edits of a unit."""
        return len(self._planned.get((unit.parameter, unit.expert), ()))

    def edited(self, unit: Unit) -> EditedUnit:
        """The unit after all edits of it, and what became of each of its matrices.

        Raises UserError where it cannot be read, and VariantFailed where its numbers are at fault.
        """
        value = self.stored.read(unit)
        edits = self._planned.get((unit.parameter, unit.expert), [])
        if not edits:
            return EditedUnit(value, tensor_digest(value), [])
        value = value.to(self._device)
        with self.weights.lent(unit, value):
            done = [(place, edit_matrix(context, matrix, {}).record) for place, context, matrix in edits]
            # Known already, unless what was lent is still to be made of factors.
            factored = any(record.stored == FACTORS for _, record in done)
            digest = None if factored else self.weights.digest_of(unit.parameter, unit.expert)
        return EditedUnit(value, digest or tensor_digest(value), [PlacedEdit(*edit) for edit in done])


@contextmanager
def scratch() -> Iterator[Path]:
    """A scratch folder for the time of the block. Raises UserError where there can be none."""
    folder = scratch_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
