"""Passes through a model from one of its layers on, for several weights of one matrix at once.

The model's own forward does the work, whatever its architecture: layers below the first one wanted are passed over, and
the hidden states kept from the unedited model are put in where they entered. Three savings are added, each checked
against plain passes when a search starts and left out where it does not hold:

- *shared*: in the edited layer, what comes before the edited matrix is computed once; the alternatives part at its
  output, along a new leading axis that the rest of the layer takes like a batch;
- *slim*: in the last layer, all but keys and values is computed at the positions whose logits are wanted, and so is the
  output head;
- *replay* itself: where it cannot be had, every pass starts at the first layer.

Kept hidden states are bounded: beyond `STATE_BYTES` only those of every second, third, ... layer are kept, and the
others computed from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from harness_ext.model.architectures import MLP
from harness_ext.model.decoder_stack import computing_instead, hidden_of, layers_of, pass_on
from harness_ext.model.typed import pretrained
from harness_ext.search.hooks import (
    enter,
    head,
    merge,
    only_at,
    sliced_modules,
    substitute,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_ext.model.layout import Matrix
    from harness_ext.search.candidates import Alternatives
    from harness_ext.search.scoring import Batch

STATE_BYTES = 2 << 30
_PART_LATE = ("o_proj", *MLP)
"""The roles after which a layer may take a further leading axis: attention itself cannot."""


def tolerance(model: nn.Module) -> float:
    """How far two log-probabilities may lie apart that are to be the same, computed in batches of different shapes:
    half precision rounds differently in each.
    """
    import torch

    return 1e-3 if pretrained(model).dtype in (torch.float32, torch.float64) else 0.25


class _Reached(Exception):
    """A pass that has come as far as was wanted."""


class Replay:
    """Passes over fixed batches of a model. known: all matrices of the model that are known by role. probe: a small
    batch, for checks.

    layers: the decoder layers, or None where they are not known or cannot be replayed. shared: the kinds of matrices
    for which that saving holds, as far as tried. slim: whether that one does. passes: what was computed so far, in
    passes over all batches through all layers. notes: what had to be left out.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        probe: Batch,
        matrices: Sequence[Matrix],
        known: Sequence[Matrix],
    ) -> None:
        self.model = model
        self.batches = [*batches, probe]
        self.layers, self._depths = layers_of(model, matrices)
        self.shared: dict[str, bool] = {}
        self.slim = self.layers is not None
        self.passes = 0.0
        self.notes: list[str] = []
        self._tokens = sum(batch.tokens.numel() for batch in batches)
        self._modules = dict(model.named_modules())
        self._sliced = sliced_modules(known, self._modules, len(self.layers)) if self.layers is not None else []
        self._tuple_lengths: dict[int, int] = {}
        self._states: dict[tuple[int, int], Tensor] = {}
        self._stride = 1

    def depth(self, matrix: Matrix) -> int:
        """The layer from which a pass must start that an edit of this matrix changes; 0 where layers are not known."""
        return self._depths.get(matrix.module, 0) if self.layers is not None else 0

    def plain(self, place: int) -> Tensor:
        """Logits `[1, n, vocabulary]` of a batch from a pass through everything."""
        with head(self.model, self.batches[place], 1):
            return self._forward(self.batches[place], 1, 0)

    def forget(self, depth: int = 0) -> None:
        """The model has changed from this layer on: what was kept of the layers above it no longer holds."""
        self._states = {key: state for key, state in self._states.items() if key[1] <= depth}

    def logits(self, place: int, matrix: Matrix, alternatives: Alternatives) -> Tensor:
        """Logits `[alternatives, n, vocabulary]` of a batch, with each of the weights in turn in the place of the
        matrix.
        """
        self.prepare(matrix, alternatives)
        shared = self.shared[self._kind(matrix)] and len(alternatives) > 1
        return self._replayed(place, matrix, alternatives, shared=shared)

    def prepare(self, matrix: Matrix, alternatives: Alternatives) -> None:
        """Find out which savings hold for a matrix.

        Layers of one model may differ: what holds for a matrix holds for those of the same name in other layers, as far
        as these hold the same modules.
        """
        kind = self._kind(matrix)
        if kind not in self.shared:
            self.shared[kind] = self._check(matrix, alternatives.only(range(min(2, len(alternatives)))))

    def kept(self) -> Mapping[tuple[int, int], Tensor]:
        """The hidden states that are kept now, for `put_back`."""
        return dict(self._states)

    def put_back(self, states: Mapping[tuple[int, int], Tensor]) -> None:
        """Keep those states, and no others."""
        self._states = dict(states)

    def _kind(self, matrix: Matrix) -> str:
        inside = re.sub(r"\d+", "#", matrix.key)
        return (
            inside
            if self.layers is None
            else f"{inside} in {[type(module).__name__ for module in self.layers[self.depth(matrix)].modules()]}"
        )

    def _check(self, matrix: Matrix, alternatives: Alternatives) -> bool:
        """Compare a replayed pass over the probe with one that does everything, and leave out, in turn, what makes a
        difference. Says whether the copies may part late.
        """
        place, layers, slim = len(self.batches) - 1, self.layers, self.slim
        wanted = alternatives if len(alternatives) > 1 else alternatives.only([0, 0])
        self.layers, self.slim = None, False
        reference = self._replayed(place, matrix, wanted, shared=False).float().log_softmax(-1)
        for self.layers, self.slim, shared in (
            (layers, slim, True),
            (layers, slim, False),
            (layers, False, False),
            (None, False, False),
        ):
            if shared and (layers is None or matrix.role not in _PART_LATE):
                continue
            if self._same(reference, place, matrix, wanted, shared=shared):
                break
        if self.layers is None and layers is not None:
            self.notes.append(
                "this architecture cannot be run from a layer in the middle: every trial took a whole pass"
            )
        return shared

    def _same(self, reference: Tensor, place: int, matrix: Matrix, alternatives: Alternatives, *, shared: bool) -> bool:
        allowed = tolerance(self.model)
        try:
            found = self._replayed(place, matrix, alternatives, shared=shared).float().log_softmax(-1)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            # Whatever an architecture makes of shapes that it was not written for.
            return False
        return found.shape == reference.shape and bool(
            ((found - reference).abs() <= allowed).logical_or(~reference.isfinite()).all()
        )

    def _replayed(self, place: int, matrix: Matrix, alternatives: Alternatives, *, shared: bool) -> Tensor:
        batch, copies, start = self.batches[place], len(alternatives), self.depth(matrix)
        with ExitStack() as stack:
            stack.enter_context(head(self.model, batch, copies))
            if self.layers is not None:
                entering = self._entering(self.layers, place, start)
                stack.enter_context(self._below(self.layers, start))
                stack.enter_context(enter(self.layers[start], entering, copies, shared=shared))
            stack.callback(
                self._modules[matrix.module]
                .register_forward_hook(substitute(matrix, alternatives, shared=shared))
                .remove
            )
            if self.slim:
                stack.enter_context(only_at(self._sliced, batch))
            if shared:
                assert self.layers is not None, "copies can part late only in a known layer"
                stack.callback(self.layers[start].register_forward_hook(merge()).remove)
            return self._forward(batch, copies, start)

    def _forward(self, batch: Batch, copies: int, start: int) -> Tensor:
        depth = len(self.layers) if self.layers is not None else 1
        self.passes += copies * batch.tokens.numel() / self._tokens * (depth - start) / depth
        logits = self.model(**batch.arguments(copies, pretrained(self.model).dtype), use_cache=False).logits
        return logits.reshape(copies, -1, logits.shape[-1])

    def _entering(self, layers: nn.ModuleList, place: int, layer: int) -> Tensor | None:
        """The hidden states `[b, t, d]` that enter a layer; None for the first, which needs none but those of the
        embedding.
        """
        if layer == 0:
            return None
        if (place, layer) not in self._states:
            self._run_up_to(layers, place, layer)
        return self._states[place, layer]

    def _run_up_to(self, layers: nn.ModuleList, place: int, layer: int) -> None:
        """Compute the states that enter a layer from the nearest ones kept below, keeping what falls on the stride, and
        of other layers only the one asked for.
        """
        batch = self.batches[place]
        start = max((kept for at, kept in self._states if at == place and kept < layer), default=0)
        for key in [key for key in self._states if key[1] % self._stride and key[1] not in (start, layer)]:
            del self._states[key]
        with ExitStack() as stack:
            stack.enter_context(self._below(layers, start))
            stack.enter_context(enter(layers[start], self._states.get((place, start)), 1, shared=False))
            for depth in range(start, layer + 1):
                stack.callback(
                    layers[depth]
                    .register_forward_pre_hook(self._keep(place, depth, layer, len(layers)), with_kwargs=True)
                    .remove
                )
                stack.callback(layers[depth].register_forward_hook(self._note_form(depth)).remove)
            try:
                self.model(**batch.arguments(1, pretrained(self.model).dtype), use_cache=False)
            except _Reached:
                self.passes += batch.tokens.numel() / self._tokens * (layer - start) / len(layers)

    def _keep(self, place: int, depth: int, last: int, layers: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = hidden_of(args, kwargs)
            if depth == 0:
                size = (
                    sum(batch.tokens.numel() for batch in self.batches)
                    * hidden.shape[-1]
                    * hidden.element_size()
                    * layers
                )
                self._stride = max(1, math.ceil(size / STATE_BYTES))
            if depth and (depth % self._stride == 0 or depth == last):
                self._states[place, depth] = hidden.clone()
            if depth == last:
                raise _Reached

        return hook

    def _note_form(self, depth: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, tuple):
                self._tuple_lengths[depth] = len(output)

        return hook

    def _below(self, layers: nn.ModuleList, start: int) -> AbstractContextManager[None]:
        """The layers below this one pass on what they are given; they were run before, which showed the form of what
        they return.
        """
        return computing_instead(layers, [pass_on(self._tuple_lengths.get(depth)) for depth in range(start)])
