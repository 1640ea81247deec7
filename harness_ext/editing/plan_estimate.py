"""What a plan expects to take: passes over the documents, seconds and bytes, from measurements on the device that will
do it (`plan_measurement`).

How many passes a step makes is said in `passes_of` alone, and what it holds beside its edits in `held_of` alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.calibration.batches import TOKENS_WITH_GRADIENTS
from harness_ext.calibration.contrast_pairs import contrast_set
from harness_ext.editing.learning import stages
from harness_ext.editing.plan_measurement import (
    BatchSize,
    Shape,
    gathering_seconds,
    hashing_seconds_per_byte,
    host_seconds,
    measured_edit,
    product_seconds,
)
from harness_ext.methods import registered_methods
from harness_ext.methods.search_registry import registered_searches
from harness_ext.methods.statistic_registry import statistics_among
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.recipe.schema import described

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness_ext.editing.plan import Plan, PlannedMatrix
    from harness_ext.model.layout import Matrix
    from harness_ext.recipe.schema import Step

_FP32 = 4
CONTRAST_BATCH = 16
# A backward pass, without gradients of weights, as a multiple of the forward pass, its bookkeeping included: measured
# on the embedded model and SmolLM2.
_BACKWARD = 3.0
# How far the time may be off, as a factor: measured at the very shapes, carried on from smaller ones, of passes over
# documents, whose real lengths nobody knows yet, and of trials, which are given up early.
_SURE, _CARRIED_ON, _PASSES, _TRIALS = 1.5, 2.0, 2.0, 3.0
# Of a run of a layer, what a stage of it takes, which ends behind its own last matrix.
_SHARE_OF_STAGE = 0.7
# Of the passes that a search may make at most, what those on the embedded model made.
_USUAL = 0.6


class Passes(NamedTuple):
    """Over the documents of a step, in passes through the whole model. gathering: how many times the statistics of
    every matrix are gathered. at_most: whether trials may end it earlier. layer_by_layer: of the forward passes, those
    in which the model is called anew for each layer.
    """

    forward: float = 0.0
    backward: float = 0.0
    gathering: float = 0.0
    at_most: bool = False
    layer_by_layer: float = 0.0


class EstimatedStep(NamedTuple):
    """One step. editing_seconds: of the edits. calibrating_seconds: of the passes, in training and searches too. low,
    high: of both together. documents: in a pass. peak_bytes: beyond the loaded model.
    """

    step: int
    method: str
    editing_seconds: float
    calibrating_seconds: float
    low: float
    high: float
    passes: Passes
    documents: int
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.editing_seconds + self.calibrating_seconds


class PlanEstimate(NamedTuple):
    """A recipe on a model. seconds lie between low and high. hashing_seconds: of them, for the digest of the weights
    that the receipt has.
    """

    steps: tuple[EstimatedStep, ...]
    hashing_seconds: float
    seconds: float
    low: float
    high: float
    peak_bytes: int


def estimated(plan: Plan) -> PlanEstimate:
    """What a plan will take. Raises UserError where its device cannot be used."""
    steps = tuple(_estimated_step(plan, number, step) for number, step in enumerate(plan.recipe.steps))
    hashing = plan.stored_bytes * hashing_seconds_per_byte() if steps else 0.0
    return PlanEstimate(
        steps,
        hashing,
        hashing + sum(step.seconds for step in steps),
        hashing / _SURE + sum(step.low for step in steps),
        hashing * _SURE + sum(step.high for step in steps),
        max((step.peak_bytes for step in steps), default=0),
    )


def passes_of(plan: Plan, number: int, step: Step) -> Passes:
    """How often a step goes over its documents."""
    from harness_ext.search.ablation_prune import most_trials

    if step.is_search:
        found = next(search for search in plan.searches if search.step == number)
        statistics = registered_searches()[step.method].statistics
        gradients = any(item.needs_gradients for item in statistics_among(statistics))
        # What goes by second moments gathers them again for the step that it found.
        gathering = 2.0 if "input_second_moment" in statistics else float(bool(statistics))
        return Passes(found.passes, float(gradients), gathering, at_most=found.trials > 1)
    method, matrices = registered_methods()[step.method], [item.matrix for item in _own(plan, number)]
    gradients = any(item.needs_gradients for item in statistics_among(method.gathered))
    if not method.statistics:
        return Passes()
    # The loss of the documents before and after.
    around = 2.0 if step.calibration is not None else 0.0
    if step.training is not None:
        # Through two factors of full rank each, with gradients of both.
        return Passes(around + 2.0 * step.training.epochs, 2.0 * step.training.epochs)
    if step.search is not None:
        rounds = float(step.search.rounds)
        walked, removals = 2 * rounds, rounds * 2 * step.search.at_once
        return Passes(around + walked + removals, rounds, rounds, at_most=True, layer_by_layer=walked)
    tried = float(most_trials(len(matrices))) if method.tries else 0.0
    if not _is_walked(matrices):
        once = _whole_passes(plan, matrices, method.gathered, sequential=bool(step.sequential))
        return Passes(around + once + tried, once * gradients, 1.0, at_most=method.tries)
    # One of the two losses comes with the walk; gradients take a further run of each layer, and so do stages.
    walked = 1.0 + gradients
    if step.sequential and not gradients:
        walked = 1.0 + _SHARE_OF_STAGE * len(stages(matrices)) / max(1, len({matrix.layer for matrix in matrices}))
    return Passes(around / 2 + walked + tried, float(gradients), 1.0, method.tries, walked)


def _is_walked(matrices: Sequence[Matrix]) -> bool:
    """Whether a step is taken to learn layer by layer; whether the model is a plain stack, only a trial tells."""
    return all(matrix.layer is not None and not matrix.also for matrix in matrices)


def _whole_passes(plan: Plan, matrices: Sequence[Matrix], names: frozenset[str], *, sequential: bool) -> float:
    """How many passes through a model learn about matrices group by group, or one after another."""
    from harness_ext.calibration.collect import groups

    if not sequential:
        return float(sum(1 for _ in groups(matrices, names)))
    layers = max(1, plan.layers)
    return sum(((run[0].layer or 0) + 1) / layers for run in stages(matrices))


def held_of(plan: Plan, number: int, step: Step) -> int:
    """What a step holds beside its edits: statistics of a group of matrices, activations of a batch with the logits of
    its tokens, factors in training, and the states and standing edits of a search.
    """
    from harness_ext.editing.plan import held_by_search, held_by_training, held_factors

    own = _own(plan, number)
    tokens = _batch(plan, step).documents * plan.tokens
    widest = max((sum(item.matrix.shape) for item in own), default=0)
    logits = 2 * _FP32 * tokens * max((shape[0] for shape, _ in plan.products), default=0)
    learns = step.calibration is not None or step.contrast is not None
    activations = logits + 3 * _FP32 * tokens * widest if learns else 0
    statistics = held_factors(own)
    if learns and not step.is_search and step.training is None and _is_walked([item.matrix for item in own]):
        by_layer = Counter(item.matrix.layer for item in own)
        fullest = max(by_layer, key=lambda layer: by_layer[layer])
        statistics = held_factors([item for item in own if item.matrix.layer == fullest])
        states = _documents(step) * plan.tokens * min(shape[1] for shape, _ in plan.products) * _FP32
        activations += states * (plan.layers + 1 if passes_of(plan, number, step).backward else 2)
    return activations + statistics + held_by_training(step, own) + held_by_search(step, own)


def _own(plan: Plan, number: int) -> list[PlannedMatrix]:
    return [item for item in plan.matrices if item.step == number]


def _documents(step: Step) -> int:
    if step.calibration is not None:
        return step.calibration.samples
    return len(contrast_set(step.contrast).documents) if step.contrast is not None else 0


def _batch(plan: Plan, step: Step) -> BatchSize:
    size = step.calibration.batch_size if step.calibration is not None else CONTRAST_BATCH
    fits = max(1, TOKENS_WITH_GRADIENTS // plan.tokens)
    return BatchSize(min(size, fits, max(1, _documents(step))), plan.tokens)


def _estimated_step(plan: Plan, number: int, step: Step) -> EstimatedStep:
    own = _own(plan, number)
    kinds = Counter((item.matrix.shape, item.dtype) for item in own)
    first = {item.matrix.shape: item.matrix.key for item in own}
    edit, times = _edit_of(step)
    edits = {kind: measured_edit(edit, first[kind[0]], *kind, plan.device) for kind in kinds}
    editing = times * sum(count * edits[kind].seconds for kind, count in kinds.items())
    passes = passes_of(plan, number, step)
    calibrating = _calibrating_seconds(plan, step, kinds, passes) * (_USUAL if passes.at_most else 1)
    sure = _SURE if all(item.exact for item in edits.values()) else _CARRIED_ON
    by_passes = _TRIALS if passes.at_most else _PASSES
    return EstimatedStep(
        step=number,
        method=step.method,
        editing_seconds=editing,
        calibrating_seconds=calibrating,
        low=editing / sure + calibrating / by_passes,
        high=editing * sure + calibrating * by_passes,
        passes=passes,
        documents=_documents(step),
        peak_bytes=round(max((item.bytes for item in edits.values()), default=0)) + held_of(plan, number, step),
    )


def _edit_of(step: Step) -> tuple[Step, int]:
    """The step whose edit of every matrix takes as long as what a step does to each, and how many times. A search
    decomposes what it tries; one that goes by second moments does so by them, and again for what it found.
    """
    if not step.is_search:
        return step, 1
    by_moments = "input_second_moment" in registered_searches()[step.method].statistics
    return parse_recipe("svd-llm" if by_moments else "svd").steps[0], 2 if by_moments else 1


def _width(plan: Plan) -> int:
    """The size that most of the model's linear layers have on a side."""
    sizes = Counter(size for shape, count in plan.products for size in shape for _ in range(count))
    return sizes.most_common(1)[0][0] if sizes else 1


def _calibrating_seconds(plan: Plan, step: Step, kinds: Counter[tuple[Shape, str]], passes: Passes) -> float:
    documents = _documents(step)
    if not documents:
        return 0.0
    batch = _batch(plan, step)
    batches = -(-documents // batch.documents)
    host = host_seconds(_width(plan), batch, plan.dtype, plan.device)
    forward = (
        host.once
        + plan.layers * host.layer
        + sum(
            count * product_seconds(shape, batch.documents * batch.tokens, plan.dtype, plan.device)
            for shape, count in plan.products
        )
    )
    method = described(step.method)
    names = frozenset(method.statistics) if step.is_search else registered_methods()[step.method].gathered
    gathering = (
        sum(count * gathering_seconds(names, shape, batch, plan.device) for (shape, _), count in kinds.items())
        if names and passes.gathering
        else 0.0
    )
    calls = passes.layer_by_layer * plan.layers * host.once
    passing = batches * (
        calls + forward * (passes.forward + _BACKWARD * passes.backward) + gathering * passes.gathering
    )
    # A search and a training turn their documents into tokens once.
    readings = 1.0 if step.is_search or step.training is not None else min(passes.forward, 3.0)
    return passing + documents * host.document * readings
