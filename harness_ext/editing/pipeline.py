"""Applying a recipe to a loaded model: step by step, one matrix at a time, every change recorded.

Undo is the business of `Weights.restore`; a failure in the middle leaves a model that restores like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness_ext.calibration.context import EditableModel, StepContext
from harness_ext.calibration.contrast_pairs import contrast_set
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.calibration.experts import check_experts
from harness_ext.editing.edit_matrix import (
    EditedMatrix,
    edit_matrix,
    require_finite,
)
from harness_ext.editing.learning import LearningRecord, learn
from harness_ext.editing.measured import StepLosses, TaskLoss, loss_of_all, losses_by_task
from harness_ext.editing.prime_units import check_prime_units
from harness_ext.editing.records import standing
from harness_ext.editing.sharing import sharing_note
from harness_ext.errors import UserError, located
from harness_ext.methods.search_registry import check_searchable
from harness_ext.model.components import check_components
from harness_ext.model.layout import Matrix, inferred_note, whole_note
from harness_ext.model.weights import Weights
from harness_ext.progress import Progress
from harness_ext.recipe.recipe import Recipe
from harness_ext.recipe.schema import Step, components_among
from harness_ext.recipe.settings import Calibration
from harness_ext.search.runner import run_search
from harness_ext.storage.resume import ResumeState
from harness_ext.training.trainer import check_trainable
from leaderboard.readers.receipt import MatrixRecord

if TYPE_CHECKING:
    from torch import Tensor

DrawDocuments = Callable[[Calibration], list[CalibrationSet]]
"""Draws the documents of a step."""


@dataclass
class AppliedRecipe:
    """A recipe as it was carried out, a row a matrix. log: rows of plain data about what took many passes over the
    documents, each with its step. losses: of the documents of each step that has any, before and after it, in nats, and
    of an ordinary step also task by task; None where not finite. notes: what is to be known of the matrices themselves.
    """

    edited: list[EditedMatrix] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    calibration: list[tuple[int, CalibrationSet]] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    seconds_calibrating: float = 0.0
    seconds_editing: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[MatrixRecord]:
        """What became of each matrix, as the receipt has it."""
        return [item.record for item in self.edited]

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Count the seconds spent inside as calibration, unless it fails."""
        started = time.perf_counter()
        yield
        self.seconds_calibrating += time.perf_counter() - started


def apply_recipe(
    model: EditableModel,
    recipe: Recipe,
    documents: DrawDocuments,
    progress: Progress | None = None,
    resume: ResumeState | None = None,
) -> AppliedRecipe:
    """Apply every step of a recipe, in order; a later step sees what the earlier ones left. resume: where a long step
    keeps what it needs to go on after a kill; None to keep nothing.

    Raises UserError for what the recipe's author can mend, and VariantFailed for what the model's weights make
    impossible.
    """
    applied = AppliedRecipe()
    progress = progress or Progress()
    for number, step in enumerate(recipe.steps):
        part = resume.part(f"step-{number}") if resume is not None else None
        context = StepContext(model, step, number, progress, part, _ranks(applied), _left(applied))
        place = f", step {number + 1} of {len(recipe.steps)}" if len(recipe.steps) > 1 else ""
        with located(recipe.place(number)), progress.stage(recipe.label + place):
            if step.healing is not None:
                _apply_healing(context, recipe, documents, applied)
            elif step.is_search:
                _apply_search(context, recipe, documents, applied)
            else:
                _apply_step(context, recipe, documents, applied)
    applied.notes += _notes(model.weights, applied.records)
    return applied


def _ranks(applied: AppliedRecipe) -> dict[str, int]:
    """At which rank each matrix was left that was edited so far, by `Matrix.key`, where no later edit overwrote it."""
    left = standing(applied.edited, lambda item: (item.written.name, item.written.part))
    return {item.written.key: item.written.rank_after for item in left}


def _left(applied: AppliedRecipe) -> dict[str, dict[str, Tensor]]:
    """Which rows and columns all edits so far have left, of each matrix that lost some, by `Matrix.key`."""
    found: dict[str, dict[str, Tensor]] = {}
    for item in applied.edited:
        own = found.setdefault(item.written.key, {}) if item.left else {}
        for name, left in item.left.items():
            own[name] = own[name] & left if name in own else left
    return found


def _apply_healing(context: StepContext, recipe: Recipe, documents: DrawDocuments, applied: AppliedRecipe) -> None:
    """A step that trains what earlier ones edited, unless that is nothing."""
    own = _of_edited(context)
    if own is None:
        applied.notes.append("nothing was edited that heal could train, and it trained nothing")
    else:
        _apply_step(own, recipe, documents, applied)


def _of_edited(context: StepContext) -> StepContext | None:
    """A step that heals, of those of its matrices that were edited; None where there are none. Raises UserError for a
    matrix that was not.
    """
    step, keys = context.step, list(context.ranks)
    if not keys:
        return None
    if step.matrices != ("all",) or step.layers is not None:
        chosen = {matrix.key for matrix in context.model.weights.layout.select(step)}
        keys = [key for key in keys if key in chosen]
        if not keys:
            asked = ", ".join(step.matrices[:3])
            raise UserError(f"heal trains what earlier steps edited, and they edited none of these: {asked}")
    only = {"matrices": tuple(keys), "layers": None, "per_head": False}
    return replace(context, step=step.model_copy(update=only))


