"""How each kind of model names its layers and lays out its matrices; the next one is one entry in `FAMILIES`.

Three layouts of queries, keys and values occur: a matrix each; one matrix that stacks the three; and one that
interleaves them, for each group of query heads its queries, its key and its value. A group is one head in BLOOM and
GPT-NeoX, all heads in a multi-query Falcon. Latent attention makes queries, and keys with values, in two matrices
each. Layers without attention (state spaces, convolutions, linear attention) have a mixer, with a matrix in and one
out. Experts are found by `harness_ext.model.expert_layouts`; the router that picks among them has no role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness_ext.model.geometry import (
    Heads,
    Rows,
    bigcode,
    bigcode_heads,
    codegen,
    equal_heads,
    falcon_heads,
    half,
    headless,
    interleaved,
    llama_heads,
    stacked,
    zamba_heads,
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LATENT = ("q_a_proj", "kv_a_proj", "q_b_proj", "kv_b_proj")
"""Latent attention: down to the latents, and up from them."""
MIXER = ("in_proj", "out_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ROLES = ATTENTION + LATENT + MIXER + MLP


@dataclass(frozen=True)
class StoredRole:
    """Where a architecture keeps a role: the name of a weight inside a layer, without `.weight`, and the rows of it;
    None for all.
    """

    role: str
    name: str
    rows: Rows | None = None


@dataclass(frozen=True)
class Architecture:
    """How one kind of model names its layers and matrices.

    layer: the text between the start of a name, or a dot, and the number. base: what comes before the names of all but
    the output head in a loaded model; some checkpoints leave it out. geometry: the keys of the config that `heads`
    reads. tied: whether a config that does not say means that the output head shares the embedding's weight. no_heads:
    why its attention matrices cannot be edited head by head; None where they can. built: a plan builds the model,
    without weights, to learn its names, since loading may rename or fuse in ways that only transformers knows.
    """

    model_types: tuple[str, ...]
    layer: str
    base: str
    slots: tuple[StoredRole, ...]
    stored_transposed: bool = False
    tied: bool = False
    heads: Callable[[Mapping[str, Any]], Heads] = llama_heads
    geometry: tuple[str, ...] = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    no_heads: str | None = None
    built: bool = False


def _slots(module: str, **names: str) -> tuple[StoredRole, ...]:
    """Roles that have a matrix each, by its name in the module."""
    return tuple(StoredRole(role, f"{module}{name}") for role, name in names.items())


def _fused(name: str, layout: Callable[[str], Rows]) -> tuple[StoredRole, ...]:
    return tuple(StoredRole(role, name, layout(role)) for role in ATTENTION[:3])


def _gate_up(name: str) -> tuple[StoredRole, ...]:
    return (StoredRole("gate_proj", name, half(0)), StoredRole("up_proj", name, half(1)))


_OWN_NAMES = {role: role for role in ATTENTION}
_QKVO = _slots("self_attn.", **_OWN_NAMES)
_GATED = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_UNGATED = {"up_proj": "up_proj", "down_proj": "down_proj"}
# A norm over all the queries of a token, and one over its keys, rather than over those of each head.
NORMALISED = "queries and keys are normalised across all heads"
_IN_OUT = {role: role for role in MIXER}
# Small ones have no latent for their queries.
_LATENT_ATTENTION = _slots(
    "self_attn.",
    q_proj="q_proj",
    q_a_proj="q_a_proj",
    kv_a_proj="kv_a_proj_with_mqa",
    q_b_proj="q_b_proj",
    kv_b_proj="kv_b_proj",
    o_proj="o_proj",
)
# These have a width of their own for a head when their config names none, rather than a share of the hidden size.
_OWN_WIDTH = ("num_attention_heads", "num_key_value_heads", "head_dim")

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(("llama", "mistral", "qwen2"), "layers.", "model.", _QKVO + _slots("mlp.", **_GATED)),
    Architecture(("qwen3",), "layers.", "model.", _QKVO + _slots("mlp.", **_GATED), geometry=_OWN_WIDTH),
    Architecture(
        ("gemma2", "gemma3_text"), "layers.", "model.", _QKVO + _slots("mlp.", **_GATED), tied=True, geometry=_OWN_WIDTH
    ),
    Architecture(
        # Some Qwen layers are dense, and Qwen2's mixtures have one shared expert beside the others, which is a matrix
        # like any other.
        ("mixtral", "qwen2_moe", "qwen3_moe"),
        "layers.",
        "model.",
        _QKVO + _slots("mlp.", **_GATED) + _slots("mlp.shared_expert.", **_GATED),
    ),
    Architecture(
        ("phi",),
        "layers.",
        "model.",
        _slots("self_attn.", q_proj="q_proj", k_proj="k_proj", v_proj="v_proj", o_proj="dense")
        + _slots("mlp.", up_proj="fc1", down_proj="fc2"),
        geometry=("hidden_size", "num_attention_heads"),
    ),
    Architecture(
        ("phi3",),
        "layers.",
        "model.",
        _fused("self_attn.qkv_proj", stacked)
        + _slots("self_attn.", o_proj="o_proj")
        + _gate_up("mlp.gate_up_proj")
        + _slots("mlp.", down_proj="down_proj"),
        geometry=("hidden_size", "num_attention_heads"),
    ),
    Architecture(
        ("gpt2",),
        "h.",
        "transformer.",
        _fused("attn.c_attn", stacked)
        + _slots("attn.", o_proj="c_proj")
        + _slots("mlp.", up_proj="c_fc", down_proj="c_proj"),
        stored_transposed=True,
        tied=True,
        heads=equal_heads("n_head", "n_embd"),
        geometry=("n_head", "n_embd"),
    ),
    Architecture(
        ("gptj",),
        "h.",
        "transformer.",
        _slots("attn.", q_proj="q_proj", k_proj="k_proj", v_proj="v_proj", o_proj="out_proj")
        + _slots("mlp.", up_proj="fc_in", down_proj="fc_out"),
        heads=equal_heads("n_head", "n_embd"),
        geometry=("n_head", "n_embd"),
    ),
    Architecture(
        ("gpt_neox",),
        "layers.",
        "gpt_neox.",
        _fused("attention.query_key_value", interleaved)
        + _slots("attention.", o_proj="dense")
        + _slots("mlp.", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h"),
        heads=equal_heads("num_attention_heads", "hidden_size"),
        geometry=("num_attention_heads", "hidden_size"),
    ),
    Architecture(
        ("opt",),
        "layers.",
        "model.",
        _slots("self_attn.", q_proj="q_proj", k_proj="k_proj", v_proj="v_proj", o_proj="out_proj")
        + _slots("", up_proj="fc1", down_proj="fc2"),
        tied=True,
        heads=equal_heads("num_attention_heads", "hidden_size"),
        geometry=("num_attention_heads", "hidden_size"),
    ),
    Architecture(
        ("bloom",),
        "h.",
        "transformer.",
        _fused("self_attention.query_key_value", interleaved)
        + _slots("self_attention.", o_proj="dense")
        + _slots("mlp.", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h"),
        tied=True,
        heads=equal_heads("n_head", "hidden_size"),
        geometry=("n_head", "hidden_size"),
    ),
    Architecture(
        ("falcon",),
        "h.",
        "transformer.",
        _fused("self_attention.query_key_value", interleaved)
        + _slots("self_attention.", o_proj="dense")
        + _slots("mlp.", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h"),
        tied=True,
        heads=falcon_heads,
        geometry=("hidden_size", "num_attention_heads", "new_decoder_architecture", "multi_query"),
    ),
    # From here on transformers is asked what a checkpoint's tensors become. Llama's names:
    Architecture(
        (
            "cohere",
            "cohere2",
            "cohere_compass_text",
            "cwm",
            "emu3_text_model",
            "ernie4_5",
            "exaone4",
            "flint",
            "gemma",
            "granite",
            "granite_swa",
            "helium",
            "hunyuan_v1_dense",
            "hyperclovax",
            "internlm3",
            "iquestcoder",
            "ministral",
            "ministral3",
            "olmo",
            "seed_oss",
            "smollm3",
            "stablelm",
            "vaultgemma",
        ),
        "layers.",
        "model.",
        _QKVO + _slots("mlp.", **_GATED),
        built=True,
    ),
    Architecture(
        ("olmo2", "olmo3"),
        "layers.",
        "model.",
        _QKVO + _slots("mlp.", **_GATED),
        no_heads=NORMALISED,
        built=True,
    ),
    Architecture(
        ("diffllama",),
        "layers.",
        "model.",
        _QKVO + _slots("mlp.", **_GATED),
        no_heads="the scores of one are subtracted from those of another",
        built=True,
    ),
    Architecture(
        ("apertus", "arcee", "jais2", "nemotron"),
        "layers.",
        "model.",
        _QKVO + _slots("mlp.", **_UNGATED),
        built=True,
    ),
    Architecture(
        ("glm", "glm4"),
        "layers.",
        "model.",
        _QKVO + _gate_up("mlp.gate_up_proj") + _slots("mlp.", down_proj="down_proj"),
        built=True,
    ),
    Architecture(
        ("starcoder2",),
        "layers.",
        "model.",
        _QKVO + _slots("mlp.", up_proj="c_fc", down_proj="c_proj"),
        built=True,
    ),
    Architecture(
        ("nanochat",), "layers.", "model.", _QKVO + _slots("mlp.", up_proj="fc1", down_proj="fc2"), built=True
    ),
    Architecture(
        ("modernbert-decoder",),
        "layers.",
        "model.",
        _slots("attn.", q_proj="q_proj", k_proj="k_proj", v_proj="v_proj", o_proj="Wo")
        + _gate_up("mlp.Wi")
        + _slots("mlp.", down_proj="Wo"),
        built=True,
    ),
    # Not the towers, whose layers are named alike.
    Architecture(
        ("phi4_multimodal",),
        "model.layers.",
        "",
        _fused("self_attn.qkv_proj", stacked)
        + _slots("self_attn.", o_proj="o_proj")
        + _gate_up("mlp.gate_up_proj")
        + _slots("mlp.", down_proj="down_proj"),
        built=True,
    ),
    Architecture(
        ("persimmon",),
        "layers.",
        "model.",
        _fused("self_attn.query_key_value", interleaved)
        + _slots("self_attn.", o_proj="dense")
        + _slots("mlp.", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h"),
        heads=equal_heads("num_attention_heads", "hidden_size"),
        geometry=("num_attention_heads", "hidden_size"),
        built=True,
    ),
    Architecture(
        ("gpt_neox_japanese",),
        "layers.",
        "gpt_neox_japanese.",
        _fused("attention.query_key_value", interleaved)
        + _slots("attention.", o_proj="dense")
        + _slots("mlp.", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h"),
        heads=equal_heads("num_attention_heads", "hidden_size"),
        geometry=("num_attention_heads", "hidden_size"),
        built=True,
    ),
    Architecture(
        ("gpt_neo",),
        "h.",
        "transformer.",
        _slots("attn.attention.", q_proj="q_proj", k_proj="k_proj", v_proj="v_proj", o_proj="out_proj")
        + _slots("mlp.", up_proj="c_fc", down_proj="c_proj"),
        heads=equal_heads("num_heads", "hidden_size"),
        geometry=("num_heads", "hidden_size"),
        built=True,
    ),
    Architecture(
        ("openai-gpt",),
        "h.",
        "transformer.",
        _fused("attn.c_attn", stacked)
        + _slots("attn.", o_proj="c_proj")
        + _slots("mlp.", up_proj="c_fc", down_proj="c_proj"),
        stored_transposed=True,
        heads=equal_heads("n_head", "n_embd"),
        geometry=("n_head", "n_embd"),
        built=True,
    ),
    Architecture(
        ("gpt_bigcode",),
        "h.",
        "transformer.",
        _fused("attn.c_attn", bigcode)
        + _slots("attn.", o_proj="c_proj")
        + _slots("mlp.", up_proj="c_fc", down_proj="c_proj"),
        heads=bigcode_heads,
        geometry=("n_head", "n_embd", "multi_query"),
        built=True,
    ),
    Architecture(
        ("codegen",),
        "h.",
        "transformer.",
        _fused("attn.qkv_proj", codegen)
        + _slots("attn.", o_proj="out_proj")
        + _slots("mlp.", up_proj="fc_in", down_proj="fc_out"),
        heads=equal_heads("n_head", "n_embd"),
        geometry=("n_head", "n_embd"),
        built=True,
    ),
    Architecture(
        ("mpt",),
        "blocks.",
        "transformer.",
        _fused("attn.Wqkv", stacked) + _slots("attn.", o_proj="out_proj") + _slots("ffn.", **_UNGATED),
        heads=equal_heads("n_heads", "d_model"),
        geometry=("n_heads", "d_model"),
        built=True,
    ),
    # Latent attention, experts, and layers without attention.
    Architecture(
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite", "youtu", "minicpm3", "axk1"),
        "layers.",
        "model.",
        _LATENT_ATTENTION + _slots("mlp.", **_GATED) + _slots("mlp.shared_experts.", **_GATED),
        no_heads="its heads are made from one latent that they share",
        built=True,
    ),
    Architecture(("gpt_oss",), "layers.", "model.", _QKVO, geometry=_OWN_WIDTH, built=True),
    Architecture(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        "layers.",
        "model.",
        _QKVO
        + _slots("linear_attn.", in_proj="in_proj_qkvz", out_proj="out_proj")
        + _slots("linear_attn.", in_proj="in_proj_qkv")
        + _slots("linear_attn.", in_proj="in_proj_z")
        + _slots("mlp.", **_GATED)
        + _slots("mlp.shared_expert.", **_GATED),
        no_heads="its query matrix makes a gate for each query as well",
        built=True,
    ),
    Architecture(
        ("lfm2", "lfm2_moe"),
        "layers.",
        "model.",
        _slots("self_attn.", q_proj="q_proj", k_proj="k_proj", v_proj="v_proj", o_proj="out_proj")
        + _slots("conv.", in_proj="in_proj", out_proj="out_proj")
        + _slots("feed_forward.", gate_proj="w1", up_proj="w3", down_proj="w2"),
        built=True,
    ),
    Architecture(
        ("jamba", "bamba", "falcon_h1"),
        "layers.",
        "model.",
        _QKVO + _slots("mamba.", **_IN_OUT) + _slots("feed_forward.", **_GATED),
        built=True,
    ),
    Architecture(
        ("granitemoe", "granitemoeshared", "granitemoehybrid"),
        "layers.",
        "model.",
        _QKVO
        + _slots("mamba.", **_IN_OUT)
        + _gate_up("shared_mlp.input_linear")
        + _slots("shared_mlp.", down_proj="output_linear"),
        built=True,
    ),
    Architecture(
        # Every few layers have one block of attention and MLP in common, which is named in the first of them.
        ("zamba", "zamba2"),
        "layers.",
        "model.",
        _slots("shared_transf.self_attn.", **_OWN_NAMES)
        + _slots("shared_transformer.self_attn.", **_OWN_NAMES)
        + _slots("shared_transf.feed_forward.", **_GATED)
        + _gate_up("shared_transformer.feed_forward.gate_up_proj")
        + _slots("shared_transformer.feed_forward.", down_proj="down_proj")
        + _slots("mamba.", **_IN_OUT)
        + _slots("mamba_decoder.mamba.", **_IN_OUT),
        heads=zamba_heads,
        geometry=("hidden_size", "num_attention_heads"),
        built=True,
    ),
    Architecture(
        ("nemotron_h",),
        "layers.",
        "model.",
        _slots("mixer.", **_OWN_NAMES)
        + _slots("mixer.", **_IN_OUT)
        + _slots("mixer.", up_proj="up_proj", down_proj="down_proj")
        + _slots("mixer.shared_experts.", up_proj="up_proj", down_proj="down_proj"),
        geometry=_OWN_WIDTH,
        built=True,
    ),
    Architecture(
        ("mamba", "mamba2", "falcon_mamba"),
        "layers.",
        "backbone.",
        _slots("mixer.", **_IN_OUT),
        heads=headless,
        geometry=(),
        built=True,
    ),
)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model: the whole, or `text_config` where that is wrapped
    together with other senses.
    """
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) and architecture_named(config.get("model_type")) is None else config


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a model by its config; None for an architecture without an entry."""
    return architecture_named(text_config(config).get("model_type"))


def architecture_named(model_type: Any) -> Architecture | None:
    """The architecture that claims a `model_type`, or None."""
    return next((entry for entry in ARCHITECTURES if model_type in entry.model_types), None)
