"""How often a step of a plan goes over its documents, and in what batches."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.calibration.batches import TOKENS_AT_ONCE, TOKENS_WITH_GRADIENTS
from harness_ext.calibration.contrast_pairs import contrast_set
from harness_ext.editing.learning import stages
from harness_ext.editing.plan_passes import BatchSize
from harness_ext.editing.sharing import refits_groups
from harness_ext.methods.statistic_registry import statistics_among
from harness_ext.recipe.schema import method_of, search_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness_ext.editing.plan import Plan
    from harness_ext.editing.plan_matrices import PlannedMatrix
    from harness_ext.model.layout import Matrix
    from harness_ext.recipe.schema import Step

CONTRAST_BATCH = 16
# Tokens of an answer: nobody knows them before the documents are drawn.
ANSWER = 2
# Of a run of a layer, what a stage of it takes, which ends behind its own last matrix.
_SHARE_OF_STAGE = 0.7
# Alternatives that a search tries side by side, by which it makes its batches.
AT_ONCE = 8


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
    method, matrices = method_of(step), [item.matrix for item in matrices_of(plan, number)]
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
    if not is_walked(matrices):
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


def is_walked(matrices: Sequence[Matrix]) -> bool:
    """Whether a step is taken to learn layer by layer; whether the model is a plain stack, only a trial tells."""
    return all(matrix.layer is not None and not matrix.also for matrix in matrices)


def _whole_passes(plan: Plan, matrices: Sequence[Matrix], names: frozenset[str], *, sequential: bool) -> float:
    """How many passes through a model learn about matrices group by group, or one after another."""
    from harness_ext.calibration.collect import groups

    if not sequential:
        return float(sum(1 for _ in groups(matrices, names)))
    layers = max(1, plan.layers)
    return sum(((run[0].layer or 0) + 1) / layers for run in stages(matrices))


def matrices_of(plan: Plan, number: int) -> list[PlannedMatrix]:
    """Those of a step."""
    return [item for item in plan.matrices if item.step == number]


def documents_of(step: Step) -> int:
    """How many documents a step learns from."""
    if step.calibration is not None:
        return step.calibration.samples
    return len(contrast_set(step.contrast).documents) if step.contrast is not None else 0


def statistics_names(step: Step) -> frozenset[str]:
    """The statistics that a step gathers."""
    if step.is_search:
        return search_of(step).statistics
    return method_of(step).gathered


def batch_of(plan: Plan, step: Step) -> BatchSize:
    """As `calibration_batches` makes them."""
    size = step.calibration.batch_size if step.calibration is not None else CONTRAST_BATCH
    chosen = statistics_among(statistics_names(step))
    if not any(item.compares_documents or item.needs == "contrasts" for item in chosen):
        backward = step.trains or any(item.needs_gradients for item in chosen)
        size = min(size, (TOKENS_WITH_GRADIENTS if backward else TOKENS_AT_ONCE) // plan.tokens)
    return BatchSize(max(1, min(size, documents_of(step))), plan.tokens)


def width_of(plan: Plan) -> int:
    """The size that most of the model's linear layers have on a side."""
    sizes = Counter(size for shape, count in plan.products for size in shape for _ in range(count))
    return sizes.most_common(1)[0][0] if sizes else 1


class SearchBatches(NamedTuple):
    """Batches of a search. plain: of passes through the unedited model. small: of trials, in which each stands for
    copies alternatives at once.
    """

    plain: BatchSize
    small: BatchSize
    copies: int


def batches_of_search(step: Step, tokens: int, alternatives: int = AT_ONCE) -> SearchBatches:
    """As `CandidateEvaluator` makes them. tokens: of a document. alternatives: for a matrix."""
    from harness_ext.search.evaluator import BATCHES, SMALLEST_BATCH, TOKENS_PER_DOCUMENT

    assert step.calibration is not None
    documents, budget = step.calibration.samples, TOKENS_PER_DOCUMENT * step.calibration.batch_size
    most = min(budget // AT_ONCE, max(SMALLEST_BATCH, documents * tokens // BATCHES))
    plain, small = (BatchSize(max(1, min(documents, size // tokens)), tokens) for size in (budget, most))
    copies = max(1, min(alternatives, budget // small.of_all))
    return SearchBatches(plain, small, copies)
