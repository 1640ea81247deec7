"""Which coordinates of queries and keys positions turn into each other (rotary embeddings), by the kind of model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.model.geometry import Heads

if TYPE_CHECKING:
    from torch import Tensor


class Rotation(NamedTuple):
    """width: so many coordinates of each head, the first ones, turn in pairs; those after them do not turn. neighbours:
    pairs are coordinates 2 i and 2 i + 1, and else i and i + width / 2.
    """

    width: int = 0
    neighbours: bool = False

    def by_pair(self, values: Tensor) -> Tensor:
        """The turning coordinates, the last dimension of `[..., d]`, pair by pair: `[..., width / 2, 2]`."""
        turning = values[..., : self.width]
        if self.neighbours:
            return turning.unflatten(-1, (-1, 2))
        return turning.unflatten(-1, (2, -1)).transpose(-1, -2)

    def by_coordinate(self, pairs: Tensor) -> Tensor:
        """What each pair has, `[..., width / 2]`, for both of its coordinates: `[..., width]`."""
        if self.neighbours:
            return pairs.repeat_interleave(2, -1)
        return pairs.repeat(*[1] * (pairs.ndim - 1), 2)


_WHOLE = (
    "arcee",
    "cohere_compass_text",
    "cwm",
    "emu3_text_model",
    "falcon_h1",
    "gemma",
    "gemma2",
    "gpt_neox_japanese",
    "gpt_oss",
    "granite",
    "granite_swa",
    "granitemoe",
    "granitemoeshared",
    "hyperclovax",
    "internlm3",
    "iquestcoder",
    "jais2",
    "llama",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "modernbert-decoder",
    "olmo",
    "phi3",
    "phi4_multimodal",
    "qwen2",
    "qwen2_moe",
    "seed_oss",
    "smollm3",
    "starcoder2",
    "vaultgemma",
)
"""A whole head in two halves, but for what a config says."""
_PARTLY = {"gpt_neox": 0.25, "nemotron": 0.5, "persimmon": 0.5, "phi": 0.5, "stablelm": 0.25}
"""A share of a head in two halves, this one where the config names none."""
_NEIGHBOURS = {"cohere": 1.0, "cohere2": 1.0, "ernie4_5": 1.0, "glm": 0.5, "glm4": 0.5, "helium": 1.0}
"""A share of a head in neighbours, this one where the config names none."""
_COUNTED = ("codegen", "gptj")
"""Neighbours, as many as `rotary_dim`, 64 where the config names none."""
_NONE = ("bloom", "gpt2", "gpt_bigcode", "gpt_neo", "mpt", "openai-gpt", "opt")
"""Positions in the embeddings, or as numbers added to scores."""


def rotation_of(config: Mapping[str, Any], heads: Heads) -> Rotation | None:
    """The rotation of a model of this config; None where it is not known here."""
    model_type = str(config.get("model_type"))
    if model_type in _NONE or (model_type == "falcon" and config.get("alibi")):
        return Rotation()
    if model_type == "falcon" or model_type in _WHOLE:
        return Rotation(_width(config, heads, 1.0))
    if model_type in _PARTLY:
        return Rotation(_width(config, heads, _PARTLY[model_type]))
    if model_type in _NEIGHBOURS:
        return Rotation(_width(config, heads, _NEIGHBOURS[model_type]), neighbours=True)
    if model_type in _COUNTED:
        # Without a number they turn by the frequencies of the whole model, which no checkpoint known here does.
        width = config.get("rotary_dim", 64)
        known = isinstance(width, int) and 0 <= width <= heads.width and width % 2 == 0
        return Rotation(width, neighbours=True) if known else None
    return None


def _width(config: Mapping[str, Any], heads: Heads, share: float) -> int:
    """Of whole pairs: a coordinate without another one turns with the next. share: where the config names none that is
    one; transformers says what is wrong with such a config.
    """
    nested = config.get("rope_parameters")
    places = (nested, config) if isinstance(nested, Mapping) else (config,)
    named = [place.get(name) for place in places for name in ("partial_rotary_factor", "rotary_pct")]
    share = next((one for one in named if isinstance(one, int | float) and 0 <= one <= 1), share)
    return min(heads.width, 2 * math.ceil(int(heads.width * share) / 2))
