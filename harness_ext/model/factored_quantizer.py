"""transformers' side of a factored checkpoint: a quantiser of its registry, which makes low-rank layers before weights
are loaded, and checks them afterwards.

Importing this module registers it. `harness_ext.model.registration` does so when transformers' registry is imported.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from harness_ext.errors import UserError
from harness_ext.model.factored_checkpoint import (
    METHOD,
    check_loaded,
    check_stored,
    make_dense,
    make_layers,
    read_factored,
)


def _local(config: Any) -> Path | None:
    """The folder that a model is loaded from; None for one on the hub, or one that is not loaded."""
    name = str(getattr(config, "name_or_path", "") or "")
    return Path(name) if name and Path(name).is_dir() else None


class LowRankConfig(QuantizationConfigMixin):
    """The `quantization_config` of a factored checkpoint, as transformers keeps it: plain data."""

    def __init__(self, **described: Any) -> None:
        self.__dict__.update({**described, "quant_method": METHOD})


class LowRankQuantizer(HfQuantizer):
    """Loads a factored checkpoint into low-rank layers."""

    requires_calibration = True
    quantization_config: LowRankConfig

    def __init__(self, quantization_config: LowRankConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._described = read_factored(quantization_config.to_dict())

    # Whichever of these a release calls, it is before it looks for the weights.

    def update_attn_implementation(self, config: Any) -> Any:
        """Tell transformers the name of the file with the weights."""
        if self._described.weights is not None:
            if (folder := _local(config)) is not None and not (folder / self._described.weights).is_file():
                raise UserError(
                    f"{folder} holds no {self._described.weights}, in which its weights are: copy or export it again"
                )
            config.transformers_weights = self._described.weights
        return config

    update_tp_plan = update_ep_plan = update_attn_implementation

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        make_layers(model, self._described, str(model.config.name_or_path) or "the factored checkpoint")
        if (folder := _local(model.config)) is not None and self._described.weights is not None:
            check_stored(model, folder, self._described.weights)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        check_loaded(model, str(model.config.name_or_path) or "the factored checkpoint")
        # Saved again by transformers, the file has the usual name.
        self.quantization_config = copy.copy(self.quantization_config)
        self.quantization_config.__dict__.pop("weights", None)
        model.config.quantization_config = self.quantization_config
        model.config.__dict__.pop("transformers_weights", None)
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        # Once it was saved, a model's config has the name of a dtype.
        make_dense(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return model

    def is_serializable(self) -> bool:
        """Whether the model can be saved: as it was loaded."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether transformers may compile its forward pass for single tokens (`cache_implementation=static`)."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether factors are trained: no."""
        return False


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(LowRankConfig)
    register_quantizer(METHOD)(LowRankQuantizer)
