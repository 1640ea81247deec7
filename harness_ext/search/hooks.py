"""Hooks by which a pass through a model is cut short, parted and thinned out (see `harness_ext.search.suffix_replay`).
None touches a weight, and each is gone when its block ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from harness_ext.model.architectures import MLP
from harness_ext.model.decoder_stack import hidden_of
from harness_ext.model.typed import bias_of, pretrained, tensor_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness_ext.model.layout import Matrix
    from harness_ext.search.candidates import Alternatives
    from harness_ext.search.scoring import Batch


@contextmanager
def enter(layer: nn.Module, hidden: Tensor | None, copies: int, *, shared: bool) -> Iterator[None]:
    """Hand a layer these hidden states `[b, t, d]`, repeated for every copy, or once where the copies part later on;
    for None those that come from below.
    """

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = hidden_of(args, kwargs)
        rows = given.shape[0] // copies
        if shared:
            args, kwargs = first_rows(args, copies), first_rows(kwargs, copies)
            # A copy: a layer may add to what it is given in place.
            new = given[:rows].clone() if hidden is None else hidden.clone()
        else:
            new = given if hidden is None else hidden.repeat(copies, 1, 1)
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def first_rows(value: Any, copies: int) -> Any:
    """The first of the copies of everything that was made for all of them: masks, positions and the like, wherever it
    is nested.
    """
    import torch

    if isinstance(value, torch.Tensor):
        many = value.ndim > 1 and value.shape[0] > 1 and value.shape[0] % copies == 0
        return value[: value.shape[0] // copies] if many else value
    if isinstance(value, tuple):
        return tuple(first_rows(item, copies) for item in value)
    if isinstance(value, dict):
        return {key: first_rows(item, copies) for key, item in value.items()}
    return value


def merge() -> Callable[..., Any]:
    """The output of a layer with its leading axis, `[alternatives, b, t, d]`, as one batch."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        flat = hidden.reshape(-1, *hidden.shape[-2:])
        return (flat, *output[1:]) if isinstance(output, tuple) else flat

    return hook


@contextmanager
def head(model: nn.Module, batch: Batch, copies: int) -> Iterator[None]:
    """The output head sees the positions whose logits are wanted, and no others."""
    head = pretrained(model).get_output_embeddings()

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0].reshape(copies, -1, args[0].shape[-1])
        return (hidden[:, batch.needed], *args[1:])

    handle = head.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def substitute(matrix: Matrix, alternatives: Alternatives, *, shared: bool) -> Callable[..., Tensor]:
    """A hook that puts the outputs of the alternatives in the place of a module's own: along a new leading axis, or,
    not shared, in each copy of the batch its own.
    """
    import torch

    from harness_ext.calibration.observed import part_of

    whole = matrix.rows is None and matrix.columns is None

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        count = len(alternatives)
        own = output if shared else output.reshape(count, -1, *output.shape[1:])[0]
        inputs = part_of(args[0] if shared else args[0].reshape(count, -1, *args[0].shape[1:])[0], matrix.columns)
        flat = inputs.reshape(-1, inputs.shape[-1])
        made = alternatives.outputs(flat)
        if alternatives.shifts is not None:
            made += alternatives.shifts.to(made)[:, None]
        made = made.reshape(count, *inputs.shape[:-1], -1)
        if whole:
            bias = bias_of(module)
            made = made if bias is None else made + bias
        else:
            made = _part_replaced(matrix, module, own, flat, made)
        return made if shared else made.reshape(output.shape)

    def _part_replaced(matrix: Matrix, module: nn.Module, own: Tensor, flat: Tensor, made: Tensor) -> Tensor:
        stored = tensor_of(module, "weight")
        weight = stored.T if matrix.stored_transposed else stored
        ranges = matrix.rows or ((0, matrix.full_shape[0]),)
        rows = torch.cat([weight[low:high] for low, high in ranges])
        before = (flat @ part_of(rows, matrix.columns).T).reshape(*own.shape[:-1], -1)
        result = own.expand(made.shape[0], *own.shape).clone()
        start = 0
        for low, high in ranges:
            result[..., low:high] += made[..., start : start + high - low] - before[..., start : start + high - low]
            start += high - low
        return result

    return hook


def sliced_modules(known: Sequence[Matrix], modules: Mapping[str, nn.Module], layers: int) -> list[nn.Module]:
    """The modules of the last layer that look at each position by itself: its MLP (whole, or matrix by matrix where it
    is no module of its own), and the attention's queries and output.
    """
    chosen: dict[str, nn.Module] = {}
    for matrix in known:
        if matrix.layer != layers - 1 or matrix.expert is not None:
            continue
        outer = matrix.module.rpartition(".")[0]
        if matrix.role in MLP and not outer.rpartition(".")[2].isdigit():
            chosen[outer] = modules[outer]
        elif matrix.role in (*MLP, "o_proj") or (matrix.role == "q_proj" and matrix.rows is None):
            chosen[matrix.module] = modules[matrix.module]
    return list(chosen.values())


@contextmanager
def only_at(modules: Sequence[nn.Module], batch: Batch) -> Iterator[None]:
    """These modules see the wanted positions only; elsewhere their outputs are zero, which nothing looks at."""
    places = batch.tokens.numel()
    shapes: dict[nn.Module, torch.Size] = {}

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs = args[0]
        shapes[module] = inputs.shape
        return (inputs.reshape(-1, places, inputs.shape[-1])[:, batch.needed], *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        shape = shapes.pop(module)
        full = output.new_zeros(*output.shape[:-2], places, output.shape[-1])
        full[..., batch.needed, :] = output
        return full.reshape(*output.shape[:-3], *shape[:-1], output.shape[-1])

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield
