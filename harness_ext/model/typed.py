"""A module's attributes with their types: torch declares each as `Tensor | Module`, whatever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a module. Raises AttributeError where it has none of that name."""
    return cast("Tensor", getattr(module, name))


def bias_of(module: nn.Module) -> nn.Parameter | None:
    """The bias of a linear layer, `[out]`. Raises AttributeError for a module that has no such attribute."""
    return cast("nn.Parameter | None", module.bias)


def pretrained(model: nn.Module) -> PreTrainedModel:
    """The same model, for its config, dtype and embeddings: every model here is one of transformers'."""
    return cast("PreTrainedModel", model)
