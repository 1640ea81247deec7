"""Applying a recipe to a loaded model: step by step, one matrix at a time, every change recorded.

Undo is the business of `Weights.restore`; a failure in the middle leaves a model that restores like any other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness_ext.calibration.collect import gather, groups
from harness_ext.calibration.contrast_pairs import contrast_set
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.calibration.experts import check_experts
from harness_ext.editing.edit_matrix import (
    decompose,
    edit_matrix,
    generator_for,
    require_finite,
    require_finite_statistics,
)
from harness_ext.editing.records import MatrixRecord
from harness_ext.errors import UserError
from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods import Svd, registered_methods
from harness_ext.methods.search_registry import check_searchable
from harness_ext.model.layout import ATTENTION, Matrix
from harness_ext.model.weights import Weights
from harness_ext.recipe.recipe import Recipe
from harness_ext.recipe.schema import Calibration, Step
from harness_ext.search.eigenprune_greedy import greedy_search
from harness_ext.search.runner import SearchOutcome, run_search
from harness_ext.storage.resume import ResumeState
from harness_ext.training.bases import Bases, all_bases
from harness_ext.training.trainer import check_trainable, train

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor

Documents = Callable[[Calibration, str], list[CalibrationSet]]
"""Draws the documents of a step; the second argument opens its error messages."""


class Progress:
    """What surgery tells about its progress; this one says nothing."""

    def start(self, what: str, total: int) -> None:
        """A stage begins: `what` in words, of `total` units."""

    def advance(self, units: int = 1) -> None:
        """So many units of the stage are done."""

    def stop(self) -> None:
        """The stage is over."""


@dataclass
class AppliedRecipe:
    """A recipe as it was carried out. log: rows of plain data about what took many passes over the documents, each with
    its step.
    """

    records: list[MatrixRecord] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    calibration: list[tuple[int, CalibrationSet]] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)
    seconds_calibrating: float = 0.0
    seconds_editing: float = 0.0


def apply_recipe(
    lm: HFLM,
    weights: Weights,
    factors: Decomposer,
    recipe: Recipe,
    documents: Documents,
    progress: Progress | None = None,
    work: ResumeState | None = None,
) -> AppliedRecipe:
    """Apply every step of a recipe, in order; a later step sees what the earlier ones left. work: where a long step
    keeps what it needs to go on after a kill; None to keep nothing.

    Raises UserError for what the recipe's author can mend, and VariantFailed for what the model's weights make
    impossible.
    """
    progress = progress or Progress()
    applied = AppliedRecipe()
    for number, step in enumerate(recipe.steps):
        where = f"recipe {recipe.label!r}, step {number}: "
        if not step.is_search:
            _apply_step(lm, weights, factors, recipe, step, number, documents, applied, where, progress, work)
            continue
        found = _search(lm, weights, factors, step, number, documents, applied, where, progress, work)
        applied.searches.append(found.record)
        for chosen in found.steps:
            _apply_step(lm, weights, factors, recipe, chosen, number, documents, applied, where, progress, work)
        found.measured()
    return applied


def _search(
    lm: HFLM,
    weights: Weights,
    factors: Decomposer,
    step: Step,
    number: int,
    documents: Documents,
    applied: AppliedRecipe,
    where: str,
    progress: Progress,
    work: ResumeState | None,
) -> SearchOutcome:
    matrices = _selected(weights, step, where)
    labelled = _documents(step, number, documents, applied, where)
    started = time.perf_counter()
    for matrix in matrices:
        require_finite(weights, matrix)
    found = run_search(
        lm,
        weights,
        factors,
        step,
        number,
        matrices,
        labelled,
        progress,
        work.part(f"step-{number}") if work is not None else None,
        where,
    )
    applied.seconds_calibrating += time.perf_counter() - started
    return found


def _selected(weights: Weights, step: Step, where: str) -> tuple[Matrix, ...]:
    matrices = weights.layout.select(step, where)
    weights.check_editable(matrices)
    if step.is_search:
        check_searchable(matrices, where)
        weights.check_dense(matrices, where)
    else:
        check_experts(step, matrices, where)
    if step.training is not None:
        check_trainable(matrices, where)
    if step.factored:
        weights.check_factorable(matrices, where)
    return matrices


def _apply_step(
    lm: HFLM,
    weights: Weights,
    factors: Decomposer,
    recipe: Recipe,
    step: Step,
    number: int,
    documents: Documents,
    applied: AppliedRecipe,
    where: str,
    progress: Progress,
    work: ResumeState | None,
) -> None:
    """One ordinary step on the model as it is now."""
    matrices = _selected(weights, step, where)
    labelled = _documents(step, number, documents, applied, where)
    for stage in stages(matrices) if step.sequential else [matrices]:
        evidence = _evidence(lm, weights, factors, step, number, stage, labelled, applied, where, progress, work)
        started = time.perf_counter()
        progress.start(f"{recipe.label}: decomposing", len(stage))
        for matrix in stage:
            applied.records.append(
                edit_matrix(weights, factors, step, number, matrix, evidence.get(matrix.key, {}), where)
            )
            progress.advance()
        progress.stop()
        applied.seconds_editing += time.perf_counter() - started


# Even, so that no pair is torn apart.
_CONTRAST_BATCH = 16
_OUTPUTS = ("o_proj", "down_proj")


def stages(matrices: Sequence[Matrix]) -> list[list[Matrix]]:
    """The matrices in runs, none of which feeds another of its run: query, key and value; attention output; MLP inputs;
    MLP output; layer by layer.

    A matrix of unknown role is a stage of its own, with other parts of its module. Matrices are taken in the order
    given, that of the model.
    """

    def place(matrix: Matrix) -> tuple[int | None, object]:
        if matrix.role is None:
            return matrix.layer, matrix.module
        return matrix.layer, (matrix.role in ATTENTION, matrix.role in _OUTPUTS)

    return [list(run) for _, run in itertools.groupby(matrices, key=place)]


def _documents(
    step: Step, number: int, documents: Documents, applied: AppliedRecipe, where: str
) -> list[LabelledDocument]:
    started = time.perf_counter()
    if step.contrast is not None:
        sets = [contrast_set(step.contrast)]
    elif step.calibration is not None:
        sets = documents(step.calibration, where)
    else:
        return []
    # The step that a search found may learn from the documents that the search learned from.
    applied.calibration += [pair for drawn in sets if (pair := (number, drawn)) not in applied.calibration]
    applied.seconds_calibrating += time.perf_counter() - started
    return [document for drawn in sets for document in drawn.documents]


def _evidence(
    lm: HFLM,
    weights: Weights,
    factors: Decomposer,
    step: Step,
    number: int,
    matrices: Sequence[Matrix],
    labelled: Sequence[LabelledDocument],
    applied: AppliedRecipe,
    where: str,
    progress: Progress,
    work: ResumeState | None,
) -> Mapping[str, Mapping[str, Tensor]]:
    if not labelled:
        return {}
    batch_size = step.calibration.batch_size if step.calibration is not None else _CONTRAST_BATCH
    started = time.perf_counter()
    _start_stage(progress, step, len(labelled))
    for matrix in matrices:
        require_finite(weights, matrix)
    statistics = registered_methods()[step.method].statistics

    def decomposed(matrix: Matrix) -> Svd:
        return decompose(factors, weights.read(matrix), matrix)

    def bases(matrix: Matrix) -> Bases:
        return all_bases(decomposed(matrix), step.training.added_rank, generator_for(step.seed, matrix))

    def gather_for(group: Sequence[Matrix]) -> Mapping[str, Mapping[str, Tensor]]:
        if step.training is not None:
            place = work.part(f"step-{number}") if work else None
            found, log = train(
                lm, group, labelled, batch_size, step.training, step.seed, bases, place, progress.advance
            )
            applied.log += [{"step": number, **row} for row in log]
        elif step.search is not None:
            found = greedy_search(lm, group, labelled, batch_size, step.search, decomposed, progress.advance)
        else:
            found = gather(lm, group, statistics, labelled, batch_size, decomposed, progress.advance)
        for key, values in found.items():
            require_finite_statistics(values, key)
        return found

    try:
        if step.training is not None or step.search is not None or step.sequential:
            gathered = gather_for(matrices)
        else:
            about = [weights.digest(), str(batch_size), *sorted(statistics), *(repr(document) for document in labelled)]
            gathered = weights.statistics_cache.gathered(
                about, matrices, gather_for, lambda missing: groups(missing, statistics)
            )
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    progress.stop()
    applied.seconds_calibrating += time.perf_counter() - started
    return gathered


def _start_stage(progress: Progress, step: Step, documents: int) -> None:
    if step.training is not None:
        progress.start(f"{step.method}: training", documents * step.training.epochs)
    else:
        progress.start(f"{step.method}: calibrating", documents if step.search is None else step.search.rounds)
