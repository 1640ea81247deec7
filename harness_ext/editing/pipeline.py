"""Applying a recipe to a loaded model: step by step, one matrix at a time, every change recorded.

Undo is the business of `Weights.restore`; a failure in the middle leaves a model that restores like any other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness_ext.calibration.collect import gather, groups
from harness_ext.calibration.context import DocumentBatches, EditableModel, StepContext
from harness_ext.calibration.contrast_pairs import contrast_set
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.calibration.experts import check_experts
from harness_ext.calibration.sinks import RULE
from harness_ext.editing.edit_matrix import (
    EditedMatrix,
    decompose,
    edit_matrix,
    require_finite,
    require_finite_statistics,
)
from harness_ext.editing.measured import TaskLoss, completed, loss_of_all, losses_by_task, searched
from harness_ext.errors import located
from harness_ext.methods import Svd, registered_methods
from harness_ext.methods.registry import sink_use
from harness_ext.methods.search_registry import check_searchable
from harness_ext.model.layout import Matrix, inferred_note
from harness_ext.model.seeding import generator_for
from harness_ext.model.weights import Weights
from harness_ext.progress import Progress
from harness_ext.recipe.recipe import Recipe
from harness_ext.recipe.schema import Calibration, Step
from harness_ext.search.runner import run_search
from harness_ext.storage.resume import ResumeState
from harness_ext.training.bases import Bases, all_bases
from harness_ext.training.trainer import TrainingPlan, check_trainable, train
from leaderboard.readers.receipt import MatrixRecord

if TYPE_CHECKING:
    from torch import Tensor

DrawDocuments = Callable[[Calibration], list[CalibrationSet]]
"""Draws the documents of a step."""

# Even, so that no pair is torn apart.
_CONTRAST_BATCH = 16
# What comes before what within a layer.
_ORDER = (
    ("q_a_proj", "kv_a_proj"),
    ("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj"),
    ("o_proj",),
    ("in_proj",),
    ("out_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
_PLACES = {role: place for place, roles in enumerate(_ORDER) for role in roles}


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
    for number, step in enumerate(recipe.steps):
        part = resume.part(f"step-{number}") if resume is not None else None
        context = StepContext(model, step, number, progress or Progress(), part)
        with located(recipe.place(number)):
            if step.is_search:
                _apply_search(context, recipe, documents, applied)
            else:
                _apply_step(context, recipe, documents, applied)
    applied.notes += _notes(model.weights, applied.records)
    return applied


def _notes(weights: Weights, records: Sequence[MatrixRecord]) -> Iterator[str]:
    """What is to be known of the matrices that were edited: roles told from names, and weights that layers share."""
    layout = weights.layout
    if layout.inferred and any(record.role for record in records):
        yield inferred_note(layout.model_type)
    edited = {record.name for record in records}
    shared = {matrix.parameter: matrix.also for matrix in layout.matrices if matrix.also and matrix.parameter in edited}
    if shared:
        name, others = next(iter(shared.items()))
        yield (
            f"{len(shared)} of the edited weights are shared by several layers, and each was edited once for all of"
            f" them: {name} is also {others[0]}"
        )


def _apply_search(context: StepContext, recipe: Recipe, documents: DrawDocuments, applied: AppliedRecipe) -> None:
    """A search, and the ordinary steps that it found."""
    matrices = _selected(context.model.weights, context.step)
    labelled = _documents(context, documents, applied)
    with applied.calibrating():
        for matrix in matrices:
            require_finite(context.model.weights, matrix)
        outcome = run_search(context, matrices, labelled)
    applied.searches.append(outcome.record)
    for chosen in outcome.steps:
        found = replace(context, step=chosen)
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
    if step.is_search:
        check_searchable(matrices)
        weights.check_dense(matrices)
    else:
        check_experts(step, matrices)
    if step.training is not None:
        check_trainable(matrices)
    if step.factored:
        weights.check_factorable(matrices)
    return matrices


def _apply_step(context: StepContext, recipe: Recipe, documents: DrawDocuments, applied: AppliedRecipe) -> None:
    """One ordinary step on the model as it is now, and the loss of its documents before and after."""
    # What cannot be edited is refused before anything is drawn.
    _selected(context.model.weights, context.step)
    labelled = _documents(context, documents, applied)
    if context.step.calibration is None:
        _apply_edits(context, recipe, labelled, applied)
        return
    with applied.calibrating():
        before = losses_by_task(context, labelled)
    _apply_edits(context, recipe, labelled, applied)
    with applied.calibrating():
        losses = _measured_losses(before, losses_by_task(context, labelled))
    applied.losses.append(_about_losses(context, labelled) | losses)


def _apply_edits(
    context: StepContext, recipe: Recipe, labelled: Sequence[LabelledDocument], applied: AppliedRecipe
) -> None:
    """The edits of an ordinary step."""
    matrices = _selected(context.model.weights, context.step)
    for stage in stages(matrices) if context.step.sequential else [matrices]:
        with applied.calibrating():
            statistics, trials = completed(context, stage, _statistics(context, stage, labelled, applied), labelled)
            applied.log += [{"step": context.number, **row} for row in trials]
        started = time.perf_counter()
        context.progress.start(f"{recipe.label}: decomposing", len(stage))
        for matrix in stage:
            applied.edited.append(edit_matrix(context, matrix, statistics.get(matrix.key, {})))
            context.progress.advance()
        context.progress.stop()
        applied.seconds_editing += time.perf_counter() - started


def stages(matrices: Sequence[Matrix]) -> list[list[Matrix]]:
    """The matrices in runs, none of which feeds another of its run: those down to latents; query, key and value;
    attention output; mixer input; mixer output; MLP inputs; MLP output; layer by layer.

    A matrix of unknown role is a stage of its own, with other parts of its module. Matrices are taken in the order
    given, that of the model.
    """

    def place(matrix: Matrix) -> tuple[int | None, object]:
        if matrix.role is None:
            return matrix.layer, matrix.module
        return matrix.layer, _PLACES[matrix.role]

    return [list(run) for _, run in itertools.groupby(matrices, key=place)]


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


def _statistics(
    context: StepContext, matrices: Sequence[Matrix], labelled: Sequence[LabelledDocument], applied: AppliedRecipe
) -> Mapping[str, Mapping[str, Tensor]]:
    """What the step's method learns of each matrix, by `Matrix.key`; empty for a method that learns nothing."""
    if not labelled:
        return {}
    model, step = context.model, context.step
    _start_stage(context.progress, step, len(labelled))
    for matrix in matrices:
        require_finite(model.weights, matrix)
    size = step.calibration.batch_size if step.calibration is not None else _CONTRAST_BATCH
    batches = DocumentBatches(labelled, size, context.progress.advance)

    def gather_for(group: Sequence[Matrix]) -> Mapping[str, Mapping[str, Tensor]]:
        statistics = _gathered(context, group, batches, applied)
        for key, values in statistics.items():
            require_finite_statistics(values, key)
        return statistics

    if step.training is not None or step.search is not None or step.sequential:
        gathered = gather_for(matrices)
    else:
        names = registered_methods()[step.method].gathered
        sinks = [f"{name}: sink tokens {use}" for name, use in sink_use(names).items()]
        about = [model.weights.digest(), str(size), RULE, *sinks, *(repr(document) for document in labelled)]
        gathered = model.statistics_cache.gathered(about, matrices, gather_for, lambda missing: groups(missing, names))
    context.progress.stop()
    return gathered


