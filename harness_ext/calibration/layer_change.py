"""How far each decoder layer turns the hidden states that it is handed: what budgets over layers go by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.batches import PaddedBatch, calibration_batches, summed_loss
from harness_ext.calibration.collect import require_finite_sum
from harness_ext.calibration.context import DocumentBatches
from harness_ext.errors import UserError
from harness_ext.model.decoder_stack import hidden_in, hidden_of, layers_of
from harness_ext.model.layout import Matrix

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor, nn


class LayerChange(NamedTuple):
    """Of one layer, over all real tokens: the mean cosine between what it is handed and what it gives, and the mean
    angle between the two as a share of half a turn.
    """

    cosine: float
    angle: float


def layer_changes(lm: HFLM, matrices: Sequence[Matrix], documents: DocumentBatches) -> dict[int, LayerChange]:
    """Of every layer that holds one of these matrices, by its number, from one pass over the documents.

    Raises UserError where the matrices lie in no common list of layers, and VariantFailed where the loss is not finite.
    """
    import torch

    layers, depths = layers_of(lm.model, matrices)
    if layers is None:
        raise UserError(
            "the matrices lie in several stacks of layers, or in none, so that no layer's change can be measured: set"
            " rule=uniform, or choose the matrices of one stack"
        )
    watched = {depths[matrix.module]: _Turning() for matrix in matrices}
    with torch.no_grad(), documents.progress.stage("measuring layers", len(documents.documents), "documents") as stage:
        for batch in calibration_batches(lm, documents, ()):
            with ExitStack() as hooks:
                for depth, turning in watched.items():
                    turning.watch(layers[depth], batch, hooks)
                require_finite_sum(summed_loss(lm, batch), lm)
            stage.advance(batch.tokens.shape[0])
    found = {depth: turning.mean() for depth, turning in watched.items()}
    return {matrix.layer or 0: found[depths[matrix.module]] for matrix in matrices}


class _Turning:
    """Sums over tokens of the cosines and angles of one layer."""

    def __init__(self) -> None:
        self._sums = (0.0, 0.0)
        self._tokens = 0

    def watch(self, layer: nn.Module, batch: PaddedBatch, hooks: ExitStack) -> None:
        """Take in what a layer does while the hooks last."""
        handed: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            # a copy: a layer may add to what it is given in place
            handed.append(hidden_of(args, kwargs).clone())

        def compare(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._take(handed.pop(), hidden_in(output), batch)

        hooks.callback(layer.register_forward_pre_hook(keep, with_kwargs=True).remove)
        hooks.callback(layer.register_forward_hook(compare).remove)

    def _take(self, before: Tensor, after: Tensor, batch: PaddedBatch) -> None:
        from torch.nn.functional import cosine_similarity

        real = batch.mask.bool().to(after.device)
        # some models hand their layers all tokens in a row, without the batch
        x, y = (values.reshape(*real.shape, -1)[real].double() for values in (before.to(after.device), after))
        cosines = cosine_similarity(x, y, dim=-1, eps=1e-300).clamp(-1, 1)
        found = float(cosines.sum()), float(cosines.arccos().sum())
        self._sums = self._sums[0] + found[0], self._sums[1] + found[1]
        self._tokens += len(cosines)

    def mean(self) -> LayerChange:
        """The means over all tokens taken in."""
        cosine, angle = (value / max(1, self._tokens) for value in self._sums)
        return LayerChange(cosine, angle / math.pi)
