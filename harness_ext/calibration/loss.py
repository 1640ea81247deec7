"""The loss of calibration documents: what says whether an edit leaves the model worse than it found it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.batches import TOKENS_WITH_GRADIENTS, batches_by_tokens, summed_loss
from harness_ext.errors import VariantFailed

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

    from harness_ext.calibration.documents import LabelledDocument


GIVEN_UP = 1.05
"""A measurement that is compared with another is given up where the documents so far have so many times its loss."""


SMALLEST_RISE = 0.0005
"""Nats; a smaller rise of a loss is rounding, and would be told as none."""
HARM = 0.25
"""Nats; what the loss of one task may rise by where that of all falls: its answers' perplexity by 28 %."""


class MeasuredLoss(NamedTuple):
    """Losses of documents, added up batch by batch: sums `[batches]` in nats, how many documents they are of, and the
    mean of each task whose documents were all measured.
    """

    sums: tuple[float, ...]
    documents: int
    tasks: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean over documents of the cross-entropy of each one's answer; not finite where that of one is not."""
        return self.sums[-1] / self.documents

    def harms(self, other: MeasuredLoss) -> bool:
        """Whether a task is worse off by more than `HARM` than in another measurement on the same documents."""
        return any(not loss <= other.tasks[task] + HARM for task, loss in self.tasks.items())


def measured_loss(
    lm: HFLM,
    documents: Sequence[LabelledDocument],
    batch_size: int,
    beside: MeasuredLoss | None = None,
    advance: Callable[[int], Any] = lambda count: None,
) -> MeasuredLoss:
    """The loss of the model as it is, by plain forward passes. beside: an earlier measurement on the same documents;
    one that is much worse is not carried to the end. advance: told how many more documents are done.
    """
    import torch

    sums: list[float] = []
    tasks: dict[str, float] = {}
    total, run = 0.0, 0
    with torch.no_grad():
        for task in dict.fromkeys(document.task for document in documents):
            own = [document for document in documents if document.task == task]
            started = total
            for batch in batches_by_tokens(lm, own, batch_size, TOKENS_WITH_GRADIENTS):
                total += float(summed_loss(lm, batch))
                run += batch.tokens.shape[0]
                sums.append(total)
                advance(batch.tokens.shape[0])
                if beside is not None and not total <= GIVEN_UP * beside.sums[len(sums) - 1]:
                    return MeasuredLoss(tuple(sums), run, tasks)
            tasks[task] = (total - started) / len(own)
    return MeasuredLoss(tuple(sums), run, tasks)


def mean_loss(lm: HFLM, documents: Sequence[LabelledDocument], batch_size: int) -> float:
    """The mean loss over all documents. Raises VariantFailed where it is not finite."""
    return require_finite_loss(measured_loss(lm, documents, batch_size)).mean


def require_finite_loss(found: MeasuredLoss) -> MeasuredLoss:
    """The loss. Raises VariantFailed where it is not finite."""
    if not math.isfinite(found.mean):
        raise VariantFailed(
            "non_finite_loss", "the calibration loss is not finite: the model or a prompt is broken; nothing was edited"
        )
    return found
