"""Edits that stand in the model while others are tried on top of them: substituted parameters, the model's own put
aside untouched until they are removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness_ext.model.weights import with_part, with_shift

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_ext.model.layout import Matrix


class StandingEdits:
    """What stands in a model. notes: by the matrix's key, what names the edit of it that stands."""

    def __init__(self, model: nn.Module) -> None:
        self.notes: dict[str, Any] = {}
        self._model = model
        self._put_aside: dict[tuple[str, str], Any] = {}

    def put(self, matrix: Matrix, weight: Tensor, shift: Tensor | None, note: Any) -> None:
        """Let an edit stand: its weight `[m, n]` takes the place of an earlier one of the same matrix, its shift `[m]`
        adds to it.
        """
        import torch

        module: Any = self._model.get_submodule(matrix.module)
        with torch.no_grad():
            self._substitute(matrix, module, "weight", with_part(module.weight, matrix, weight))
            if shift is not None:
                bias = (
                    module.weight.new_zeros(matrix.full_shape[0])
                    if module.bias is None
                    else module.bias.detach().clone()
                )
                self._substitute(matrix, module, "bias", with_shift(bias, matrix, shift))
        self.notes[matrix.key] = note

    def _substitute(self, matrix: Matrix, module: Any, name: str, value: Tensor) -> None:
        import torch

        self._put_aside.setdefault((matrix.module, name), module._parameters.get(name))
        module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """What is put inside does not stand any longer when the block ends."""
        notes = dict(self.notes)
        parameters = {
            (module, name): self._model.get_submodule(module)._parameters.get(name) for module, name in self._put_aside
        }
        try:
            yield
        finally:
            for (module, name), own in self._put_aside.items():
                self._model.get_submodule(module)._parameters[name] = parameters.get((module, name), own)
            self.notes = notes

    def remove(self) -> None:
        """Put the model's own parameters back."""
        for (module, name), own in self._put_aside.items():
            self._model.get_submodule(module)._parameters[name] = own
        self._put_aside.clear()
        self.notes.clear()
