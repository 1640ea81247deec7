"""What a plan expects to take: passes over the documents, seconds and bytes, from measurements on the device that will
do it (`plan_measurement`).

How many passes a step makes is said in `passes_of` alone, and what it holds beside its edits in `held_of` alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.calibration.batches import TOKENS_AT_ONCE, TOKENS_WITH_GRADIENTS
from harness_ext.calibration.contrast_pairs import contrast_set
from harness_ext.editing.learning import stages
from harness_ext.editing.plan_measurement import MeasuredEdit, measured_edit
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
from harness_ext.editing.sharing import held_by_refit, refits_groups
from harness_ext.methods import registered_methods
from harness_ext.methods.search_registry import registered_searches
from harness_ext.methods.statistic_registry import statistics_among
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.recipe.schema import method_of, search_of, statistics_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness_ext.editing.plan import Plan, PlannedMatrix, PlannedSearch
    from harness_ext.editing.plan_measurement import Shape
    from harness_ext.model.layout import Matrix
    from harness_ext.recipe.schema import Step

_FP32 = 4
CONTRAST_BATCH = 16
# Tokens of an answer: nobody knows them before the documents are drawn.
_ANSWER = 2
# The batches by which a model is tried as a stack of layers.
_PROBES, _PROBE_DOCUMENTS, _PROBE_TOKENS, _PASSES_OF_PROBE = 2, 2, 24, 3
# How far the time may be off, as a factor: measured at the very shapes, carried on from smaller ones, of passes over
# documents, whose real lengths nobody knows yet, and of trials, which are given up early.
_SURE, _CARRIED_ON, _PASSES, _TRIALS = 1.5, 2.0, 2.0, 3.0
# Of a run of a layer, what a stage of it takes, which ends behind its own last matrix.
_SHARE_OF_STAGE = 0.7
# Of the passes that trials may make at most, what those on the embedded model made: of a search, and of one that goes
# in rounds.
_USUAL, _USUAL_IN_ROUNDS = 0.6, 0.5
# Of full rank, what alternatives have: the mean of LASER's grid.
_USUAL_RANK = 0.4
# Alternatives that a search tries side by side, by which it makes its batches.
_AT_ONCE = 8


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


def passes_of(plan: Plan, number: int, step: Step) -> Passes:
    """How often a step goes over its documents."""
    if step.is_search:
        found = next(search for search in plan.searches if search.step == number)
        search = search_of(step)
        times = float(search.gatherings(step.parameters))
        gradients = sum(item.needs_gradients for item in statistics_among(search.statistics))
        # What goes by second moments gathers them again for the steps that it found.
        again = step.parameters.get("stages", 1) if "input_second_moment" in search.statistics else 0
        gathering = times * bool(search.statistics) + again
        return Passes(found.passes, times * gradients, gathering, at_most=found.trials > 1)
    method, matrices = method_of(step), [item.matrix for item in _own(plan, number)]
    gradients = any(item.needs_gradients for item in statistics_among(method.gathered))
    if not method.statistics:
        return Passes()
    # The loss of the documents before and after.
    around = 2.0 if step.calibration is not None else 0.0
    if step.trains:
        # Through two factors of full rank each, with gradients of both.
        trained = 2.0 * step.training_passes
        if not step.trains_blocks:
            return Passes(around + trained, trained)
        # The unedited model goes beside, and each block once more when it is trained.
        walked = trained + 2.0
        return Passes(around + walked, trained, layer_by_layer=walked)
    if step.masks is not None:
        return _passes_under_masks(step, around)
    if step.search is not None:
        rounds = float(step.search.rounds)
        walked, removals = 2 * rounds, rounds * 2 * step.search.at_once
        return Passes(around + walked + removals, rounds, rounds, at_most=True, layer_by_layer=walked)
    tried = _removals(step, matrices) if method.tries else 0.0
    times = 1.0 + refits_groups(step)
    if not _is_walked(matrices):
        once = times * _whole_passes(plan, matrices, method.gathered, sequential=bool(step.sequential))
        return Passes(around + once + tried, once * gradients, times, at_most=method.tries)
    # One of the two losses comes with the walk; gradients take a further run of each layer, and so do stages.
    walked = 1.0 + gradients
    if step.sequential and not gradients:
        walked = 1.0 + _SHARE_OF_STAGE * len(stages(matrices)) / max(1, len({matrix.layer for matrix in matrices}))
        walked *= 1 + method.compares_with_unedited
    return Passes(around / 2 + times * walked + tried, float(gradients), times, method.tries, times * walked)


def _passes_under_masks(step: Step, around: float) -> Passes:
    """What is learned from gives a first mask its statistics, and each step the losses of one batch under every mask;
    the unedited model, the first mask and the last are measured on all documents.
    """
    assert step.masks is not None and step.calibration is not None
    documents = step.calibration.samples
    # Of one task; of several, each holds out its own share, rounded down.
    searched = documents - step.masks.held_out_of(documents)
    gathering = searched / documents if step.masks.start == "wanda-sp" else 0.0
    tried = step.masks.steps * step.masks.draws * min(step.calibration.batch_size, searched) / documents
    measured = 3.0 if step.masks.steps else 2.0
    return Passes(around + measured + gathering + tried, gathering=gathering, layer_by_layer=gathering)


def _removals(step: Step, matrices: Sequence[Matrix]) -> float:
    """How many trials `ablation_prune` makes: half of what it may make, and of what halves all groups of candidates
    down to single ones where half of the components should lower the loss; and one that confirms them.
    """
    from harness_ext.search.ablation_prune import most_trials

    candidates = sum(int(step.parameters["fraction"] * min(matrix.shape) + 1e-9) for matrix in matrices)
    return 1.0 + min(candidates, most_trials(len(matrices))) / 2


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


class Held(NamedTuple):
    """Bytes that a step holds beside its edits: kept while matrices are edited, and those while it learns alone."""

    kept: int
    learning: int


def held_of(plan: Plan, number: int, step: Step) -> Held:
    """Kept are statistics of a group of matrices, states of the documents, factors in training, and the standing edits
    of a search; activations of a batch, with the logits that are made of it, are let go before the edits.
    """
    from harness_ext.editing.plan import held_by_search, held_by_training, held_factors

    own = _own(plan, number)
    if not _documents(step) or not own:
        return Held(0, 0)
    widest = max(sum(item.matrix.shape) for item in own)
    kept = held_by_training(step, _of_fullest_layer(own) if step.trains_blocks else own)
    kept += held_by_search(step, own) + held_by_refit(step, [item.matrix for item in own])
    learning = 0
    if not step.is_search or _names(step):
        passes, batch = passes_of(plan, number, step), _batch(plan, step)
        of_logits = batch.of_all if passes.backward and not step.trains_blocks else _ANSWER * batch.documents
        learning = 2 * _FP32 * of_logits * plan.vocabulary + 3 * _FP32 * batch.of_all * widest
        # A backward pass needs what each layer that it goes through made.
        made = _FP32 * batch.of_all * sum(count * sum(shape) for shape, count in plan.products)
        if passes.backward:
            learning += made if step.trains and not step.trains_blocks else made // max(1, plan.layers)
        if not step.trains and _is_walked([item.matrix for item in own]):
            states = _documents(step) * plan.tokens * _width(plan) * _FP32
            beside = 2 * (not step.is_search and registered_methods()[step.method].compares_with_unedited)
            kept += states * (plan.layers + 1 if passes.backward or step.is_search else 2 + beside)
            own = own if step.is_search else _of_fullest_layer(own)
        if step.trains_blocks:
            # Those of the edited model and of the unedited one, and each once more as it enters.
            kept += 4 * _documents(step) * plan.tokens * _width(plan) * _FP32
        kept += held_factors(own, statistics_of(step))
    if step.is_search:
        # Statistics are let go before the trials, but by a search that goes from the last layer to the first.
        standing = kept if held_by_search(step, own) else 0
        learning = max(kept - standing + learning, _held_by_trials(plan, number, step, widest))
        kept = standing
    return Held(kept, learning)


def _of_fullest_layer(own: Sequence[PlannedMatrix]) -> list[PlannedMatrix]:
    by_layer = Counter(item.matrix.layer for item in own)
    fullest = max(by_layer, key=lambda layer: by_layer[layer])
    return [item for item in own if item.matrix.layer == fullest]


def _held_by_trials(plan: Plan, number: int, step: Step, widest: int) -> int:
    """Of the largest batch activations and logits at its answers, and the states of all documents that enter layers."""
    from harness_ext.search.suffix_replay import STATE_BYTES

    found = next(search for search in plan.searches if search.step == number)
    search = registered_searches()[step.method]
    alternatives = max(search.trials([item.matrix.shape], step.parameters) for item in _own(plan, number))
    plain, small, copies = batches_of_search(step, plan.tokens, alternatives)
    answers = _ANSWER * max(plain.documents, small.documents * copies)
    states = min(STATE_BYTES, plan.layers * found.documents * plan.tokens * _width(plan) * _FP32)
    tokens = max(plain.of_all, small.of_all * copies)
    return 3 * _FP32 * tokens * widest // 2 + 2 * _FP32 * answers * plan.vocabulary + states


def _own(plan: Plan, number: int) -> list[PlannedMatrix]:
    return [item for item in plan.matrices if item.step == number]


def _documents(step: Step) -> int:
    if step.calibration is not None:
        return step.calibration.samples
    return len(contrast_set(step.contrast).documents) if step.contrast is not None else 0


def _names(step: Step) -> frozenset[str]:
    """The statistics that a step gathers."""
    if step.is_search:
        return search_of(step).statistics
    return method_of(step).gathered


def _batch(plan: Plan, step: Step) -> BatchSize:
    """As `calibration_batches` makes them."""
    size = step.calibration.batch_size if step.calibration is not None else CONTRAST_BATCH
    chosen = statistics_among(_names(step))
    if not any(item.compares_documents or item.needs == "contrasts" for item in chosen):
        backward = step.trains or any(item.needs_gradients for item in chosen)
        size = min(size, (TOKENS_WITH_GRADIENTS if backward else TOKENS_AT_ONCE) // plan.tokens)
    return BatchSize(max(1, min(size, _documents(step))), plan.tokens)


def _estimated_step(plan: Plan, number: int, step: Step) -> EstimatedStep:
    own = _own(plan, number)
    kinds = Counter((item.matrix.shape, item.dtype) for item in own)
    first = {item.matrix.shape: item.matrix.key for item in own}
    edit, times = _edit_of(step)
    edits = {kind: measured_edit(edit, first[kind[0]], *kind, plan.device) for kind in kinds}
    beside = [*_decomposed_together(plan, step, own), *_written_beside(plan, own)]
    editing = times * sum(count * edits[kind].seconds for kind, count in kinds.items())
    editing += sum(one.seconds for one in beside)
    passes = passes_of(plan, number, step)
    calibrating = _calibrating_seconds(plan, number, step, passes)
    held = held_of(plan, number, step)
    sure = _SURE if all(item.exact for item in (*edits.values(), *beside)) else _CARRIED_ON
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
        peak_bytes=held.kept + max(held.learning, round(max((item.bytes for item in edits.values()), default=0))),
    )


def _edit_of(step: Step) -> tuple[Step, int]:
    """The step whose edit of every matrix takes as long as what a step does to each, and how many times. A search
    decomposes what it tries; one that goes by second moments does so by them, and again for what it found.
    """
    if not step.is_search:
        return step, 1
    by_moments = "input_second_moment" in search_of(step).statistics
    times = 2 * step.parameters.get("stages", 1) if by_moments else 1
    return parse_recipe("svd-llm" if by_moments else "svd").steps[0], times


def _decomposed_together(plan: Plan, step: Step, own: Sequence[PlannedMatrix]) -> list[MeasuredEdit]:
    """What takes as long as to decompose each group of matrices that share a factor, which their edits then only write:
    the edit by second moments of one matrix of the shape of all on top of each other.
    """
    if step.is_search or not registered_methods()[step.method].shares:
        return []
    from harness_ext.methods.basis_sharing import groups_of

    dtypes, edit = {item.matrix.key: item.dtype for item in own}, parse_recipe("svd-llm").steps[0]
    groups = groups_of([item.matrix for item in own], step.parameters["share"], step.parameters["layers_in_group"])
    return [
        measured_edit(
            edit, group[0].key, (len(group) * group[0].shape[0], group[0].shape[1]), dtypes[group[0].key], plan.device
        )
        for group in groups
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


def _width(plan: Plan) -> int:
    """The size that most of the model's linear layers have on a side."""
    sizes = Counter(size for shape, count in plan.products for size in shape for _ in range(count))
    return sizes.most_common(1)[0][0] if sizes else 1