def _notes(weights: Weights, records: Sequence[MatrixRecord]) -> Iterator[str]:
    """What is to be known of the matrices that were edited: roles told from names, and weights that layers share."""
    layout = weights.layout
    if layout.inferred and any(record.role for record in records):
        yield inferred_note(layout.model_type)
    yield from _lost_units(records)
    last = standing(records, lambda record: (record.name, record.part))
    if (told := sharing_note([record.sharing or 1 for record in last])) is not None:
        yield told
    edited = {record.name for record in records}
    shared = {matrix.parameter: matrix.also for matrix in layout.matrices if matrix.also and matrix.parameter in edited}
    if shared:
        name, others = next(iter(shared.items()))
        yield (
            f"{len(shared)} of the edited weights are shared by several layers, and each was edited once for all of"
            f" them: {name} is also {others[0]}"
        )


def _lost_units(records: Sequence[MatrixRecord]) -> Iterator[str]:
    """That matrices lost rows or columns, and how the model computes without them."""
    cut = [
        (left / full, f"{record.key} has {left} of {full} {what}")
        for record in records
        for what, left, full in zip(
            ("rows", "columns"), (record.rows_kept, record.columns_kept), record.shape, strict=True
        )
        if left is not None
    ]
    if cut:
        yield (
            f"widths changed: {len(cut)} matrices have fewer rows or columns than before, {min(cut)[1]}; the model"
            " computes with zeros in the place of the others, and is counted without them"
        )


def _apply_search(context: StepContext, recipe: Recipe, documents: DrawDocuments, applied: AppliedRecipe) -> None:
    """A search, and the ordinary steps that it found."""
    matrices = _selected(context.model.weights, context.step)
    _note_wholes(applied, context.step, matrices)
    labelled = _documents(context, documents, applied)
    with applied.calibrating():
        for matrix in matrices:
            require_finite(context.model.weights, matrix)
        outcome = run_search(context, matrices, labelled)
    applied.searches.append(outcome.record)
    for chosen in outcome.steps:
        found = replace(context, step=chosen, ranks=_ranks(applied), left=_left(applied))
        _apply_edits(found, recipe, _documents(found, documents, applied), applied)
    outcome.measured()
    record = outcome.record
    losses = {when: record[when]["loss"] for when in ("before", "after")}
    applied.losses.append(_about_losses(context, labelled) | losses)


def _about_losses(context: StepContext, labelled: Sequence[LabelledDocument]) -> dict[str, Any]:
    return {"step": context.number, "method": context.step.method, "documents": len(labelled)}


def _measured_losses(before: Mapping[str, TaskLoss], after: Mapping[str, TaskLoss]) -> dict[str, Any]:
    tasks = [
        {"task": task, "documents": own.documents, "before": own.loss, "after": after[task].loss}
        for task, own in before.items()
    ]
    return {"before": loss_of_all(before), "after": loss_of_all(after), "tasks": tasks}


def _selected(weights: Weights, step: Step) -> tuple[Matrix, ...]:
    matrices = weights.layout.select(step)
    weights.check_editable(matrices)
    check_components(weights.layout, components_among(step, matrices))
    check_prime_units(step, matrices)
    if step.is_search:
        check_searchable(matrices)
        weights.check_dense(matrices)
    else:
        check_experts(step, matrices)
    if step.trains:
        check_trainable(matrices)
    if step.factored:
        weights.check_factorable(matrices)
    return matrices


def _note_wholes(applied: AppliedRecipe, step: Step, matrices: Sequence[Matrix]) -> None:
    if (told := whole_note(step, matrices)) is not None and told not in applied.notes:
        applied.notes.append(told)


def _apply_step(context: StepContext, recipe: Recipe, documents: DrawDocuments, applied: AppliedRecipe) -> None:
    """One ordinary step on the model as it is now, and the loss of its documents before and after."""
    # What cannot be edited is refused before anything is drawn.
    _note_wholes(applied, context.step, _selected(context.model.weights, context.step))
    labelled = _documents(context, documents, applied)
    if context.step.calibration is None:
        _apply_edits(context, recipe, labelled, applied)
        return
    losses = StepLosses()
    _apply_edits(context, recipe, labelled, applied, losses)
    with applied.calibrating():
        after = losses.after or losses_by_task(context, labelled)
    assert losses.before is not None, "learning measures it, or has it measured"
    applied.losses.append(_about_losses(context, labelled) | _measured_losses(losses.before, after))


def _apply_edits(
    context: StepContext,
    recipe: Recipe,
    labelled: Sequence[LabelledDocument],
    applied: AppliedRecipe,
    losses: StepLosses | None = None,
) -> None:
    """The edits of an ordinary step. losses: is given those that learning comes by; None where none are wanted."""
    matrices = _selected(context.model.weights, context.step)
    edited: dict[str, EditedMatrix] = {}
    with context.progress.stage("editing", len(matrices), "matrices") as stage:
        learned = learn(context, matrices, labelled, LearningRecord(applied.log, losses))
        while True:
            with applied.calibrating():
                part = next(learned, None)
            if part is None:
                break
            started = time.perf_counter()
            for matrix in part[0]:
                edited[matrix.key] = edit_matrix(context, matrix, part[1].get(matrix.key, {}))
                stage.advance()
            # Else these statistics would be held while the next are gathered.
            del part
            applied.seconds_editing += time.perf_counter() - started
    applied.edited += [one for matrix in matrices for one in (edited[matrix.key], *edited[matrix.key].beside)]


def _documents(context: StepContext, draw: DrawDocuments, applied: AppliedRecipe) -> list[LabelledDocument]:
    with applied.calibrating():
        if context.step.contrast is not None:
            sets = [contrast_set(context.step.contrast)]
        elif context.step.calibration is not None:
            sets = draw(context.step.calibration)
        else:
            return []
    # The step that a search found may learn from the documents that the search learned from.
    pairs = [(context.number, drawn) for drawn in sets]
    applied.calibration += [pair for pair in pairs if pair not in applied.calibration]
    return [document for drawn in sets for document in drawn.documents]