def _gathered(
    context: StepContext, matrices: Sequence[Matrix], batches: DocumentBatches, applied: AppliedRecipe
) -> Mapping[str, Mapping[str, Tensor]]:
    """Trained, searched for or gathered, as the step's method needs it."""
    model, step = context.model, context.step

    def decomposed(matrix: Matrix) -> Svd:
        return decompose(model.decomposer, model.weights.read(matrix), matrix)

    training = step.training
    if training is not None:

        def bases(matrix: Matrix) -> Bases:
            return all_bases(decomposed(matrix), training.added_rank, generator_for(step.seed, matrix))

        trained, log = train(model.lm, matrices, batches, TrainingPlan(training, step.seed, bases), context.resume)
        applied.log += [{"step": context.number, **row} for row in log]
        return trained
    names = registered_methods()[step.method].gathered
    if step.search is not None:
        quiet = DocumentBatches(batches.documents, batches.size)
        found, trials = searched(context, matrices, gather(model.lm, matrices, names, quiet, decomposed), batches)
        applied.log += [{"step": context.number, **row} for row in trials]
        return found
    return gather(model.lm, matrices, names, batches, decomposed)


def _start_stage(progress: Progress, step: Step, documents: int) -> None:
    if step.training is not None:
        progress.start(f"{step.method}: training", documents * step.training.epochs)
    else:
        progress.start(f"{step.method}: calibrating", documents if step.search is None else step.search.rounds)