class _Pass(NamedTuple):
    """One batch through the model: what is done once, and in all layers together."""

    once: float
    layers: float

    @property
    def whole(self) -> float:
        return self.once + self.layers


def _forward(plan: Plan, batch: BatchSize) -> _Pass:
    """Up to the output head."""
    host = forward_seconds(_width(plan), batch, plan.dtype, plan.device)
    return _Pass(host.once, plan.layers * host.layer + _products(plan, batch))


def _backward(plan: Plan, batch: BatchSize) -> _Pass:
    """With the output head, which makes logits of all tokens where gradients are wanted."""
    host = backward_seconds(_width(plan), batch, plan.dtype, plan.device)
    head = 2 * product_seconds(_head(plan), batch.of_all, plan.dtype, plan.device)
    return _Pass(host.once + head, plan.layers * host.layer + _products(plan, batch))


def _products(plan: Plan, batch: BatchSize) -> float:
    """All linear layers but the output head."""
    return sum(
        (count - (shape == _head(plan))) * product_seconds(shape, batch.of_all, plan.dtype, plan.device)
        for shape, count in plan.products
    )


def _head(plan: Plan) -> Shape:
    return plan.vocabulary, _width(plan)


def _answers(plan: Plan, batch: BatchSize) -> float:
    """What becomes of the hidden states at the answers of a batch: logits, and the loss."""
    answers = _ANSWER * batch.documents
    return product_seconds(_head(plan), answers, plan.dtype, plan.device) + scoring_seconds(
        plan.vocabulary, answers, plan.dtype, plan.device
    )


