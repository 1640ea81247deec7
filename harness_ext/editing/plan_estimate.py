"""What a plan expects to take: passes over the documents, seconds and bytes, from measurements on the device that will
do it (`plan_measurement`).

How many passes a step makes is said in `plan_workload` alone, what it holds beside its edits in `plan_memory` alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, get_args

from harness_ext.editing.learning import stages
from harness_ext.editing.plan_measurement import MeasuredEdit, bytes_on_trial, measured_edit
from harness_ext.editing.plan_memory import held_of
from harness_ext.editing.plan_passes import (
    BatchSize,
    backward_seconds,
    forward_seconds,
    outputs_seconds,
    product_seconds,
    receipt_seconds,
    scoring_seconds,
    statistics_seconds,
    tokenising_seconds,
    watching_seconds,
)
from harness_ext.editing.plan_workload import (
    ANSWER,
    AT_ONCE,
    Passes,
    batch_of,
    batches_of_search,
    documents_of,
    matrices_of,
    passes_of,
    statistics_names,
    width_of,
)
from harness_ext.methods import registered_methods
from harness_ext.methods.statistic_registry import statistics_among
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from harness_ext.recipe.schema import search_of
from harness_ext.search.factorisations import Factorisation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness_ext.editing.plan import Plan, PlannedSearch
    from harness_ext.editing.plan_matrices import PlannedMatrix
    from harness_ext.editing.plan_trials import Shape
    from harness_ext.recipe.schema import Step

# The batches by which a model is tried as a stack of layers.
_PROBES, _PROBE_DOCUMENTS, _PROBE_TOKENS, _PASSES_OF_PROBE = 2, 2, 24, 3
# How far the time may be off, as a factor: measured at the very shapes, carried on from smaller ones, of passes over
# documents, whose real lengths nobody knows yet, and of trials, which are given up early.
_SURE, _CARRIED_ON, _PASSES, _TRIALS = 1.5, 2.0, 2.0, 3.0
# Of the passes that trials may make at most, what those on the embedded model made: of a search, and of one that goes
# in rounds.
_USUAL, _USUAL_IN_ROUNDS = 0.6, 0.5
# Of full rank, what alternatives have: the mean of LASER's grid.
_USUAL_RANK = 0.4


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
    """A recipe on a model. seconds lie between low and high. hashing_seconds: of them, for the receipt, which has a
    digest of the weights.
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
    hashing = receipt_seconds(plan.stored_bytes, plan.tensors) if steps else 0.0
    return PlanEstimate(
        steps,
        hashing,
        hashing + sum(step.seconds for step in steps),
        hashing / _SURE + sum(step.low for step in steps),
        hashing * _SURE + sum(step.high for step in steps),
        max((step.peak_bytes for step in steps), default=0),
    )


def _estimated_step(plan: Plan, number: int, step: Step) -> EstimatedStep:
    own = matrices_of(plan, number)
    kinds = Counter((item.matrix.role, item.matrix.shape, item.dtype) for item in own)
    first = {item.matrix.shape: item.matrix.key for item in own}
    held = held_of(plan, number, step)
    edits, editing, peak = [], 0.0, float(held.kept + held.learning)
    for (role, shape, dtype), count in kinds.items():
        edit, times = edit_of(step, role)
        edits.append(measured_edit(edit, first[shape], shape, dtype, plan.device, _tokens(plan, step)))
        editing += times * count * edits[-1].seconds
        # The step that a search finds learns and edits after it.
        beneath = held_of(plan, number, edit) if step.is_search else held
        peak = max(peak, held.kept + edits[-1].bytes, beneath.kept + max(beneath.learning, edits[-1].bytes))
    peak = max([peak, *(held.kept + size for size in _tried_alone(plan, step, own))])
    beside = [*_decomposed_together(plan, step, own), *_written_beside(plan, own)]
    editing += sum(one.seconds for one in beside)
    passes = passes_of(plan, number, step)
    calibrating = _calibrating_seconds(plan, number, step, passes)
    sure = _SURE if all(item.exact for item in (*edits, *beside)) else _CARRIED_ON
    by_passes = _TRIALS if passes.at_most else _PASSES
    return EstimatedStep(
        step=number,
        method=step.method,
        editing_seconds=editing,
        calibrating_seconds=calibrating,
        low=editing / sure + calibrating / by_passes,
        high=editing * sure + calibrating * by_passes,
        passes=passes,
        documents=documents_of(step),
        peak_bytes=round(max([peak, *(held.kept + item.bytes for item in beside)])),
    )


