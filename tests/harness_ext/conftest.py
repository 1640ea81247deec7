"""Tiny random models of each family, a word-level tokenizer, and lm-eval wrappers around them; all made here, nothing
fetched.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WORDS = ["<pad>", "<bos>", "<eos>", *(f"w{number}" for number in range(40))]


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)


_SPECIAL = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# Of the shapes that matter here every size differs, and heads are 6 wide: a mix-up of rows, columns or heads cannot
# pass unseen.
_COMMON = {
    **_SPECIAL,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GATED = {**_COMMON, "intermediate_size": 40, "num_key_value_heads": 2}
_GPT = {**_SPECIAL, "n_embd": 24, "n_inner": 40, "n_layer": 3, "n_head": 4, "n_positions": 64}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
# Of the six places of a head four are turned; by default an odd number would be.
_PARTLY_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.67}}
_GEMMA = {**_GATED, "head_dim": 10, "sliding_window": 4}

# A model type, and what its config says.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_GATED, "tie_word_embeddings": True}),
    "llama-biased": ("llama", {**_GATED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "mistral": ("mistral", {**_GATED, "sliding_window": 4}),
    "qwen2": ("qwen2", _GATED),
    "qwen3": ("qwen3", {**_GATED, "head_dim": 10}),
    "gemma2": ("gemma2", {**_GEMMA, "query_pre_attn_scalar": 10}),
    "gemma3": (
        "gemma3_text",
        {
            **_GEMMA,
            "query_pre_attn_scalar": 10,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi": ("phi", {**_COMMON, **_PARTLY_ROTARY, "intermediate_size": 40, "num_key_value_heads": 2}),
    "phi3": ("phi3", _GATED),
    "gpt2": ("gpt2", _GPT),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4, "tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", {**_COMMON, **_PARTLY_ROTARY, "intermediate_size": 40}),
    "gpt_neox-unbiased": ("gpt_neox", {**_COMMON, **_PARTLY_ROTARY, "intermediate_size": 40, "attention_bias": False}),
    # Their ReLU would leave some rows without effect.
    "opt": ("opt", {**_COMMON, "ffn_dim": 40, "word_embed_proj_dim": 24, "activation_function": "gelu"}),
    "opt-unbiased": (
        "opt",
        {**_COMMON, "ffn_dim": 40, "word_embed_proj_dim": 16, "enable_bias": False, "activation_function": "gelu"},
    ),
    "bloom": ("bloom", {**_SPECIAL, "hidden_size": 24, "n_layer": 3, "n_head": 4}),
    "falcon": ("falcon", {**_COMMON, "ffn_hidden_size": 40}),
    "falcon-grouped": (
        "falcon",
        {**_COMMON, "ffn_hidden_size": 40, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon-per-head": (
        "falcon",
        {**_COMMON, "ffn_hidden_size": 40, "multi_query": False, "alibi": True, "bias": True},
    ),
    "mixtral": ("mixtral", {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", {**_GATED, **_EXPERTS, "shared_expert_intermediate_size": 28, "mlp_only_layers": [2]}),
    "qwen3_moe": ("qwen3_moe", {**_GATED, **_EXPERTS, "head_dim": 10}),
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
_LATENT = {
    **_COMMON,
    "intermediate_size": 40,
    "num_key_value_heads": 4,
    "q_lora_rank": 14,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_DELTA_NET = {
    **_GATED,
    "head_dim": 10,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_MAMBA1 = {"mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 5}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 6,
    "mamba_n_groups": 1,
    "mamba_d_state": 4,
    "mamba_chunk_size": 8,
}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_TWICE = {
    **_GATED,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "mamba_d_state": 4,
    "mamba_d_conv": 3,
    "attention_head_dim": 12,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
}

# Further ones whose positions rotate nothing.
UNROTATED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neo": ("gpt_neo", {**_COMMON, "num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]}),
    "gpt_bigcode": ("gpt_bigcode", _GPT),
    "openai-gpt": ("openai-gpt", _GPT),
    "mpt": ("mpt", {**_SPECIAL, "d_model": 24, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": 64}),
}

# Latent attention, fused experts in other layouts, and hybrids, which have not every role in every layer.
MIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3": ("deepseek_v3", {**_LATENT, **_ROUTED}),
    "gpt_oss": ("gpt_oss", {**_GATED, **_LOCAL_EXPERTS, "head_dim": 10, "sliding_window": 8}),
    "qwen3_next": ("qwen3_next", {**_DELTA_NET, **_EXPERTS, "shared_expert_intermediate_size": 28}),
    "lfm2": (
        "lfm2",
        {**_GATED, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "zamba": ("zamba", {**_TWICE, "mamba_dt_rank": 5, "n_mamba_heads": 2}),
    "deepseek_v2": ("deepseek_v2", {**_LATENT, **_ROUTED}),
    "deepseek_v2-lite": ("deepseek_v2", {**_LATENT, **_ROUTED, "q_lora_rank": None}),
    "deepseek_v32": ("deepseek_v32", {**_LATENT, **_ROUTED}),
    "glm4_moe_lite": ("glm4_moe_lite", {**_LATENT, **_ROUTED}),
    "glm_moe_dsa": ("glm_moe_dsa", {**_LATENT, **_ROUTED}),
    "axk1": ("axk1", {**_LATENT, **_ROUTED}),
    "minicpm3": ("minicpm3", _LATENT),
    "youtu": ("youtu", _LATENT),
    "qwen3_5_text": ("qwen3_5_text", _DELTA_NET),
    "lfm2_moe": (
        "lfm2_moe",
        {**_GATED, **_EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "jamba": (
        "jamba",
        {
            **_GATED,
            **_MAMBA1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    "bamba": ("bamba", {**_GATED, **_MAMBA2, "attn_layer_indices": [1]}),
    "falcon_h1": ("falcon_h1", {**_GATED, **_MAMBA2, "mamba_d_ssm": 48}),
    "granitemoe": ("granitemoe", {**_GATED, **_LOCAL_EXPERTS}),
    "granitemoeshared": ("granitemoeshared", {**_GATED, **_LOCAL_EXPERTS, "shared_intermediate_size": 28}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **_GATED,
            **_MAMBA2,
            **_LOCAL_EXPERTS,
            "shared_intermediate_size": 28,
            "layer_types": ["mamba", "attention", "mamba"],
        },
    ),
    "zamba2": (
        "zamba2",
        {
            **_TWICE,
            "mamba_ngroups": 1,
            "n_mamba_heads": 4,
            "mamba_headdim": 12,
            "mamba_expand": 2,
            "chunk_size": 8,
            "num_mem_blocks": 1,
            "adapter_rank": 3,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            **_GATED,
            **_ROUTED,
            "num_hidden_layers": 4,
            "head_dim": 10,
            "layers_block_type": ["mamba", "moe", "attention", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 6,
            "n_groups": 1,
            "ssm_state_size": 4,
            "chunk_size": 8,
            "moe_shared_expert_intermediate_size": 28,
        },
    ),
    "mamba": ("mamba", {**_GATED, "state_size": 4, "time_step_rank": 5}),
    "mamba2": ("mamba2", {**_GATED, "num_heads": 8, "head_dim": 6, "state_size": 4, "n_groups": 1, "chunk_size": 8}),
    "falcon_mamba": ("falcon_mamba", {**_GATED, "state_size": 4, "time_step_rank": 5}),
}
_QUICK = ("deepseek_v3", "gpt_oss", "qwen3_next", "lfm2")
# One whose matrices are all apart, and one that fuses and transposes: what holds for both mostly holds for all, and all
# are asked among the slow tests.
REPRESENTATIVES = ("gpt2", "llama")


_ONE_OF = 3
"""Of a grid over families, each other than the representatives runs every third case among the slow tests, beginning at
another one; the rest is `long`.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Thin out the grids over families."""
    grids: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        family = item.callspec.params.get("family") if hasattr(item, "callspec") else None
        if family in CONFIGS and family not in REPRESENTATIVES and item.get_closest_marker("slow"):
            grids.setdefault((item.nodeid.partition("[")[0], family), []).append(item)
    for (_, family), cases in grids.items():
        first = list(CONFIGS).index(family)
        for number, item in enumerate(cases if len(cases) >= _ONE_OF else ()):
            if (number + first) % _ONE_OF:
                item.add_marker("long")


def tiny_config(family: str) -> PreTrainedConfig:
    """The config of a tiny model of a family, or of a variant of one."""
    from transformers import AutoConfig

    model_type, settings = {**CONFIGS, **UNROTATED, **MIXED}[family]
    return AutoConfig.for_model(model_type, **settings)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny random model of a family in a folder of its own: `make_model("gpt2", dtype="bfloat16",
    safe=True)`.
    """

    @cache
    def made(family: str, dtype: str, seed: int) -> Path:
        import torch
        from transformers import AutoModelForCausalLM

        folder = tmp_path_factory.mktemp(f"{family}-{dtype}-{seed}")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family))
        # Fresh biases are zero and fresh weights small: spread them, so that every part matters.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        _tokenizer(folder)
        return folder

    def make(family: str, *, dtype: str = "float32", seed: int = 0) -> Path:
        # Tests write into their folders, and a copy is made in a fifth of the time.
        return Path(shutil.copytree(made(family, dtype, seed), tmp_path_factory.mktemp(f"{family}-{dtype}") / "model"))

    return make


