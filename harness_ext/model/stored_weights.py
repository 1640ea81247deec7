"""`Weights` of a model that stays on disk: one parameter, or one expert's part of one, is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.model.digests import combined
from harness_ext.model.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness_ext.model.stored_model import Unit


class StoredWeights(Weights):
    """The weights of a model without memory, whose parameters are lent one after another.

    written: the digests of whole parameters as they were written, by name, once they are known.
    """

    def __init__(self, model: PreTrainedModel, scratch: Path) -> None:
        super().__init__(model, scratch)
        self.written: Mapping[str, str] = {}

    @contextmanager
    def lent(self, unit: Unit, value: Tensor) -> Iterator[None]:
        """Inside the block the parameter, or one expert's part of it, has these values; edits change them in place."""
        empty = self._parameters[unit.parameter]
        # Every expert's place shows the one that is there: only that one is asked for.
        self._parameters[unit.parameter] = value if unit.expert is None else value.expand(empty.shape[0], *value.shape)
        try:
            yield
            if unit.parameter in self._replacements:
                self._multiply_out(unit.parameter, value)
        finally:
            if unit.parameter in self._replacements:
                self._replacements.put_back(unit.parameter)
            self._parameters[unit.parameter] = empty
            self._forget_digests(unit.parameter)

    def _multiply_out(self, name: str, value: Tensor) -> None:
        """What `make_dense` does, into the values that were lent."""
        import torch

        layer = self._replacements[name]
        dense = layer.product(value.dtype)
        with torch.no_grad():
            value.copy_(dense.T if layer.transposed else dense)

    def _keep_original(self, name: str) -> None:
        """The checkpoint has it."""

    def digest_of(self, name: str, expert: int | None = None) -> str:
        """Of what is lent, or of what was written."""
        return self.written[name] if expert is None and name in self.written else super().digest_of(name, expert)

    def digest(self) -> str:
        """The digest of the whole model as it was written."""
        return combined(self.written, self.written.__getitem__)
