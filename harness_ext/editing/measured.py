"""What is measured around a step's edits: which of them lower the loss of its calibration documents, and what the
documents' loss was before and after.

The rule is that no step leaves a model worse on its own calibration documents than it found it, unless its budget
forces it. A method that tries its edits out, and a search, make none that raises the loss; where another step raises
it, the receipt has both losses and a warning says by how much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.by_layer import no_components, walk_through
from harness_ext.calibration.context import DocumentBatches, StepContext
from harness_ext.calibration.loss import measured_loss
from harness_ext.editing.edit_matrix import decompose
from harness_ext.errors import UserError
from harness_ext.methods import registered_methods
from harness_ext.methods.eigenprune import counts_among_all
from harness_ext.search.ablation_prune import candidates_of, most_trials, try_removals
from harness_ext.search.eigenprune_greedy import greedy_search
from harness_ext.search.removals import EditedSite, RemovalTrials

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.model.layout import Matrix

Statistics = Mapping[str, Mapping[str, "Tensor"]]
"""By `Matrix.key`, then by name."""
Log = list[dict[str, Any]]
"""Rows of plain data, one a trial."""


class TaskLoss(NamedTuple):
    """The mean loss of a task's calibration documents, in nats; None where it is not finite."""

    documents: int
    loss: float | None


@dataclass
class StepLosses:
    """The losses of a step's documents by task, before and after its edits; None where not known yet."""

    before: Mapping[str, TaskLoss] | None = None
    after: Mapping[str, TaskLoss] | None = None


def losses_by_task(context: StepContext, documents: Sequence[LabelledDocument]) -> dict[str, TaskLoss]:
    """The losses of the model as it is on a step's documents."""
    assert context.step.calibration is not None, "a step with documents of its own"
    if context.model.layers_on is not None and (walk := _losses_by_layer(context, documents)) is not None:
        return means_by_task(walk)
    size = context.step.calibration.batch_size
    with context.progress.stage("measuring the loss", len(documents), "documents") as stage:
        found = measured_loss(context.model.lm, documents, size, advance=stage.advance).tasks
    counts = Counter(document.task for document in documents)
    return {task: _task_loss(counts[task], loss) for task, loss in found.items()}


def _losses_by_layer(context: StepContext, documents: Sequence[LabelledDocument]) -> dict[str, list[float]] | None:
    model, step = context.model, context.step
    assert step.calibration is not None, "a step with documents of its own"
    asked = DocumentBatches(documents, step.calibration.batch_size, progress=context.progress)
    walk = walk_through(model.lm, model.weights.layout.select(step), frozenset(), asked, no_components)
    return None if walk is None else replace(walk, layers_on=model.layers_on).measure()


def means_by_task(losses: Mapping[str, Sequence[float]]) -> dict[str, TaskLoss]:
    """The same from the loss of every document."""
    return {task: _task_loss(len(own), sum(own) / len(own)) for task, own in losses.items()}


def _task_loss(documents: int, loss: float) -> TaskLoss:
    return TaskLoss(documents, loss if math.isfinite(loss) else None)


def loss_of_all(found: Mapping[str, TaskLoss]) -> float | None:
    """The mean over all documents; None where a task's is not finite."""
    sums = [own.documents * own.loss for own in found.values() if own.loss is not None]
    return sum(sums) / sum(own.documents for own in found.values()) if len(sums) == len(found) else None


def completed(
    context: StepContext, matrices: Sequence[Matrix], statistics: Statistics, documents: Sequence[LabelledDocument]
) -> tuple[Statistics, Log]:
    """The statistics with those that follow from all matrices of the step together, and the trials that were made."""
    method = registered_methods()[context.step.method]
    # In the order of the model, in which equal effects count; an expert that saw nothing has no statistics.
    seen = {matrix.key: dict(statistics[matrix.key]) for matrix in matrices if statistics.get(matrix.key)}
    if "count_among_all" in method.statistics:
        if context.step.sequential and context.step.parameters["share_of"] == "all":
            raise UserError(
                "share_of: all ranks the components of all matrices together, and sequential edits one matrix before"
                " it looks at the next: leave one of them out"
            )
        return _ranked(seen, context.step.parameters["fraction"]), []
    if method.tries:
        return _tried(context, [matrix for matrix in matrices if matrix.key in seen], seen, documents)
    return statistics, []


def _ranked(statistics: Statistics, fraction: float) -> Statistics:
    import torch

    effects = {key: values["counterfactual_effects"] for key, values in statistics.items()}
    counts = counts_among_all(effects, fraction) if effects else {}
    return {key: {**values, "count_among_all": torch.tensor(counts[key])} for key, values in statistics.items()}


def _tried(
    context: StepContext, matrices: Sequence[Matrix], statistics: Statistics, documents: Sequence[LabelledDocument]
) -> tuple[Statistics, Log]:
    """The removals of `ablation_prune`."""
    most = most_trials(len(matrices))
    assert context.step.calibration is not None
    size = context.step.calibration.batch_size
    with context.progress.stage("trying removals", most, "trials at most") as stage:
        trials = RemovalTrials(
            _site(context, matrices, statistics),
            DocumentBatches(documents, size, stage.advance, context.progress),
        )
        effects = {key: values["ablation_effects"] for key, values in statistics.items()}
        try_removals(trials, candidates_of(effects, context.step.parameters["fraction"]), most)
        trials.confirm()
    return {
        key: {**values, "accepted_components": trials.removed[key]} for key, values in statistics.items()
    }, trials.log


def searched(
    context: StepContext, matrices: Sequence[Matrix], statistics: Statistics, documents: DocumentBatches
) -> tuple[Statistics, Log]:
    """The removals of `eigenprune_greedy`. statistics: the mean inputs."""
    assert context.step.search is not None
    site = _site(context, matrices, statistics)
    trials = greedy_search(site, documents, context.step.search)
    trials.confirm()
    return {key: {**statistics[key], "removed_components": marks} for key, marks in trials.removed.items()}, trials.log


def _site(context: StepContext, matrices: Sequence[Matrix], statistics: Statistics) -> EditedSite:
    model = context.model
    means = {matrix.key: statistics[matrix.key]["input_mean"] for matrix in matrices}
    return EditedSite(
        model.lm,
        matrices,
        means,
        lambda matrix: decompose(model.decomposer, model.weights.read(matrix), matrix),
    )
