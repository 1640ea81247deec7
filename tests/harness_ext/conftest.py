"""Tiny random models of each family, a word-level tokenizer, and lm-eval wrappers around them; all made here, nothing fetched."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

WORDS = ["<pad>", "<bos>", "<eos>", *(f"w{number}" for number in range(40))]


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)


def _llama_config():
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(WORDS), hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )


def _gpt2_config():
    from transformers import GPT2Config

    return GPT2Config(vocab_size=len(WORDS), n_embd=24, n_inner=40, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)


CONFIGS: dict[str, Callable] = {"llama": _llama_config, "gpt2": _gpt2_config}


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny random model of a family in a folder of its own: `make_model("gpt2", dtype="bfloat16", safe=True)`."""

    def make(family: str, *, dtype: str = "float32", seed: int = 0) -> Path:
        import torch
        from transformers import AutoModelForCausalLM

        folder = tmp_path_factory.mktemp(f"{family}-{dtype}")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[family]())
        # Fresh biases are zero and fresh weights small: spread them, so that every part matters.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        _tokenizer(folder)
        return folder

    return make


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return request.param


@pytest.fixture
def make_lm(make_model) -> Callable[..., object]:
    """A `RecipeLM` on the CPU around a tiny model: `make_lm("llama", dtype="float64")`."""

    def make(family: str, *, dtype: str = "float32"):
        from harness_ext.lm import RecipeLM

        return RecipeLM(str(make_model(family, dtype=dtype)), device="cpu", dtype=dtype)

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
        return lm_eval("run", "--model", "hf", "--model_args", "pretrained=demo", "--tasks", tasks, "--limit", limit, "--batch_size", 16, "--device", "cpu", *arguments)

    return run