def edit_of(step: Step, role: str | None = None) -> tuple[Step, int]:
    """The step whose edit of a matrix (of this role, where it is known) takes what a step does to it, and how many
    times. A search decomposes what it tries; one that goes by second moments does so by them, and again for what it
    found. One for components leaves the edits to the steps that it finds.
    """
    if not step.is_search:
        return step, 1
    if found := search_of(step).finds.get(role or ""):
        return _by_default(step, found), 1
    by_moments = "input_second_moment" in search_of(step).statistics
    times = 2 * step.parameters.get("stages", 1) if by_moments else 1
    asked = step.parameters.get("factorisation", "feature_space")
    if asked != "feature_space":
        return _by_default(step, asked, keep={"param_fraction": 0.8}), times
    usual = parse_recipe("svd-llm" if by_moments else "svd").steps[0]
    return usual.model_copy(update={"calibration": step.calibration}) if by_moments else usual, times


def _by_default(search: Step, method: str, **given: object) -> Step:
    """A step of this method that learns from a search's documents, with these settings and its defaults for others."""
    wanted = {"method": method, "matrices": ["all"], "calibration": {"task": "evaluated"}, **given}
    made = recipe_from({"name": method, "steps": [wanted]}, origin=method).steps[0]
    return made.model_copy(update={"calibration": search.calibration})


def _tokens(plan: Plan, step: Step) -> int | None:
    """That a step learns from; None where it learns nothing."""
    return documents_of(step) * plan.tokens or None


def _tried_alone(plan: Plan, step: Step, own: Sequence[PlannedMatrix]) -> list[float]:
    """The bytes in which a search of ranks decomposes and tries each kind of matrix: those of a factorisation."""
    asked = step.parameters.get("factorisation")
    if not step.is_search or asked not in get_args(Factorisation):
        return []
    kinds = {(item.matrix.shape, item.dtype) for item in own}
    return [bytes_on_trial(asked, shape, dtype, plan.device, _tokens(plan, step)) for shape, dtype in kinds]


def _decomposed_together(plan: Plan, step: Step, own: Sequence[PlannedMatrix]) -> list[MeasuredEdit]:
    """What takes as long as to decompose each group of matrices that share a factor, which their edits then only write:
    the edit by second moments of one matrix of the shape of all on top of each other.
    """
    if step.is_search or not registered_methods()[step.method].shares:
        return []
    from harness_ext.methods.basis_sharing import groups_of

    dtypes, edit = {item.matrix.key: item.dtype for item in own}, parse_recipe("svd-llm").steps[0]
    groups = groups_of([item.matrix for item in own], step.parameters["share"], step.parameters["layers_in_group"])
    shapes = [(len(group) * group[0].shape[0], group[0].shape[1]) for group in groups]
    tokens = _tokens(plan, step)
    return [
        measured_edit(edit, group[0].key, shape, dtypes[group[0].key], plan.device, tokens)
        for group, shape in zip(groups, shapes, strict=True)
    ]


def _written_beside(plan: Plan, own: Sequence[PlannedMatrix]) -> list[MeasuredEdit]:
    """What takes as long as to write, and to hash, all matrices of each component, of which the method's edit was
    measured alone: the edit of one that stays as it is.
    """
    edit = parse_recipe("identity").steps[0]
    return [
        measured_edit(edit, item.matrix.key, item.matrix.shape, item.dtype, plan.device)
        for item in own
        for _ in item.lost
    ]


class _Pass(NamedTuple):
    """One batch through the model: what is done once, and in all layers together."""

    once: float
    layers: float

    @property
    def whole(self) -> float:
        return self.once + self.layers


def _forward(plan: Plan, batch: BatchSize) -> _Pass:
    """Up to the output head."""
    host = forward_seconds(width_of(plan), batch, plan.dtype, plan.device)
    return _Pass(host.once, plan.layers * host.layer + _products(plan, batch))


def _backward(plan: Plan, batch: BatchSize) -> _Pass:
    """With the output head, which makes logits of all tokens where gradients are wanted."""
    host = backward_seconds(width_of(plan), batch, plan.dtype, plan.device)
    head = 2 * product_seconds(_head(plan), batch.of_all, plan.dtype, plan.device)
    return _Pass(host.once + head, plan.layers * host.layer + _products(plan, batch))


def _products(plan: Plan, batch: BatchSize) -> float:
    """All linear layers but the output head."""
    return sum(
        (count - (shape == _head(plan))) * product_seconds(shape, batch.of_all, plan.dtype, plan.device)
        for shape, count in plan.products
    )


def _head(plan: Plan) -> Shape:
    return plan.vocabulary, width_of(plan)


def _answers(plan: Plan, batch: BatchSize) -> float:
    """What becomes of the hidden states at the answers of a batch: logits, and the loss."""
    answers = ANSWER * batch.documents
    return product_seconds(_head(plan), answers, plan.dtype, plan.device) + scoring_seconds(
        plan.vocabulary, answers, plan.dtype, plan.device
    )


