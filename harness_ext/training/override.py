"""The model computing with other matrices in place of its own, by a hook on each module's output; its weights are not
touched.

The other matrix is a function of the inputs, so it need not be dense and may learn. Of a module of which only a part is
replaced (one role of a fused matrix, one head), the rest of the weight is kept as a copy with zeros in the part's
place: taking the part's output away again would lose precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from harness_ext.calibration.observed import part_of
from harness_ext.errors import UserError
from harness_ext.model.layout import Matrix
from harness_ext.model.typed import tensor_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_ext.model.geometry import Ranges


@contextmanager
def swapped(
    model: nn.Module, matrices: Sequence[Matrix], function: Callable[[str], Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """The model computes `function(matrix.key)(x)`, `[..., n]` to `[..., m]`, for every `W x`; asked for at each call,
    so that it may be another meanwhile.

    Raises UserError for a matrix whose module is no linear layer, and for matrices that overlap.
    """
    modules = dict(model.named_modules())
    by_module: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        by_module.setdefault(matrix.module, []).append(matrix)
    with ExitStack() as stack:
        for name, parts in by_module.items():
            _require_linear(modules[name], parts[0])
            stack.callback(modules[name].register_forward_hook(_replacement(modules[name], parts, function)).remove)
        yield


def _require_linear(module: nn.Module, matrix: Matrix) -> None:
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    from harness_ext.model.low_rank import LowRankLinear

    if not isinstance(module, (Linear, Conv1D, LowRankLinear)):
        raise UserError(
            f"{matrix.key} belongs to a {type(module).__name__}, and only linear layers can be trained: choose roles,"
            " or attn or mlp"
        )


def _replacement(
    module: nn.Module, parts: Sequence[Matrix], function: Callable[[str], Callable[[Tensor], Tensor]]
) -> Callable[..., Tensor]:
    import torch

    rest = _rest(module, parts)
    places = [_places(matrix.rows, matrix.full_shape[0]).to(tensor_of(module, "weight").device) for matrix in parts]

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs, bias = args[0], getattr(module, "bias", None)
        if rest is not None:
            total = torch.nn.functional.linear(inputs, rest, bias)
        else:
            total = torch.zeros_like(output) if bias is None else bias.expand_as(output)
        for matrix, rows in zip(parts, places, strict=True):
            product = function(matrix.key)(wide(part_of(inputs, matrix.columns)))
            total = total.to(product).index_add(-1, rows, product)
        return total.to(output)

    return hook


def wide(values: Tensor) -> Tensor:
    """At least fp32, in which everything is trained."""
    import torch

    return values if values.dtype == torch.float64 else values.float()


def _rest(module: nn.Module, parts: Sequence[Matrix]) -> Tensor | None:
    """The weight `[out, in]` with zeros where the parts are; None where they are all of it."""
    import torch

    rows, columns = parts[0].full_shape
    free = torch.ones(rows, columns, dtype=torch.bool)
    for matrix in parts:
        place = (_places(matrix.rows, rows)[:, None], _places(matrix.columns, columns))
        if not bool(free[place].all()):
            raise UserError(
                f"{matrix.key} overlaps another matrix of the step, and they cannot be trained together: name each part"
                " once"
            )
        free[place] = False
    if not bool(free.any()):
        return None
    weight = tensor_of(module, "weight").detach()
    return (weight.T if parts[0].stored_transposed else weight).masked_fill(~free.to(weight.device), 0)


def _places(ranges: Ranges | None, full: int) -> Tensor:
    import torch

    return torch.cat([torch.arange(start, stop) for start, stop in ranges or ((0, full),)])
