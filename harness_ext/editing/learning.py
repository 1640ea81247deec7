"""What a step learns of its matrices before it edits them, and in which order: all of a layer and then the next where
that suffices, so that a model runs through the calibration documents once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness_ext.calibration.by_layer import LayerWalk, Learned, gathered, walk_through
from harness_ext.calibration.collect import gather, needs_originals, not_finite
from harness_ext.calibration.context import DocumentBatches, StepContext
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.calibration.kept import about_losses, about_statistics, by_whole_passes, walked
from harness_ext.editing.edit_matrix import decompose, require_finite, require_finite_statistics
from harness_ext.editing.measured import (
    Log,
    StepLosses,
    TaskLoss,
    completed,
    loss_of_all,
    losses_by_task,
    means_by_task,
    searched,
)
from harness_ext.editing.prime_units import with_prime_units
from harness_ext.editing.sharing import in_groups, in_refitted_groups, refits_groups
from harness_ext.errors import UserError
from harness_ext.methods import Svd, registered_methods
from harness_ext.model.components import feeders_of
from harness_ext.model.layout import Matrix
from harness_ext.model.seeding import generator_for
from harness_ext.recipe.schema import method_of
from harness_ext.recipe.settings import Healing
from harness_ext.search.policy_masks import MaskSearch, units_among
from harness_ext.training.bases import Bases, all_bases
from harness_ext.training.block_healing import healed_by_blocks
from harness_ext.training.healing import HealedMatrix, HealingPlan, from_dense, from_factors, heal_matrices, is_low_rank
from harness_ext.training.trainer import Trained, TrainingPlan, train

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


@dataclass(frozen=True)
class LearningRecord:
    """What learning tells besides. log: is given rows about what took many passes. losses: are given those that it
    comes by, and those before the edits in any case; None where none are wanted.
    """

    log: Log
    losses: StepLosses | None


def learn(
    context: StepContext, matrices: Sequence[Matrix], labelled: Sequence[LabelledDocument], record: LearningRecord
) -> Iterator[Learned]:
    """The matrices of a step in parts, each with what its method learns of it, by `Matrix.key`; empty for a method that
    learns nothing. A part is to be edited before the next is asked for.

    Raises VariantFailed where a weight, what was learned, or the loss of the documents is not finite.
    """
    if not labelled:
        for matrix in matrices:
            yield [matrix], {}
        return
    kind = registered_methods()[context.step.method].component
    for matrix in matrices:
        feeding = () if kind is None else feeders_of(context.model.weights.layout, matrix, kind).values()
        for one in (matrix, *feeding):
            require_finite(context.model.weights, one)
    for part, statistics in _learned(context, matrices, labelled, record):
        require_finite_statistics(statistics)
        yield part, statistics
        del statistics


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
    context: StepContext, matrices: Sequence[Matrix], labelled: Sequence[LabelledDocument], record: LearningRecord
) -> Iterator[Learned]:
    step = context.step
    size = step.calibration.batch_size if step.calibration is not None else _CONTRAST_BATCH
    batches = DocumentBatches(labelled, size, progress=context.progress)
    method = method_of(step)
    if step.healing is not None and step.trains_blocks:
        _measure_before(context, labelled, record)
        yield from _healed_by_blocks(context, step.healing, matrices, batches, record.log)
        return
    if step.trains or step.search is not None or step.masks is not None:
        _measure_before(context, labelled, record)
        yield matrices, _found(context, matrices, batches, record.log)
        return
    walk = _walk(context, matrices, method.gathered, batches)
    if step.sequential:
        _measure_before(context, labelled, record)
        for stage, statistics in _one_after_another(context, walk, matrices, batches):
            yield stage, _completed(context, stage, statistics, labelled, record)
            del statistics
        if walk is not None and walk.losses and record.losses is not None:
            record.losses.after = means_by_task(walk.losses)
        return
    learned = _at_once(context, walk, matrices, batches, record)
    if method.shares:
        shared = in_groups(context, learned, matrices)
        if refits_groups(step):
            shared = in_refitted_groups(context, shared, _of_the_edited(context, walk, matrices, batches), matrices)
        yield from shared
        return
    if method.primes:
        yield from with_prime_units(context, learned, matrices)
        return
    if not method.decides_among_all:
        yield from learned
        return
    together = {key: values for _, statistics in learned for key, values in statistics.items()}
    yield matrices, _completed(context, matrices, together, labelled, record)


def _walk(
    context: StepContext, matrices: Sequence[Matrix], names: frozenset[str], documents: DocumentBatches
) -> LayerWalk | None:
    model = context.model
    walk = walk_through(model.lm, matrices, names, documents, _decomposing(context))
    if walk is None and model.layers_on is not None:
        raise UserError(
            f"the layers of this model hand each other more than hidden states, so they cannot go to {model.layers_on}"
            " one at a time: leave --layers_on out"
        )
    return walk if walk is None else replace(walk, layers_on=model.layers_on)


def _completed(
    context: StepContext,
    matrices: Sequence[Matrix],
    statistics: Mapping[str, Mapping[str, Tensor]],
    labelled: Sequence[LabelledDocument],
    record: LearningRecord,
) -> Mapping[str, Mapping[str, Tensor]]:
    found, trials = completed(context, matrices, statistics, labelled)
    record.log.extend({"step": context.number, **row} for row in trials)
    return found


def _measure_before(context: StepContext, labelled: Sequence[LabelledDocument], record: LearningRecord) -> None:
    """The losses of the model as it is, measured once a session."""
    if record.losses is None:
        return
    known, name = context.model.statistics_cache.losses, about_losses(context.model, labelled)
    if name not in known:
        known[name] = losses_by_task(context, labelled)
    record.losses.before = _finite(context, known[name])


def _finite(context: StepContext, losses: Mapping[str, TaskLoss]) -> Mapping[str, TaskLoss]:
    import torch

    if loss_of_all(losses) is None:
        raise not_finite(in_float64=context.model.lm.model.dtype == torch.float64)
    return losses


def _one_after_another(
    context: StepContext, walk: LayerWalk | None, matrices: Sequence[Matrix], batches: DocumentBatches
) -> Iterator[Learned]:
    """Stage by stage, each seeing the model as the edits before it left it."""
    if walk is not None and not walk.backward:
        yield from walk.as_edited(matrices, stages)
        return
    names = method_of(context.step).gathered
    if needs_originals(names):
        raise UserError(
            f"{context.step.method} compares each layer with the unedited model's, and the layers of this model hand"
            " each other more than hidden states, or share weights: choose a method such as svd-llm or sfsd"
        )
    for stage in stages(matrices):
        yield stage, gather(context.model.lm, stage, names, batches, _decomposing(context))


def _at_once(
    context: StepContext,
    walk: LayerWalk | None,
    matrices: Sequence[Matrix],
    batches: DocumentBatches,
    record: LearningRecord,
) -> Iterator[Learned]:
    """All that is learned is of the model as it is. Statistics are kept for later recipes of the session."""
    model, names = context.model, method_of(context.step).gathered
    losses, about = about_losses(model, batches.documents), about_statistics(model, names, batches)
    if walk is None or not model.statistics_cache.lacks(about, matrices):
        _measure_before(context, batches.documents, record)
    if walk is None:
        yield from by_whole_passes(model, matrices, names, batches, _decomposing(context))
        return
    yield from walked(model, walk, matrices, about)
    if record.losses is not None and record.losses.before is None:
        # Walked to its end, which has the loss besides.
        model.statistics_cache.losses[losses] = means_by_task(walk.losses)
        record.losses.before = _finite(context, model.statistics_cache.losses[losses])


def _of_the_edited(
    context: StepContext, walk: LayerWalk | None, matrices: Sequence[Matrix], batches: DocumentBatches
) -> Iterator[Learned]:
    """All that is learned is of the model as it is when this begins, in the middle of a step: nothing is kept of it."""
    if walk is not None:
        yield from replace(walk, losses={}).as_it_is(matrices)
        return
    found = gather(context.model.lm, matrices, method_of(context.step).gathered, batches, _decomposing(context))
    for matrix in matrices:
        yield [matrix], {matrix.key: found.get(matrix.key, {})}


def _found(
    context: StepContext, matrices: Sequence[Matrix], batches: DocumentBatches, log: Log
) -> Mapping[str, Mapping[str, Tensor]]:
    """What is trained or searched for, by edits or by masks."""
    model, step = context.model, context.step
    training, decomposed = step.training, _decomposing(context)
    if training is not None:

        def bases(matrix: Matrix) -> Bases:
            return all_bases(decomposed(matrix), training.added_rank, generator_for(step.seed, matrix))

        plan = TrainingPlan(training, step.seed, bases)
        found: Mapping[str, Mapping[str, Tensor]]
        with context.progress.stage("training", len(batches.documents) * training.epochs, "documents") as stage:
            told = replace(batches, advance=stage.advance)
            found, rows = train(model.lm, matrices, told, plan, context.resume)
    elif step.healing is not None:
        found, rows = _healed(context, step.healing, matrices, batches)
    elif step.masks is not None:
        units = units_among(model.weights.layout, matrices, step.masks)
        with context.progress.stage("learning masks", step.masks.steps, "steps") as stage:
            search = MaskSearch(context, units, replace(batches, advance=stage.advance))
            found, rows = search.learn(), search.log
    else:
        assert step.search is not None, "one of them is asked for"
        names = method_of(step).gathered
        means = gathered(model.lm, matrices, names, batches, decomposed)
        with context.progress.stage("searching", step.search.rounds, "rounds at most") as stage:
            found, rows = searched(context, matrices, means, replace(batches, advance=stage.advance))
    log += [{"step": context.number, **row} for row in rows]
    return found


def _healed(context: StepContext, settings: Healing, matrices: Sequence[Matrix], batches: DocumentBatches) -> Trained:
    """What training makes of matrices that earlier steps edited."""
    plan = _healing_plan(context, settings)
    count = settings.steps * min(batches.size, len(batches.documents))
    with context.progress.stage("healing", count, "documents") as stage:
        return heal_matrices(context.model.lm, matrices, replace(batches, advance=stage.advance), plan, context.resume)


def _healed_by_blocks(
    context: StepContext, settings: Healing, matrices: Sequence[Matrix], batches: DocumentBatches, log: Log
) -> Iterator[Learned]:
    model = context.model
    walk = _walk(context, matrices, frozenset(), batches)
    if walk is None:
        raise UserError(
            "heal.loss=blocks trains one layer after another, and the layers of this model hand each other more than"
            " hidden states, or share weights, or hold not all that was edited: set heal.loss=text"
        )
    layers = walk.stack.layers
    place = next(name for name, module in model.lm.model.named_modules() if module is layers)
    healed = healed_by_blocks(
        walk,
        matrices,
        batches,
        _healing_plan(context, settings),
        lambda layer: model.weights.unedited(f"{place}.{layer}"),
        context.resume,
    )
    for learned, row in healed:
        log.append({"step": context.number, **row})
        yield learned


def _healing_plan(context: StepContext, settings: Healing) -> HealingPlan:
    model, decomposed = context.model, _decomposing(context)

    def start(matrix: Matrix) -> HealedMatrix:
        rank, generator = context.ranks[matrix.key], generator_for(context.step.seed, matrix)
        if is_low_rank(matrix.shape, rank):
            return from_factors(decomposed(matrix), rank, settings, generator)
        return from_dense(model.weights.values(matrix), settings, generator)

    return HealingPlan(settings, context.step.seed, start)


def _decomposing(context: StepContext) -> Callable[[Matrix], Svd]:
    model = context.model
    return lambda matrix: decompose(model.decomposer, model.weights.read(matrix), matrix)