def _calibrating_seconds(plan: Plan, number: int, step: Step, passes: Passes) -> float:
    documents = documents_of(step)
    if not documents:
        return 0.0
    tokenising = documents * tokenising_seconds(plan.tokens)
    if step.is_search:
        found = next(search for search in plan.searches if search.step == number)
        gathered = _walking_seconds(plan, number, step, _gathering_of_search(step, passes)) if passes.gathering else 0.0
        return gathered + _searching_seconds(plan, step, found) + tokenising * (1 + passes.gathering)
    # A training turns its documents into tokens once.
    walks = float(passes.gathering > 0)
    readings = 1.0 if step.trains else walks + max(0.0, passes.forward - passes.layer_by_layer)
    usual = _USUAL_IN_ROUNDS if step.search is not None else 1.0
    return usual * (_walking_seconds(plan, number, step, passes) + tokenising * readings)


def _gathering_of_search(step: Step, passes: Passes) -> Passes:
    """Of the passes of a search, those that gather statistics: once more with gradients, and for components that are
    learned.
    """
    walks = passes.gathering + passes.backward * (2 if passes.gathering > 1 else 1)
    return Passes(walks, passes.backward, passes.gathering, layer_by_layer=walks)


def _walking_seconds(plan: Plan, number: int, step: Step, passes: Passes) -> float:
    batch = batch_of(plan, step)
    batches = -(-documents_of(step) // batch.documents)
    forward = _forward(plan, batch)
    seconds = forward.whole * passes.forward + forward.once * plan.layers * passes.layer_by_layer
    seconds += _answers(plan, batch) * max(1.0, passes.forward - passes.layer_by_layer)
    if passes.backward:
        seconds += _backward(plan, batch).whole * passes.backward
    if passes.gathering:
        seconds += _gathering_seconds(plan, number, step, batch) * passes.gathering
    return batches * seconds + (_probing_seconds(plan) if passes.layer_by_layer else 0.0)


def _probing_seconds(plan: Plan) -> float:
    """The trial that shows whether a model is a plain stack of layers."""
    probe = _forward(plan, BatchSize(_PROBE_DOCUMENTS, min(_PROBE_TOKENS, plan.tokens)))
    return _PROBES * (_PASSES_OF_PROBE * probe.whole + plan.layers * probe.once)


def _gathering_seconds(plan: Plan, number: int, step: Step, batch: BatchSize) -> float:
    """What the statistics of all matrices take, for one batch. Modules that are handed the same inputs share sums that
    are of inputs alone.
    """
    matrices = [item.matrix for item in matrices_of(plan, number)]
    names, about = statistics_names(step), (batch, plan.dtype, plan.device)
    modules = {matrix.module: matrix.shape[1] for matrix in matrices}
    apart = any(item.needs_gradients or item.needs_components for item in statistics_among(names))
    summed = matrices if apart else [run[0] for run in stages(matrices)]
    return (
        sum(watching_seconds(width, *about) for width in modules.values())
        + sum(outputs_seconds(matrix.shape[0], *about) for matrix in matrices)
        + sum(statistics_seconds(names, matrix.shape, *about) for matrix in summed)
    )


def _searching_seconds(plan: Plan, step: Step, found: PlannedSearch) -> float:
    """The model as it is, what enters its layers, and as it becomes; and trials, of which each runs the layers from its
    matrix on.
    """
    plain, small, copies = batches_of_search(step, plan.tokens, min(AT_ONCE, found.trials))
    batches = -(-found.documents // small.documents)
    tried = BatchSize(small.documents * copies, small.tokens)
    whole, part, many = (_forward(plan, batch) for batch in (plain, small, tried))
    before = -(-found.documents // plain.documents) * (whole.whole + _answers(plan, plain))
    around = 2 * batches * (part.whole + _answers(plan, small))
    calls = found.trials / copies * (many.once + _answers(plan, tried))
    trials = batches * (calls + found.tried / copies * many.layers)
    shapes = Counter(item.matrix.shape for item in matrices_of(plan, found.step))
    return (
        before + around + _USUAL * trials + _checking_seconds(plan, found) + _alternatives_seconds(plan, found, shapes)
    )


def _checking_seconds(plan: Plan, found: PlannedSearch) -> float:
    """Trials of two alternatives on two documents, from the first layer on and from the middle: of every kind of
    matrix, which stand for those of other layers.
    """
    kinds = {item.matrix.role for item in matrices_of(plan, found.step)} if found.tried else set()
    probe = BatchSize(2 * _PROBE_DOCUMENTS, plan.tokens)
    return len(kinds) * (_forward(plan, probe).whole + _answers(plan, probe))


def _alternatives_seconds(plan: Plan, found: PlannedSearch, shapes: Counter[Shape]) -> float:
    """Weights of lower rank, multiplied out from factors."""
    each = sum(
        count * product_seconds(shape, max(1, int(_USUAL_RANK * min(shape))), "float32", plan.device)
        for shape, count in shapes.items()
    )
    return each / max(1, shapes.total()) * found.trials if found.tried else 0.0
