"""Weights of a loaded model that accelerate keeps elsewhere than in its modules (in the memory of the CPU beside a GPU,
or in the files of the checkpoint), and fetches as each layer computes. In the module is a tensor without memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from harness_ext.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

PLACEMENT = frozenset(
    {
        *("parallelize", "device_map", "max_memory", "max_memory_per_gpu", "max_cpu_memory", "gpus"),
        *("offload_folder", "offload_buffers", "offload_state_dict"),
    }
)
"""Arguments of a model that say where its weights are kept, and nothing of what they are."""


def may_offload(model_args: Mapping[str, Any]) -> bool:
    """Whether these arguments have a model spread over what memory there is, the rest of it elsewhere."""
    device_map = model_args.get("device_map")
    spread = device_map in ("auto", "balanced", "balanced_low_0", "sequential") or isinstance(device_map, Mapping)
    return spread or bool(model_args.get("parallelize"))


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights of a model are not in its modules."""
    return any(value.device.type == "meta" for value in model.parameters())


def whole_value(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """A parameter of a model with its numbers: itself, or what is kept elsewhere for it, on the CPU. Raises UserError
    where that cannot be had.
    """
    if value.device.type != "meta":
        return value
    from transformers.integrations.accelerate import load_offloaded_parameter

    try:
        kept = load_offloaded_parameter(cast("PreTrainedModel", model), name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the weight {name} is offloaded, not in memory, and where it is kept cannot be told: give the model more"
            " memory, or drop parallelize and offloading"
        ) from error
    return kept.to(value.dtype)