def _calibrating_seconds(plan: Plan, number: int, step: Step, passes: Passes) -> float:
    documents = _documents(step)
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
    batch = _batch(plan, step)
    batches = -(-_documents(step) // batch.documents)
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
    matrices = [item.matrix for item in _own(plan, number)]
    names, about = _names(step), (batch, plan.dtype, plan.device)
    modules = {matrix.module: matrix.shape[1] for matrix in matrices}
    apart = any(item.needs_gradients or item.needs_components for item in statistics_among(names))
    summed = matrices if apart else [run[0] for run in stages(matrices)]
    return (
        sum(watching_seconds(width, *about) for width in modules.values())
        + sum(outputs_seconds(matrix.shape[0], *about) for matrix in matrices)
        + sum(statistics_seconds(names, matrix.shape, *about) for matrix in summed)
    )


class SearchBatches(NamedTuple):
    """Batches of a search. plain: of passes through the unedited model. small: of trials, in which each stands for
    copies alternatives at once.
    """

    plain: BatchSize
    small: BatchSize
    copies: int


def batches_of_search(step: Step, tokens: int, alternatives: int = _AT_ONCE) -> SearchBatches:
    """As `CandidateEvaluator` makes them. tokens: of a document. alternatives: for a matrix."""
    from harness_ext.search.evaluator import BATCHES, SMALLEST_BATCH, TOKENS_PER_DOCUMENT

    assert step.calibration is not None
    documents, budget = step.calibration.samples, TOKENS_PER_DOCUMENT * step.calibration.batch_size
    most = min(budget // _AT_ONCE, max(SMALLEST_BATCH, documents * tokens // BATCHES))
    plain, small = (BatchSize(max(1, min(documents, size // tokens)), tokens) for size in (budget, most))
    copies = max(1, min(alternatives, budget // small.of_all))
    return SearchBatches(plain, small, copies)


def _searching_seconds(plan: Plan, step: Step, found: PlannedSearch) -> float:
    """The model as it is, what enters its layers, and as it becomes; and trials, of which each runs the layers from its
    matrix on.
    """
    plain, small, copies = batches_of_search(step, plan.tokens, min(_AT_ONCE, found.trials))
    batches = -(-found.documents // small.documents)
    tried = BatchSize(small.documents * copies, small.tokens)
    whole, part, many = (_forward(plan, batch) for batch in (plain, small, tried))
    before = -(-found.documents // plain.documents) * (whole.whole + _answers(plan, plain))
    around = 2 * batches * (part.whole + _answers(plan, small))
    calls = found.trials / copies * (many.once + _answers(plan, tried))
    trials = batches * (calls + found.tried / copies * many.layers)
    shapes = Counter(item.matrix.shape for item in _own(plan, found.step))
    return (
        before + around + _USUAL * trials + _checking_seconds(plan, found) + _alternatives_seconds(plan, found, shapes)
    )


def _checking_seconds(plan: Plan, found: PlannedSearch) -> float:
    """Trials of two alternatives on two documents, from the first layer on and from the middle: of every kind of
    matrix, which stand for those of other layers.
    """
    kinds = {item.matrix.role for item in _own(plan, found.step)} if found.tried else set()
    probe = BatchSize(2 * _PROBE_DOCUMENTS, plan.tokens)
    return len(kinds) * (_forward(plan, probe).whole + _answers(plan, probe))


def _alternatives_seconds(plan: Plan, found: PlannedSearch, shapes: Counter[Shape]) -> float:
    """Weights of lower rank, multiplied out from factors."""
    each = sum(
        count * product_seconds(shape, max(1, int(_USUAL_RANK * min(shape))), "float32", plan.device)
        for shape, count in shapes.items()
    )
    return each / max(1, shapes.total()) * found.trials if found.tried else 0.0
