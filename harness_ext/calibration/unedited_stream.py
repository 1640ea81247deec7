"""The unedited model beside the one that a walk through the layers edits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from harness_ext.calibration.batches import call_of
from harness_ext.calibration.collect import Enough

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_ext.calibration.by_layer import LayerWalk
    from harness_ext.calibration.hidden_states import States
    from harness_ext.calibration.observed import ModuleWatch


class UneditedStream:
    """The hidden states of the model as it was before all edits, beside the walk that edits it: what each layer makes
    of them, by a copy of the layer from before its own edits. Two copies of one layer are held at a time.
    """

    def __init__(self, walk: LayerWalk, states: States) -> None:
        self._walk, self.states = walk, states
        self._layer = 0
        self._untouched: nn.Module | None = None

    def come_to(self, layer: int, untouched: nn.Module | None = None) -> None:
        """Keep a layer as it is now, before it is edited; or, where it was, a copy from before."""
        self._layer = layer
        self._untouched = copy.deepcopy(self._walk.stack.layers[layer]) if untouched is None else untouched

    def show(self, place: int, watch: ModuleWatch) -> None:
        """Show the modules under watch what they were handed of a batch in the unedited model."""
        import torch

        waiting = {module.items[0].matrix.modules[0]: module for module in watch.observed}

        with self._in_place(), ExitStack() as hooks, torch.no_grad():
            seen: set[str] = set()

            def hook_for(name: str) -> Callable[..., None]:
                def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                    waiting[name].originals = args[0].detach()
                    seen.add(name)
                    if len(seen) == len(waiting):
                        raise Enough

                return hook

            for name in waiting:
                module = self._walk.lm.model.get_submodule(name)
                hooks.callback(module.register_forward_pre_hook(hook_for(name)).remove)
            with suppress(Enough):
                self._through(place)

    def go_on(self) -> None:
        """Take the states through the layer as it was."""
        import torch

        with self._in_place(), torch.no_grad():
            for place in range(len(self._walk.batches)):
                self.states[place] = self._through(place)
        self._untouched = None

    def _through(self, place: int) -> Tensor:
        call = call_of(self._walk.lm, self._walk.batches[place])
        return self._walk.stack.through(self._layer, self.states[place], call)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The copy stands where the layer stands, for the block."""
        assert self._untouched is not None, "a layer is kept before it is edited"
        layers, edited = self._walk.stack.layers, self._walk.stack.layers[self._layer]
        layers[self._layer] = self._untouched
        try:
            yield
        finally:
            layers[self._layer] = edited
