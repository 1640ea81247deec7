"""vLLM's side of a factored checkpoint: a quantisation of its registry, whose layers compute with low-rank factors.

vLLM computes q, k and v as one layer, and gate and up. Each matrix of such a layer is a shard, with the tensors that
the checkpoint has for it: its factors, or a dense weight. They are collected as they are read, and become one
`LowRankLinear` (or plain linear) a shard when all are there. On one device: factors are not divided among several.

Importing this module registers it; vLLM does so by the entry point `vllm.general_plugins`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from harness_ext.errors import UserError
from harness_ext.model.factored_checkpoint import METHOD, FactoredConfig, FactoredLayer, empty_layer, read_factored
from harness_ext.model.low_rank import LowRankLinear

_OF_ATTENTION = ("q", "k", "v")
_GROUPS = ("lefts", "rights", "orders")


@register_quantization_config(METHOD)
class VllmLowRankConfig(QuantizationConfig):
    """The description of a factored checkpoint, as vLLM keeps it."""

    def __init__(self, described: FactoredConfig) -> None:
        super().__init__()
        if described.biases:
            raise UserError(
                f"{described.biases[0]} (and {len(described.biases) - 1} more) has a bias that its architecture does"
                " not give it, which vLLM has no place for: load it with transformers, or export a recipe that shifts"
                " no bias (bias=false, where the method has it)"
            )
        self.described = described
        self.layers: dict[str, FactoredLayer] = dict(described.layers)

    def get_name(self) -> str:
        """The name of the method."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Every dtype that a model may have."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any GPU: there are no kernels of its own."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None but config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VllmLowRankConfig:
        """Of what config.json says. Raises UserError where that is wrong."""
        return cls(read_factored(config))

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Name the layers as vLLM does."""
        self.layers = hf_to_vllm_mapper.apply_dict(self.layers)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """How a layer is computed; the ordinary way where none of its shards is factored."""
        if isinstance(layer, ParallelLMHead) and prefix in self.layers:
            raise UserError(f"{prefix} is factored, and vLLM computes it with the embedding: export without it")
        if not isinstance(layer, LinearBase):
            return None
        parent, _, name = prefix.rpartition(".")
        shards = [f"{parent}.{shard}" if parent else shard for shard in self.packed_modules_mapping.get(name, [name])]
        if not any(shard in self.layers for shard in shards):
            return UnquantizedLinearMethod()
        return VllmLowRankMethod([self.layers.get(shard) for shard in shards], shards, self.described.format)


class VllmLowRankMethod(LinearMethodBase):
    """Computes a layer from its shards. shards: the description of each, None for a dense one. names: for messages."""

    def __init__(self, shards: list[FactoredLayer | None], names: list[str], form: str) -> None:
        self._shards, self._names, self._form = shards, names, form

    def create_weights(self, layer: Any, *sizes: Any, **extra: Any) -> None:
        """Make a place for each tensor that the checkpoint may have; what is read is collected beside it."""
        if get_tensor_model_parallel_world_size() > 1:
            raise UserError("factors are not divided among devices: set tensor_parallel_size=1")
        layer.collected = [{} for _ in self._shards]
        layer.parameters_dtype = extra["params_dtype"]
        layer.input_width = extra["input_size"]
        layer.output_widths = extra["output_partition_sizes"]
        for name in ("weight", "rest"):
            layer.register_parameter(name, self._place(layer, name))
        most = max(len(shard.parts) for shard in self._shards if shard is not None)
        for group in _GROUPS:
            places = nn.Module()
            for number in range(most):
                places.register_parameter(str(number), self._place(layer, f"{group}.{number}"))
            layer.add_module(group, places)

    def _place(self, layer: Any, name: str) -> nn.Parameter:
        whole = name.startswith("orders")
        place = nn.Parameter(
            torch.empty(0, dtype=torch.int32 if whole else layer.parameters_dtype), requires_grad=False
        )

        def load(parameter: nn.Parameter, loaded: Tensor, shard: Any = None) -> None:
            shard = getattr(loaded, "shard_id", None) if shard is None else shard
            number = _OF_ATTENTION.index(shard) if shard in _OF_ATTENTION else int(shard or 0)
            layer.collected[number][name] = loaded.clone()

        place.weight_loader = load  # type: ignore[attr-defined]
        return place

    def process_weights_after_loading(self, layer: Any) -> None:
        """Make the shards, and give the places back. Raises UserError where a tensor is missing or does not fit."""
        device = layer.weight.device
        for name in ("weight", "rest", *_GROUPS):
            delattr(layer, name)
        shards = [self._made(layer, number, collected).to(device) for number, collected in enumerate(layer.collected)]
        for shard in shards:
            if isinstance(shard, LowRankLinear):
                shard.reset_order()
        layer.shards = nn.ModuleList(shards)
        del layer.collected

    def _made(self, layer: Any, number: int, collected: Mapping[str, Tensor]) -> nn.Module:
        described, dtype = self._shards[number], layer.parameters_dtype
        shape = (layer.output_widths[number], layer.input_width) if described is None else described.shape
        made: nn.Module = nn.Linear(shape[1], shape[0], bias=False, device="meta", dtype=dtype)
        if described is not None:
            made = empty_layer(made, described, self._form)
        values = {name: value if name.startswith("orders") else value.to(dtype) for name, value in collected.items()}
        try:
            made.load_state_dict(values, assign=True)
        except RuntimeError as error:
            problem = " ".join(str(error).split())
            raise UserError(f"{self._names[number]}: its tensors are not those of its config.json: {problem}") from None
        if not all(bool(torch.isfinite(value).all()) for value in values.values()):
            raise UserError(f"{self._names[number]} holds a NaN or an infinity: copy or export it again")
        return made.requires_grad_(False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x `[..., n]`; returns `[..., m]`, the outputs of the shards one after another."""
        outputs = [shard(x) for shard in layer.shards]
        whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return whole if bias is None else whole + bias
