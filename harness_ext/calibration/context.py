"""What a step of a recipe works with, held in one value instead of being handed through function by function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness_ext.progress import Progress

if TYPE_CHECKING:
    import torch
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor

    from harness_ext.calibration.cache import StatisticsCache
    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.linalg.decompose import Decomposer
    from harness_ext.model.weights import Weights
    from harness_ext.recipe.schema import Step
    from harness_ext.storage.resume import ResumeState


def _unheard(count: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class DocumentBatches:
    """Calibration documents, taken `size` at a time. advance: told how many units of what is done with them are done.
    progress: has stages for passes over them, and is told what was found.
    """

    documents: Sequence[LabelledDocument]
    size: int
    advance: Callable[[int], Any] = _unheard
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class EditableModel:
    """A loaded model with what edits of it are made from: its weights with undo, decompositions of them, and statistics
    that an earlier recipe of the session gathered. layers_on: a device that holds one decoder layer of it at a time,
    while that layer is learned about and edited; None where the model computes where it is.
    """

    lm: HFLM
    weights: Weights
    decomposer: Decomposer
    statistics_cache: StatisticsCache
    layers_on: torch.device | None = None


@dataclass(frozen=True)
class StepContext:
    """One step of a recipe on one model. number: of the step in its recipe, from 0. resume: where the step keeps what
    it needs to go on after a kill; None to keep nothing. ranks: at which earlier steps left what they edited, by
    `Matrix.key`. left: which rows, and columns, they left of it, bool, by the names of a record (`rows_kept`).
    """

    model: EditableModel
    step: Step
    number: int
    progress: Progress
    resume: ResumeState | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
