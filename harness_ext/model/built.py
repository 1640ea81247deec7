"""Names and shapes of a model's parameters as transformers builds it from a config, without allocating any.

For models whose checkpoint is renamed and fused as it is loaded in ways that only transformers knows, and in which
layers share blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.model.checkpoint import Checkpoint, StoredTensor
from harness_ext.model.completeness import config_of, silent

if TYPE_CHECKING:
    from torch import nn

_FLOATS = ("F64", "F32", "F16", "BF16")
_OF_CONFIG = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def built(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint with the config that transformers completes and the parameters that it builds; None for a model
    that it cannot build, or not as a causal language model. A shared parameter is there once.

    A parameter has the dtype of its namesake in the headers; one without, the dtype that most of them have.
    """
    if "model_type" not in checkpoint.config:
        return None
    with silent():
        made = _made(checkpoint.config)
    if made is None:
        return None
    config, shapes, shared, classes = made
    usual = _usual_dtype(checkpoint)
    tensors = {
        name: StoredTensor(
            shape, stored.dtype if (stored := checkpoint.tensors.get(name)) and stored.dtype in _FLOATS else usual
        )
        for name, shape in shapes.items()
    }
    return Checkpoint(checkpoint.name, config, tensors, shared, classes)


def shared_parameters(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The other names of every parameter that has several, by the name under which `named_parameters` lists it."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return {first: tuple(others) for first, *others in names.values() if others}


def module_classes(model: nn.Module) -> dict[str, str]:
    """The class name of every module, by its name."""
    return {name: type(module).__name__ for name, module in model.named_modules()}


class _Made(NamedTuple):
    """A model without weights: its config, the shapes of its parameters, what is shared, and the classes of its
    modules.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    shared: Mapping[str, tuple[str, ...]]
    classes: Mapping[str, str]


def _made(stored: Mapping[str, Any]) -> _Made | None:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        config = config_of(stored)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:
        # Whatever a config from anywhere brings about: the loader will say it in its own words.
        return None
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    return _Made(model.config.to_dict(), shapes, shared_parameters(model), module_classes(model))


def _usual_dtype(checkpoint: Checkpoint) -> str:
    """Of packed weights, which are unpacked as they are loaded, what the config says."""
    counts = Counter(tensor.dtype for tensor in checkpoint.tensors.values() if tensor.dtype in _FLOATS)
    if counts and not checkpoint.config.get("quantization_config"):
        return counts.most_common(1)[0][0]
    said = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    return _OF_CONFIG.get(str(said), "BF16")
