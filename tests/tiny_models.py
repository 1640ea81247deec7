"""A tiny config of every causal model that transformers knows: the defaults of the type, its sizes made small by name.

The defaults are those of a whole released model, and a hundred names are in use for the same few sizes. What a name
means is said once, in `SIZES`; what only one type needs stands in `PARTICULARS`. Nothing is downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

HIDDEN, HEADS, LAYERS, VOCABULARY, POSITIONS = 32, 4, 2, 64, 64

_HIDDEN_NAMES = (
    "hidden_size d_model n_embd dim_model emb_dim embedding_dim embedding_size attention_hidden_size lru_width"
    " word_embed_proj_dim input_embedding_size output_embedding_size hidden_size_global projector_input_dim"
    " projector_output_dim out_hidden_size backbone_hidden_size text_hidden_size embed_dim output_channels"
    " pronunciation_embed_dim shape_embed_dim adapter_out_dim mamba_d_ssm ple_embed_dim codebook_dim input_size"
    " vector_quantization_hidden_dimension upsample_groups"
)
_LAYER_NAMES = (
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers"
    " num_encoder_layers num_blocks depth num_layers_per_stack conf_num_hidden_layers num_global_layers"
    " max_window_layers"
)
_HEAD_NAMES = (
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads"
    " num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads conf_num_attention_heads"
    " num_query_groups index_n_heads linear_num_heads mamba_num_heads"
)
_GROUPED_NAMES = "num_key_value_heads kv_n_heads num_kv_heads swa_num_key_value_heads"
_HEAD_WIDTHS = (
    "head_dim kv_channels d_kv d_head dim_head attention_head_dim attention_head_size swa_head_dim v_head_dim"
    " qk_nope_head_dim qk_rope_head_dim index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim"
    " global_head_dim"
)
_INNER_NAMES = (
    "intermediate_size ffn_dim d_ff n_inner dim_ff dff d_inner ffn_hidden_size encoder_ffn_dim decoder_ffn_dim"
    " feed_forward_size mlp_dim intermediate_size_mlp dense_intermediate_size"
)
_EXPERT_INNER_NAMES = (
    "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size"
    " expert_ffn_hidden_size moe_shared_expert_intermediate_size moe_ffn_hidden_size"
)
_EXPERT_NAMES = "num_experts num_local_experts n_routed_experts moe_num_experts"
_CHOSEN_NAMES = "num_experts_per_tok num_experts_per_token moe_top_k moe_topk moe_k top_k"
_RANKS = (
    "q_lora_rank kv_lora_rank o_lora_rank laurel_rank adapter_rank adapter_dim hc_lowrank gated_norm_rank"
    " router_hidden_size time_step_rank mamba_dt_rank hidden_size_per_layer_input"
)
_VOCABULARY_NAMES = (
    "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size audio_vocab_size text_vocab_size"
    " pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab ngram_vocab_size_base"
)
_POSITION_NAMES = (
    "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions max_source_positions context_length"
    " model_max_length original_max_position_embeddings max_length"
)
_WINDOW_NAMES = (
    "sliding_window sliding_window_size window_size attention_window_size local_attention local_attention_window_len"
    " keep_window_size attention_chunk_size"
)
_STATE_NAMES = "state_size mamba_d_state ssm_state_size"
_CHUNK_NAMES = "chunk_size mamba_chunk_size block_size"


def _all(names: str, value: int) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SIZES: Mapping[str, int] = {
    **_all(_HIDDEN_NAMES, HIDDEN),
    **_all(_LAYER_NAMES, LAYERS),
    **_all(_HEAD_NAMES, HEADS),
    **_all(_GROUPED_NAMES, 2),
    **_all(_HEAD_WIDTHS, 8),
    **_all(_INNER_NAMES, 48),
    **_all(_EXPERT_INNER_NAMES, 24),
    **_all(_EXPERT_NAMES, 4),
    **_all(_CHOSEN_NAMES, 2),
    **_all(_RANKS, 16),
    **_all(_VOCABULARY_NAMES, VOCABULARY),
    **_all(_POSITION_NAMES, POSITIONS),
    **_all(_WINDOW_NAMES, 16),
    **_all(_STATE_NAMES, 8),
    **_all(_CHUNK_NAMES, 16),
    "qk_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_head_dim": 16,
    "mamba_headdim": 16,
    "n_mamba_heads": 2,
    "n_groups": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "num_kv_shared_layers": 0,
    "rotary_dim": 4,
    "index_topk": 8,
    "index_topk_blocks": 2,
    "index_block_size": 8,
    "image_size": 16,
    "patch_size": 4,
    "rel_extent": 16,
    "d_rel": 8,
    "ffn_round_up_to_multiple_of": 8,
    "block_multiple_of": 8,
}
"""What a size of that name becomes, where it is larger than that."""
# Kinds of layers, of which a tiny model gets each once.
_LISTS_OF_LAYERS = ("layer_types", "layers_block_type", "block_types", "attn_layers")
# What a config makes anew for the layers that it has.
_MADE_FOR_LAYERS = [
    "mlp_layer_types",
    "attention_layers",
    "attention_types",
    "indexer_types",
    "no_rope_layers",
    "layer_rope_theta",
    "moe_layers",
    "full_attn_idxs",
    "num_attention_heads_per_layer",
    "activation_sparsity_pattern",
    "ple_layer_ids",
    "mtp_layers_block_type",
    "per_layer_config",
    "hybrid_layer_ids",
]
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1, "sep_token_id": 2}

_HEAD_OF_8 = {"head_dim": 8}
_SPARSE_INDEX = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
PARTICULARS: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 3},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "hunyuan_v1_dense": _HEAD_OF_8,
    "hunyuan_v1_moe": _HEAD_OF_8,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": _HEAD_OF_8,
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _SPARSE_INDEX},
    "qwen4_exp_text": _SPARSE_INDEX,
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "xlm": {"causal": True},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
    },
}
"""Settings that one type needs beside the sizes, by model type."""


NOT_BUILT: Mapping[str, str] = {
    "blt": "runs only without a cache: transformers asks its config for a number of layers that it does not have",
    "dbrx": "transformers cannot build it: the config of its attention has no rope_theta",
    "dots3_note": "its defaults of one layer each cannot be made smaller by name",
    "dots3_note_text": "its widths of one layer each cannot be made smaller by name",
    "gemma3n": "needs the package timm for its images; gemma3n_text is built",
    "gemma4_assistant": "a draft model, which reads the cache of another",
    "gemma4_unified_assistant": "a draft model, which reads the cache of another",
    "musicgen": "its config is no decoder's: transformers cannot build the causal model from it",
    "musicgen_melody": "its config is no decoder's: transformers cannot build the causal model from it",
    "xlstm": "its states of a tiny size have shapes that its own kernels refuse",
}
"""Types that are not built, and why."""


def causal_types() -> tuple[str, ...]:
    """Every model type that transformers has a causal model of."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The config of a tiny model of a type."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    return kind(**_merged(_shrunk(kind().to_dict()), PARTICULARS.get(model_type, {})))


