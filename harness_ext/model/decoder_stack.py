"""The decoder layers of a model as a stack, run one at a time by the model's own forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_ext.model.layout import Matrix


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


def pass_on(length: int | None) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = hidden_of(args, kwargs)
        return hidden if length is None else (hidden, *[None] * (length - 1))

    return forward
