"""What a step learns of its matrices before it edits them, and in which order: all of a layer and then the next where
that suffices, so that a model runs through the calibration documents once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness_ext.calibration.by_layer import LayerWalk, Learned, walk_through
from harness_ext.calibration.collect import gather, groups, held_bytes
from harness_ext.calibration.context import DocumentBatches, StepContext
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.calibration.sinks import RULE
from harness_ext.editing.edit_matrix import decompose, require_finite, require_finite_statistics
from harness_ext.editing.measured import Log, completed, searched
from harness_ext.methods import Svd, registered_methods
from harness_ext.methods.registry import sink_use
from harness_ext.model.layout import Matrix
from harness_ext.model.seeding import generator_for
from harness_ext.training.bases import Bases, all_bases
from harness_ext.training.trainer import TrainingPlan, train

if TYPE_CHECKING:
    from torch import Tensor

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


def learn(
    context: StepContext, matrices: Sequence[Matrix], labelled: Sequence[LabelledDocument], log: Log
) -> Iterator[Learned]:
    """The matrices of a step in parts, each with what its method learns of it, by `Matrix.key`; empty for a method that
    learns nothing. A part is to be edited before the next is asked for.

    log: is given rows about what took many passes.
    """
    if not labelled:
        for matrix in matrices:
            yield [matrix], {}
        return
    for matrix in matrices:
        require_finite(context.model.weights, matrix)
    for part, statistics in _learned(context, matrices, labelled, log):
        for key, values in statistics.items():
            require_finite_statistics(values, key)
        yield part, statistics


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


def _learned(
    context: StepContext, matrices: Sequence[Matrix], labelled: Sequence[LabelledDocument], log: Log
) -> Iterator[Learned]:
    step = context.step
    size = step.calibration.batch_size if step.calibration is not None else _CONTRAST_BATCH
    batches = DocumentBatches(labelled, size, context.progress.advance)
    names = registered_methods()[step.method].gathered
    if step.training is not None or step.search is not None:
        yield matrices, _found(context, matrices, batches, log)
        return
    quiet = DocumentBatches(labelled, size)
    walk = walk_through(context.model.lm, matrices, names, quiet, _decomposing(context))
    if step.sequential:
        for stage, statistics in _one_after_another(context, walk, matrices, quiet):
            statistics, trials = completed(context, stage, statistics, labelled)
            log += [{"step": context.number, **row} for row in trials]
            yield stage, statistics
        return
    learned = _at_once(context, walk, matrices, batches)
    if not registered_methods()[step.method].decides_among_all:
        yield from learned
        return
    together = {key: values for _, statistics in learned for key, values in statistics.items()}
    statistics, trials = completed(context, matrices, together, labelled)
    log += [{"step": context.number, **row} for row in trials]
    yield matrices, statistics


def _one_after_another(
    context: StepContext, walk: LayerWalk | None, matrices: Sequence[Matrix], batches: DocumentBatches
) -> Iterator[Learned]:
    """Stage by stage, each seeing the model as the edits before it left it."""
    if walk is not None and not walk.backward:
        yield from walk.as_edited(matrices, stages)
        return
    names = registered_methods()[context.step.method].gathered
    for stage in stages(matrices):
        yield stage, gather(context.model.lm, stage, names, batches, _decomposing(context))


def _at_once(
    context: StepContext, walk: LayerWalk | None, matrices: Sequence[Matrix], batches: DocumentBatches
) -> Iterator[Learned]:
    """All that is learned is of the model as it is. Statistics are kept for later recipes of the session."""
    model, step = context.model, context.step
    names = registered_methods()[step.method].gathered
    sinks = [f"{name}: sink tokens {use}" for name, use in sink_use(names).items()]
    about = [
        *(model.weights.digest(), str(batches.size), RULE),
        *sinks,
        *(repr(document) for document in batches.documents),
    ]
    if walk is not None:
        expected = sum(held_bytes(matrix.shape, names) for matrix in matrices)
        yield from model.statistics_cache.through(about, matrices, walk.as_it_is, expected)
        return

    def gather_for(group: Sequence[Matrix]) -> Mapping[str, Mapping[str, Tensor]]:
        return gather(model.lm, group, names, batches, _decomposing(context))

    context.progress.start(f"{step.method}: calibrating", len(batches.documents))
    found = model.statistics_cache.gathered(about, matrices, gather_for, lambda missing: groups(missing, names))
    context.progress.stop()
    for matrix in matrices:
        yield [matrix], {matrix.key: found[matrix.key]}


def _found(
    context: StepContext, matrices: Sequence[Matrix], batches: DocumentBatches, log: Log
) -> Mapping[str, Mapping[str, Tensor]]:
    """What is trained or searched for."""
    model, step = context.model, context.step
    training, decomposed = step.training, _decomposing(context)
    if training is not None:

        def bases(matrix: Matrix) -> Bases:
            return all_bases(decomposed(matrix), training.added_rank, generator_for(step.seed, matrix))

        context.progress.start(f"{step.method}: training", len(batches.documents) * training.epochs)
        plan = TrainingPlan(training, step.seed, bases)
        found: Mapping[str, Mapping[str, Tensor]]
        found, rows = train(model.lm, matrices, batches, plan, context.resume)
    else:
        assert step.search is not None, "one of the two is asked for"
        names = registered_methods()[step.method].gathered
        quiet = DocumentBatches(batches.documents, batches.size)
        context.progress.start(f"{step.method}: searching", step.search.rounds)
        means = gather(model.lm, matrices, names, quiet, decomposed)
        found, rows = searched(context, matrices, means, batches)
    context.progress.stop()
    log += [{"step": context.number, **row} for row in rows]
    return found


def _decomposing(context: StepContext) -> Callable[[Matrix], Svd]:
    model = context.model
    return lambda matrix: decompose(model.decomposer, model.weights.read(matrix), matrix)
