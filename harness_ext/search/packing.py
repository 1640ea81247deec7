"""Whether the choices of a document can be packed into one sequence: where the model makes the same of them so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness_ext.search.scoring import batches_by_length, questions
from harness_ext.search.suffix_replay import Replay, tolerance

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.model.layout import Matrix
    from harness_ext.search.scoring import Question


def in_tokens(lm: Any, documents: Sequence[LabelledDocument], matrices: Sequence[Matrix]) -> list[Question]:
    """The documents with the choices of each packed into one sequence, if the model makes the same of them so; else
    apart. matrices: those that are searched.
    """
    import torch

    packed = questions(lm, documents, packed=True)
    probed = [place for place, question in enumerate(packed) if question.packed][:2]
    if not probed:
        return packed
    apart = questions(lm, documents, packed=False)
    with torch.inference_mode():
        try:
            first, second = (_likelihoods(lm, asked, probed, matrices) for asked in (packed, apart))
        except (RuntimeError, ValueError, TypeError, IndexError):
            # Whatever an architecture makes of a mask that it was not written for.
            return apart
    same = first.shape == second.shape and bool(((first - second).abs() <= tolerance(lm.model)).all())
    return packed if same else apart


def _likelihoods(lm: Any, asked: Sequence[Question], places: Sequence[int], matrices: Sequence[Matrix]) -> Tensor:
    (batch,) = batches_by_length(asked, places, 1 << 30, lm.device)
    return batch.likelihoods(Replay(lm.model, [batch], batch, matrices, ()).plain(0).float())
