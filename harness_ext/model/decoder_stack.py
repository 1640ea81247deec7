"""The decoder layers of a model as a stack, run one at a time by the model's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from harness_ext.model.layout import Matrix

Result = TypeVar("Result")
# The same kernels on the same numbers: next to nothing is left to rounding, but for what GPUs add up in any order.
_CLOSE = 1e-6


def layers_of(model: nn.Module, matrices: Sequence[Matrix]) -> tuple[nn.ModuleList | None, dict[str, int]]:
    """The outermost list of modules that holds all the matrices, and each module's place in it; None where they lie in
    several lists, or in none.
    """
    from torch import nn

    found: dict[str, nn.ModuleList] = {}
    depths: dict[str, int] = {}
    for name in {matrix.module for matrix in matrices}:
        parts = name.split(".")
        for length in range(1, len(parts)):
            outer = ".".join(parts[:length])
            module = model.get_submodule(outer)
            if isinstance(module, nn.ModuleList):
                found[outer] = module
                depths[name] = int(parts[length])
                break
        else:
            return None, {}
    return (next(iter(found.values())), depths) if len(found) == 1 else (None, {})


def hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def hidden_in(output: Any) -> Tensor:
    """The hidden states in what a layer gives: alone, or first among others."""
    return output[0] if isinstance(output, (tuple, list)) else output


def pass_on(length: int | None) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = hidden_of(args, kwargs)
        return hidden if length is None else (hidden, *[None] * (length - 1))

    return forward


@contextmanager
def computing_instead(layers: nn.ModuleList, forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """The first layers compute something else while the block lasts."""
    replaced = list(layers)[: len(forwards)]
    had = [layer.__dict__.get("forward") for layer in replaced]
    try:
        for layer, forward in zip(replaced, forwards, strict=True):
            layer.forward = forward
        yield
    finally:
        for layer, own in zip(replaced, had, strict=True):
            if own is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = own


Call = Callable[[], Any]
"""Runs the model on one batch, from its tokens on."""


class _FarEnough(Exception):
    """Ends a pass that has come as far as was wanted."""


class DecoderStack:
    """The decoder layers of a model. Each is run by the model's own forward, which makes masks and positions as the
    architecture wants them: the layers below pass on what they are given, and the pass ends behind the layer.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self.layers = layers
        self._tuple_lengths: dict[int, int | None] = {}

    def __len__(self) -> int:
        return len(self.layers)

    def entering(self, call: Call) -> Tensor:
        """The hidden states `[b, t, d]` that enter the first layer."""
        seen: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(hidden_of(args, kwargs))
            raise _FarEnough

        with _hooked(self.layers[0].register_forward_pre_hook(stop, with_kwargs=True)), suppress(_FarEnough):
            call()
        return seen[0]

    def through(self, layer: int, hidden: Tensor, call: Call) -> Tensor:
        """What a layer makes of hidden states `[b, t, d]`. The layers below were run before, which showed the form of
        what they return.
        """
        seen: list[Tensor] = []

        def enter(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            where = device_of(module)
            # A copy: a layer may add to what it is given in place.
            given = hidden.to(where) if hidden.device != where else hidden.clone()
            args, kwargs = moved_to(where, args), moved_to(where, kwargs)
            return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

        def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._tuple_lengths[layer] = len(output) if isinstance(output, (tuple, list)) else None
            seen.append(hidden_in(output))
            raise _FarEnough

        current = self.layers[layer]
        with (
            computing_instead(self.layers, [pass_on(self._tuple_lengths[depth]) for depth in range(layer)]),
            _hooked(current.register_forward_pre_hook(enter, with_kwargs=True)),
            _hooked(current.register_forward_hook(stop)),
            suppress(_FarEnough),
        ):
            call()
        return seen[0]

    @contextmanager
    def placed(self, layer: int, device: torch.device | None) -> Iterator[None]:
        """A layer is on another device while the block lasts; None for where it is."""
        module, home = self.layers[layer], device_of(self.layers[layer])
        if device is None or device == home:
            yield
            return
        module.to(device)
        try:
            yield
        finally:
            module.to(home)

    def beyond(self, hidden: Tensor, call: Callable[[], Result]) -> Result:
        """What the model makes of the hidden states `[b, t, d]` that leave its last layer."""
        last = self._tuple_lengths[len(self) - 1]

        def leave(*args: Any, **kwargs: Any) -> Any:
            return hidden if last is None else (hidden, *[None] * (last - 1))

        passing = [pass_on(self._tuple_lengths[depth]) for depth in range(len(self) - 1)]
        with computing_instead(self.layers, [*passing, leave]):
            return call()

    def adds_up(self, calls: Sequence[Call]) -> bool:
        """Whether running one layer after another, each on all batches, makes what plain passes make, but for rounding.
        calls: run the model on different batches, so that nothing that one leaves behind helps another.

        Models are no plain stack whose layers hand more to each other than hidden states.
        """
        import torch

        with torch.no_grad():
            try:
                plain = [self._outputs_of(call) for call in calls]
                states = [self.entering(call) for call in calls]
                for layer in range(len(self)):
                    states = [self.through(layer, hidden, call) for hidden, call in zip(states, calls, strict=True)]
                    if not all(_same(hidden, wanted[layer]) for hidden, wanted in zip(states, plain, strict=True)):
                        return False
                rest = [self.beyond(hidden, call) for hidden, call in zip(states, calls, strict=True)]
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
                # Whatever an architecture makes of layers that it was not written for.
                return False
            return all(_same(found.logits, call().logits) for found, call in zip(rest, calls, strict=True))

    def _outputs_of(self, call: Call) -> list[Tensor]:
        """What each layer gives in a plain pass."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen.append(hidden_in(output).clone())

        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(_hooked(layer.register_forward_hook(keep)))
            call()
        return seen


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device


def moved_to(device: torch.device, value: Any) -> Any:
    """The same with all tensors on a device, wherever they are nested: masks, positions and the like."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(moved_to(device, item) for item in value)
    if isinstance(value, dict):
        return {key: moved_to(device, item) for key, item in value.items()}
    return value


def _same(found: Tensor, wanted: Tensor) -> bool:
    """Whether every token's numbers `[b, t, d]` are the same but for rounding, or not finite in both."""
    import torch

    if found.shape != wanted.shape:
        return False
    allowed = max(_CLOSE, 4 * torch.finfo(wanted.dtype).eps)
    apart, size = ((value.double().norm(dim=-1)) for value in (found.double() - wanted.double(), wanted))
    return bool(((apart <= allowed * size) | ~(found.isfinite().all(-1) | wanted.isfinite().all(-1))).all())


@contextmanager
def _hooked(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
