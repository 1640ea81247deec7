"""Thin layers in the places of a model's linear layers, and the layers themselves put back.

While a thin layer stands for it, the weight of a layer holds no memory; its values come back from elsewhere
(`Weights.restore`) or as the product of the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.errors import UserError
from harness_ext.model.layout import Matrix

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_ext.model.low_rank import LowRankLinear, LowRankPart


class _Replacement(NamedTuple):
    """A layer out of its place, the shape of its weight, and the thin layer in its place."""

    layer: nn.Module
    shape: tuple[int, ...]
    thin: LowRankLinear


class ModuleReplacements:
    """The thin layers of a model, by the names of the weights that they stand for. changed: told which parameters of
    the model are gone and which are new, whenever a layer is swapped.
    """

    def __init__(self, model: nn.Module, changed: Callable[[Collection[str], Mapping[str, Tensor]], None]) -> None:
        self._model = model
        self._changed = changed
        self._swaps: dict[str, _Replacement] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._swaps

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._swaps))

    def __getitem__(self, name: str) -> LowRankLinear:
        """The thin layer that stands for a weight of that name."""
        return self._swaps[name].thin

    def check(self, matrices: Sequence[Matrix]) -> None:
        """Raise UserError naming the first matrix that two thin layers cannot take the place of, and what to do about
        it.
        """
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        check_no_expert(matrices)
        for matrix in matrices:
            layer = self._model.get_submodule(matrix.module)
            if matrix.parameter in self._swaps:
                continue
            if not isinstance(layer, (nn.Linear, Conv1D)):
                raise UserError(
                    f"{matrix.parameter} is the weight of a layer of class {type(layer).__name__}, which two"
                    " thin linear layers cannot stand for: leave it out, or set factored=false"
                )
            shared = [
                name
                for name, module in self._model.named_modules()
                if module is not layer and any(value is layer.weight for value in module.parameters(recurse=False))
            ]
            if shared:
                raise UserError(
                    f"{matrix.parameter} is also the weight of {shared[0]}, which would stay dense: leave it"
                    " out, or set factored=false"
                )

    def set_parts(self, matrix: Matrix, dense: Tensor, parts: Sequence[LowRankPart]) -> None:
        """Make the layer of a matrix what the parts say, and elsewhere dense `[out, in]`; put the layer itself back
        where there are no parts.
        """
        from harness_ext.model.low_rank import LowRankLinear

        if not parts:
            self.put_back(matrix.parameter, dense)
            return
        inside = self._model.get_submodule(matrix.module)
        layer, shape = (
            self._swaps[matrix.parameter][:2]
            if matrix.parameter in self._swaps
            else (inside, tuple(inside.weight.shape))
        )
        thin = LowRankLinear(dense, parts, inside.bias, transposed=matrix.stored_transposed).train(layer.training)
        self._place(matrix.module, thin)
        self._swaps[matrix.parameter] = _Replacement(layer, shape, thin)
        layer.weight.data = layer.weight.data.new_empty(0)

    def put_back(self, name: str, dense: Tensor | None = None) -> None:
        """Put a layer back into its place, its weight the given `[out, in]`; without it, there is memory for values,
        and none in it yet.
        """
        import torch

        layer, shape, thin = self._swaps.pop(name)
        layer.weight.data = layer.weight.data.new_empty(shape)
        if dense is not None:
            with torch.no_grad():
                layer.weight.copy_(dense.T if thin.transposed else dense)
        layer.bias = thin.bias
        self._place(name.rpartition(".")[0], layer)

    def _place(self, place: str, layer: nn.Module) -> None:
        parent, _, attribute = place.rpartition(".")
        gone = [f"{place}.{name}" for name, _ in self._model.get_submodule(place).named_parameters()]
        setattr(self._model.get_submodule(parent), attribute, layer)
        self._changed(gone, {f"{place}.{name}": value for name, value in layer.named_parameters()})


def check_no_expert(matrices: Iterable[Matrix]) -> None:
    """Raise UserError naming the first matrix of an expert: all experts are computed from one parameter, in which thin
    ones have no place.
    """
    for matrix in matrices:
        if matrix.expert is not None:
            raise UserError(
                f"{matrix.key}: experts are computed from one parameter, which cannot hold thin layers: set"
                " factored=false, or choose matrices outside the experts, such as attn"
            )
