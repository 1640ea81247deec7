"""Low-rank layers in the places of a model's linear layers, and the layers themselves put back.

While a low-rank layer stands for it, the weight of a layer holds no memory; its values come back from elsewhere
(`Weights.restore`) or as the product of the factors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.errors import UserError
from harness_ext.model.layout import Matrix, check_not_shared
from harness_ext.model.typed import bias_of, tensor_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_ext.model.low_rank import LowRankLinear, LowRankPart


class _Replacement(NamedTuple):
    """A layer out of its place, the shape of its weight, and the low-rank layer in its place."""

    layer: nn.Module
    shape: tuple[int, ...]
    low_rank: LowRankLinear


class ModuleReplacements:
    """The low-rank layers of a model, by the names of the weights that they stand for. changed: told which parameters
    of the model are gone and which are new, whenever a layer is swapped.
    """

    def __init__(self, model: nn.Module, changed: Callable[[Collection[str], Mapping[str, Tensor]], None]) -> None:
        self._model = model
        self._changed = changed
        self._replacements: dict[str, _Replacement] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._replacements

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._replacements))

    def __getitem__(self, name: str) -> LowRankLinear:
        """The low-rank layer that stands for a weight of that name."""
        return self._replacements[name].low_rank

    def check(self, matrices: Sequence[Matrix]) -> None:
        """Raise UserError naming the first matrix that two low-rank layers cannot take the place of, and what to do
        about it.
        """
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        check_replaceable(matrices)
        for matrix in matrices:
            layer = self._model.get_submodule(matrix.module)
            if matrix.parameter in self._replacements:
                continue
            if not isinstance(layer, (nn.Linear, Conv1D)):
                raise UserError(
                    f"{matrix.parameter} is the weight of a layer of class {type(layer).__name__}, which two"
                    " low-rank layers cannot stand for: leave it out, or set factored=false"
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
            self._replacements[matrix.parameter][:2]
            if matrix.parameter in self._replacements
            else (inside, tuple(tensor_of(inside, "weight").shape))
        )
        low_rank = LowRankLinear(dense, parts, bias_of(inside), transposed=matrix.stored_transposed).train(
            layer.training
        )
        self._place(matrix.module, low_rank)
        self._replacements[matrix.parameter] = _Replacement(layer, shape, low_rank)
        weight = tensor_of(layer, "weight")
        weight.data = weight.data.new_empty(0)

    def put_back(self, name: str, dense: Tensor | None = None) -> None:
        """Put a layer back into its place, its weight the given `[out, in]`; without it, there is memory for values,
        and none in it yet.
        """
        import torch

        layer, shape, low_rank = self._replacements.pop(name)
        weight = tensor_of(layer, "weight")
        weight.data = weight.data.new_empty(shape)
        if dense is not None:
            with torch.no_grad():
                weight.copy_(dense.T if low_rank.transposed else dense)
        layer.register_parameter("bias", low_rank.bias)
        self._place(name.rpartition(".")[0], layer)

    def layer_of(self, name: str) -> nn.Module:
        """A copy of the layer whose weight has that name, with memory for its values, and none in it yet."""
        layer, shape, _ = self._replacements[name]
        made = copy.deepcopy(layer)
        weight = tensor_of(made, "weight")
        weight.data = weight.data.new_empty(shape)
        return made

    def _place(self, place: str, layer: nn.Module) -> None:
        parent, _, attribute = place.rpartition(".")
        gone = [f"{place}.{name}" for name, _ in self._model.get_submodule(place).named_parameters()]
        setattr(self._model.get_submodule(parent), attribute, layer)
        self._changed(gone, {f"{place}.{name}": value for name, value in layer.named_parameters()})


def check_replaceable(matrices: Sequence[Matrix]) -> None:
    """Raise UserError naming the first matrix of an expert, or of a block that layers share: all experts are computed
    from one parameter, which has no place for low-rank layers, and two layers would need one each.
    """
    check_not_shared(matrices, "two low-rank layers cannot stand for it", ", or set factored=false")
    for matrix in matrices:
        if matrix.expert is not None:
            raise UserError(
                f"{matrix.key}: experts are computed from one parameter, which cannot hold low-rank layers: set"
                " factored=false, or choose matrices outside the experts, such as attn"
            )