def _shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    shrunk: dict[str, Any] = {}
    kinds = _kinds_of_layers(config)
    for name, value in config.items():
        if name in _MADE_FOR_LAYERS or name in ("architectures", "transformers_version", "id2label", "label2id"):
            continue
        shrunk[name] = _small(name, value)
    if "kv_lora_rank" in config and "num_key_value_heads" in config:
        # Keys and values of latent attention are made for every query head.
        shrunk["num_key_value_heads"] = HEADS
    if "is_decoder" in shrunk and not config.get("is_encoder_decoder"):
        shrunk["is_decoder"] = True
    for name, kind in kinds.items():
        shrunk[name] = kind
        for count in _LAYER_NAMES.split():
            if count in config:
                shrunk[count] = len(kind)
    return shrunk


def _kinds_of_layers(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each kind of layer once, in order, and two at the least."""
    found = {}
    for name in _LISTS_OF_LAYERS:
        value = config.get(name)
        if isinstance(value, list | tuple) and value and isinstance(value[0], str):
            kinds = list(dict.fromkeys(value))
            found[name] = kinds if len(kinds) > 1 else kinds * LAYERS
    return found


def _small(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return copy.deepcopy(dict(value)) if name.startswith("rope") else _shrunk(value)
    if name in _SPECIAL and value is not None:
        return _SPECIAL[name] if not isinstance(value, list | tuple) else [_SPECIAL[name]]
    if name.endswith(("token_id", "token_index")) and isinstance(value, int):
        return value % VOCABULARY
    if isinstance(value, list | tuple) and name in _INNER_NAMES.split():
        return SIZES[name]
    if name in SIZES and isinstance(value, int) and not isinstance(value, bool):
        return min(value, SIZES[name])
    return value


def _merged(config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for name, value in more.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def tiny_model(model_type: str, *, dtype: str = "float32") -> nn.Module:
    """A tiny random model of a type, with every weight away from zero. Raises whatever transformers does where it
    cannot be built.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    # The default computes experts by a grouped product, which knows no float64; others take no notice.
    model = AutoModelForCausalLM.from_config(tiny_config(model_type), experts_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(getattr(torch, dtype))


def outputs(model: nn.Module) -> Any:
    """The logits of two prompts."""
    import torch

    tokens = torch.arange(3, 9)
    with torch.no_grad():
        return model(input_ids=torch.stack([tokens, tokens + 7])).logits
