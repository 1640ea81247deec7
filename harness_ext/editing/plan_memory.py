"""What a step of a plan holds in memory beside its edits, in bytes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.editing.plan_workload import (
    ANSWER,
    batch_of,
    batches_of_search,
    documents_of,
    is_walked,
    matrices_of,
    passes_of,
    statistics_names,
    width_of,
)
from harness_ext.editing.sharing import held_by_refit
from harness_ext.methods import registered_methods
from harness_ext.methods.basis_sharing import groups_of
from harness_ext.methods.search_registry import registered_searches
from harness_ext.methods.statistic_registry import statistics_among
from harness_ext.recipe.schema import statistics_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness_ext.editing.plan import Plan
    from harness_ext.editing.plan_matrices import PlannedMatrix
    from harness_ext.recipe.schema import Step

_FP32, _FP64 = 4, 8


class Held(NamedTuple):
    """Bytes that a step holds beside its edits: kept while matrices are edited, and those while it learns alone."""

    kept: int
    learning: int


def held_of(plan: Plan, number: int, step: Step) -> Held:
    """Kept are statistics of a group of matrices, states of the documents, factors in training, the standing edits of a
    search, and the factors that stand for matrices; activations of a batch, with the logits that are made of it, are
    let go before the edits.
    """
    own: Sequence[PlannedMatrix] = matrices_of(plan, number)
    factors = _held_as_factors(plan, step, own)
    if not documents_of(step) or not own:
        return Held(factors, 0)
    widest = max(sum(item.matrix.shape) for item in own)
    kept = _held_by_training(step, _of_fullest_layer(own) if step.trains_blocks else own)
    kept += _held_by_search(step, own) + held_by_refit(step, [item.matrix for item in own]) + factors
    learning = 0
    if not step.is_search or statistics_names(step):
        passes, batch = passes_of(plan, number, step), batch_of(plan, step)
        of_logits = batch.of_all if passes.backward and not step.trains_blocks else ANSWER * batch.documents
        learning = 2 * _FP32 * of_logits * plan.vocabulary + 2 * _FP32 * batch.of_all * widest
        # A backward pass needs what each layer that it goes through made.
        made = _FP32 * batch.of_all * sum(count * sum(shape) for shape, count in plan.products)
        if passes.backward:
            learning += made if step.trains and not step.trains_blocks else made // max(1, plan.layers)
        if not step.trains and is_walked([item.matrix for item in own]):
            states = documents_of(step) * plan.tokens * width_of(plan) * _FP32
            compares = not step.is_search and registered_methods()[step.method].compares_with_unedited
            kept += states * (plan.layers + 1 if passes.backward or step.is_search else 2 + 2 * compares)
            kept += compares * _layer_bytes(plan, own[0].element_bytes)
            own = _learned_together(step, own)
        if step.trains_blocks:
            # Those of the edited model and of the unedited one, and each once more as it enters.
            kept += 4 * documents_of(step) * plan.tokens * width_of(plan) * _FP32
        # A search gathers one after another, and lets go of each, but those of a factorisation together.
        apart = step.is_search and not _decomposes_alone(step)
        names = [frozenset({name}) for name in statistics_of(step)] if apart else [statistics_of(step)]
        kept += max((_held_factors(own, together) for together in names), default=0)
        if not apart:
            # What is kept on scratch disk is copied as it is written and read: the largest is held twice for a moment.
            learning += _largest_statistic(own, statistics_of(step))
    if step.is_search:
        # Statistics are let go before the trials, but by a search that goes from the last layer to the first, and by
        # one that tries each matrix as soon as it is decomposed.
        standing = kept if _held_by_search(step, own) or _decomposes_alone(step) else factors
        learning = max(kept - standing + learning, _held_by_trials(plan, number, step, widest))
        kept = standing
    return Held(kept, learning)


def _of_fullest_layer(own: Sequence[PlannedMatrix]) -> list[PlannedMatrix]:
    by_layer = Counter(item.matrix.layer for item in own)
    fullest = max(by_layer, key=lambda layer: by_layer[layer])
    return [item for item in own if item.matrix.layer == fullest]


def _learned_together(step: Step, own: Sequence[PlannedMatrix]) -> Sequence[PlannedMatrix]:
    """The matrices whose statistics a walk through the layers holds at once: those of a layer, and of a step whose
    layers share a factor also those that wait for the last of their group. Of a search all, but where it decomposes
    them layer by layer.
    """
    if step.is_search and not _decomposes_alone(step):
        return own
    if step.is_search or not registered_methods()[step.method].shares:
        return _of_fullest_layer(own)
    settings, found = step.parameters, {item.matrix.key: item for item in own}
    groups = groups_of([item.matrix for item in own], settings["share"], settings["layers_in_group"])
    last = {matrix.key: max(other.layer or 0 for other in group) for group in groups for matrix in group}
    waiting = (
        [found[key] for key, until in last.items() if (found[key].matrix.layer or 0) <= layer <= until]
        for layer in sorted({item.matrix.layer or 0 for item in own})
    )
    return max(waiting, key=lambda some: _held_factors(some, statistics_of(step)))


def _decomposes_alone(step: Step) -> bool:
    """Whether a search decomposes its matrices by a factorisation, one after another as they are learned about."""
    return step.is_search and registered_searches()[step.method].statistics_by is not None


def _layer_bytes(plan: Plan, element_bytes: int) -> int:
    """A layer in memory: of the products of the whole model, those that every layer has."""
    return element_bytes * sum(count // max(1, plan.layers) * shape[0] * shape[1] for shape, count in plan.products)


def _held_as_factors(plan: Plan, step: Step, own: Sequence[PlannedMatrix]) -> int:
    """What stands for matrices in a factored step; at most, where their ranks are not known yet. On the CPU it comes
    on top: a checkpoint is mapped there as a whole, and a matrix of it that is let go gives nothing back.
    """
    if not step.factored or plan.device != "cpu":
        return 0
    return sum(item.parameters_after * item.element_bytes for item in own if not item.stays_dense)


def _largest_statistic(matrices: Sequence[PlannedMatrix], names: frozenset[str]) -> int:
    """Of these matrices, in fp64."""
    chosen = statistics_among(names)
    return max((_FP64 * item.numbers(one.matrix.shape) for one in matrices for item in chosen), default=0)


def _held_by_trials(plan: Plan, number: int, step: Step, widest: int) -> int:
    """Of the largest batch activations and logits at its answers, and the states of all documents that enter layers."""
    from harness_ext.search.suffix_replay import STATE_BYTES

    found = next(search for search in plan.searches if search.step == number)
    search = registered_searches()[step.method]
    alternatives = max(search.trials([item.matrix.shape], step.parameters) for item in matrices_of(plan, number))
    plain, small, copies = batches_of_search(step, plan.tokens, alternatives)
    answers = ANSWER * max(plain.documents, small.documents * copies)
    states = min(STATE_BYTES, plan.layers * found.documents * plan.tokens * width_of(plan) * _FP32)
    tokens = max(plain.of_all, small.of_all * copies)
    edits = 0
    if search.tries_plans(step.parameters):
        # Each multiplied out in fp32, and as the model has it where that is not the same.
        edits = sum(
            item.parameters_before * (_FP32 + (item.element_bytes if item.element_bytes != _FP32 else 0))
            for item in matrices_of(plan, number)
        )
    return 3 * _FP32 * tokens * widest // 2 + 2 * _FP32 * answers * plan.vocabulary + states + edits


def _held_factors(matrices: Sequence[PlannedMatrix], names: frozenset[str]) -> int:
    """What a pass over the documents holds for these statistics, of a group of matrices."""
    from harness_ext.calibration.collect import FACTOR_BYTES, held_bytes

    held: Mapping[str, int] = {item.matrix.key: held_bytes(item.matrix.shape, names) for item in matrices}
    return min(max(FACTOR_BYTES, max(held.values(), default=0)), sum(held.values()))


def _held_by_training(step: Step, own: Sequence[PlannedMatrix]) -> int:
    """What a step that trains its matrices holds, activations aside: two factors of each in fp32, their gradients and
    two moments each; nothing where it does not train.
    """
    if not step.trains:
        return 0
    added = step.training.added_rank if step.training is not None else 0
    return sum(4 * _FP32 * (min(item.matrix.shape) + added) * sum(item.matrix.shape) for item in own)


def _held_by_search(step: Step, own: Sequence[PlannedMatrix]) -> int:
    """The edits of a search that stand while others are tried, and the factors that it keeps of all its matrices: in
    fp32, and no more numbers than the matrices have.
    """
    if not step.is_search:
        return 0
    search = registered_searches()[step.method]
    factors = _FP32 * search.tries_plans(step.parameters)
    return sum(item.parameters_before * (search.takes_on * item.element_bytes + factors) for item in own)
