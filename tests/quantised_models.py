"""Tiny checkpoints as quantisers write them, and what their weights stand for, by the formulas of the formats.

Each format's numbers are written by hand and worked out again in numpy, without the code of transformers or of the
packages that read them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness_ext.demo import demo_path

BLOCK, GROUP = 16, 32
# The 16 numbers of FP4, by sign, two bits of exponent and one of mantissa (Open Compute Project, Microscaling 1.0).
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# Quantiles of a normal distribution, scaled to [-1, 1] (QLoRA, arXiv:2305.14314, appendix E).
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


class Quantised(NamedTuple):
    """One weight as it is stored, by what follows the name of its layer, and what it stands for."""

    stored: Mapping[str, Any]
    meant: np.ndarray


def fp8_number(bits: np.ndarray) -> np.ndarray:
    """E4M3: a sign, four bits of exponent with bias 7, three of mantissa (arXiv:2209.05433)."""
    sign = np.where(bits >> 7, -1.0, 1.0)
    exponent, mantissa = (bits >> 3) & 15, (bits & 7) / 8.0
    size = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent.astype(float) - 7))
    return (sign * size).astype(np.float32)


def fp8(weight: np.ndarray, draw: np.random.Generator) -> Quantised:
    """Blocks of 16 x 16 numbers, each with a factor of its own."""
    import torch

    blocks = weight.reshape(weight.shape[0] // BLOCK, BLOCK, weight.shape[1] // BLOCK, BLOCK)
    scale = (np.abs(blocks).max((1, 3), keepdims=True) / 448).astype(np.float32)
    bits = torch.from_numpy(blocks / scale).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    stored = {
        "weight": torch.from_numpy(bits.reshape(weight.shape)).view(torch.float8_e4m3fn),
        "weight_scale_inv": torch.from_numpy(scale[:, 0, :, 0].copy()),
    }
    return Quantised(stored, (fp8_number(bits) * scale).reshape(weight.shape))


def packed_int4(weight: np.ndarray, draw: np.random.Generator) -> Quantised:
    """Eight signed numbers of four bits in one of 32, the first in the lowest bits, each plus 8; a factor for 32."""
    import torch

    groups = weight.reshape(weight.shape[0], -1, GROUP)
    scale = (np.abs(groups).max(2) / 7).astype(np.float32)
    whole = np.clip(np.rint(groups / scale[:, :, None]), -8, 7).astype(np.int8)
    nibbles = (whole.reshape(weight.shape[0], -1, 8) + np.int8(8)).astype(np.uint32)
    packed = (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(2, dtype=np.uint32).view(np.int32)
    stored = {
        "weight_packed": torch.from_numpy(packed.copy()),
        "weight_scale": torch.from_numpy(scale),
        "weight_shape": torch.tensor(weight.shape),
    }
    return Quantised(stored, (whole.astype(np.float32) * scale[:, :, None]).reshape(weight.shape))


def nf4(weight: np.ndarray, draw: np.random.Generator) -> Quantised:
    """Two numbers in a byte, the first in the upper bits, as places of a table; a factor for 64."""
    import torch

    groups = weight.reshape(-1, 64)
    scale = np.abs(groups).max(1).astype(np.float32)
    places = np.abs(groups[:, :, None] / scale[:, None, None] - NF4).argmin(2).astype(np.uint8)
    nibbles = places.reshape(-1, 2)
    about = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    stored = {
        "weight": torch.from_numpy((nibbles[:, :1] << 4) | nibbles[:, 1:]),
        "weight.absmax": torch.from_numpy(scale),
        "weight.quant_map": torch.from_numpy(NF4.copy()),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8),
    }
    return Quantised(stored, (NF4[places] * scale[:, None]).reshape(weight.shape))


def mxfp4(weight: np.ndarray, draw: np.random.Generator) -> Quantised:
    """Of experts `[experts, in, out]`, stored `[experts, out, in]`: two numbers in a byte, the first in the lower bits;
    a power of two for 32.
    """
    import torch

    turned = weight.swapaxes(1, 2)
    shape = (*turned.shape[:2], turned.shape[2] // GROUP, GROUP)
    places = draw.integers(0, 16, shape).astype(np.uint8)
    powers = draw.integers(118, 124, shape[:3]).astype(np.uint8)
    pairs = places.reshape(*shape[:3], GROUP // 2, 2)
    stored = {
        "_blocks": torch.from_numpy(pairs[..., 0] | (pairs[..., 1] << 4)),
        "_scales": torch.from_numpy(powers),
    }
    meant = FP4[places] * np.exp2(powers.astype(np.float32) - 127)[..., None]
    return Quantised(stored, np.ascontiguousarray(meant.reshape(turned.shape).swapaxes(1, 2)))


class Format(NamedTuple):
    """How a format's checkpoints are made. package: that transformers needs for them, if any. settings: its
    `quantization_config`.
    """

    quantise: Callable[[np.ndarray, np.random.Generator], Quantised]
    settings: Mapping[str, Any]
    package: str | None = None


_INT4 = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": GROUP,
}
FORMATS = {
    "fp8": Format(fp8, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}),
    "mxfp4": Format(mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn", "lm_head", "router"]}),
    "compressed-tensors": Format(
        packed_int4,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": _INT4}},
        },
        "compressed_tensors",
    ),
    "bitsandbytes": Format(
        nf4,
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ["lm_head"],
        },
        "bitsandbytes",
    ),
}


def plain_model(place: Path, kind: str) -> Path:
    """The embedded model for formats of linear layers; for mxfp4 a mixture of experts with its tokenizer."""
    if kind != "mxfp4":
        return Path(shutil.copytree(demo_path(), place))
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8, "sliding_window": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model("gpt_oss", **sizes, **heads, **tokens, max_position_embeddings=64)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def quantised_pair(place: Path, kind: str) -> tuple[Path, Path]:
    """A quantised checkpoint, and a plain one of the weights that it stands for."""
    import torch
    from safetensors.torch import load_file, save_file

    form, plain, packed = FORMATS[kind], plain_model(place / "plain", kind), place / "packed"
    draw = np.random.default_rng(0)
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, value in load_file(plain / "model.safetensors").items():
        layer, dot, last = name.rpartition(".")
        if last in ("gate_up_proj", "down_proj") and kind == "mxfp4":
            layer, dot = name, ""
        elif not layer.endswith("_proj") or last != "weight" or kind == "mxfp4":
            stored[name] = meant[name] = value
            continue
        found = form.quantise(value.float().numpy(), draw)
        stored |= {f"{layer}{dot}{end}": part.contiguous() for end, part in found.stored.items()}
        meant[name] = torch.from_numpy(found.meant)
    shutil.copytree(plain, packed)
    config = json.loads((plain / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": form.settings}))
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    return packed, plain