@pytest.fixture(
    params=[name if name in REPRESENTATIVES else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn; in the quick tests the representatives."""
    return request.param


@pytest.fixture(params=["llama", "gpt2"])
def plain_family(request: pytest.FixtureRequest) -> str:
    """The families of plain layout, for references that read rows in one range and inputs with their batch;
    `test_architectures` covers the layouts themselves.
    """
    return request.param


@pytest.fixture(scope="session", params=list(CONFIGS))
def every_family(request: pytest.FixtureRequest) -> str:
    """Each family in turn, in the quick tests too."""
    return request.param


@pytest.fixture(
    scope="module", params=[name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MIXED]
)
def mixed(request: pytest.FixtureRequest) -> str:
    """Each model of latent attention, of fused experts or of mixers in turn; in the quick tests a few."""
    return request.param


@pytest.fixture
def make_lm(make_model) -> Callable[..., object]:
    """A `RecipeLM` on the CPU around a tiny model: `make_lm("llama", dtype="float64")`."""

    def make(family: str, *, dtype: str = "float32"):
        from transformers import PreTrainedTokenizerFast

        from harness_ext.lm_eval_adapter.backend import RecipeLM

        folder = make_model(family, dtype=dtype)
        # For some model types transformers takes a tokenizer of its own, whatever the folder says.
        lm = RecipeLM(str(folder), device="cpu", dtype=dtype, tokenizer=PreTrainedTokenizerFast.from_pretrained(folder))
        if family in (*MIXTURES, *MIXED):
            # The default computes experts by a grouped product, which knows no float64.
            lm.model.set_experts_implementation("eager")
        return lm

    return make


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ran]:
    """Run our `lm_eval` in this process, in a folder of the test's own: `lm_eval("recipes", "show", "laser")`."""

    def run(*arguments: object) -> Ran:
        from harness_ext.cli import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["lm_eval", *map(str, arguments)])
        # Set by a run that is not at a terminal; the next test must not inherit it.
        monkeypatch.setenv("TQDM_DISABLE", "1")
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            logging.getLogger("lm_eval").setLevel(logging.NOTSET)
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def demo_run(lm_eval: Callable[..., Ran]) -> Callable[..., Ran]:
    """A small run on the embedded model: `demo_run("--recipe", "laser")`."""

    def run(*arguments: object, tasks: str = "int_mult", limit: int = 24) -> Ran:
        return lm_eval(
            "run",
            "--model",
            "hf",
            "--model_args",
            "pretrained=demo",
            "--tasks",
            tasks,
            "--limit",
            limit,
            "--batch_size",
            16,
            "--device",
            "cpu",
            *arguments,
        )

    return run
