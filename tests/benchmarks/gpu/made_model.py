"""The model that the benchmark measures: a Llama of random weights whose spectra fall as those of trained ones do, a
tokenizer of single bytes, and documents of random letters. Nothing is downloaded.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import nn


class Shapes(NamedTuple):
    """Sizes of a model and of what it reads. documents, tokens: to learn from. prompts: batch and length of a prefill.
    new_tokens: of a decode.
    """

    width: int
    inner: int
    heads: int
    layers: int
    vocabulary: int
    documents: int
    tokens: int
    prompts: tuple[int, int]
    new_tokens: int


SHAPES = {
    "7b": Shapes(4096, 11008, 32, 8, 32000, 64, 256, (8, 2048), 64),
    "small": Shapes(256, 688, 4, 2, 512, 32, 64, (4, 256), 32),
}


def made_model(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Any:
    """A `LlamaForCausalLM`, made on the device. Its weights are the same for every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shapes.vocabulary,
        hidden_size=shapes.width,
        intermediate_size=shapes.inner,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.heads,
        max_position_embeddings=4096,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=256,
        name_or_path="made",
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name:
                parameter.copy_(_falling(parameter))
    return model.eval()


def _falling(weight: nn.Parameter) -> torch.Tensor:
    """A random matrix of the shape of a weight, its singular values falling about as i^-0.5, entries of about 0.02."""
    rows, columns = weight.shape
    rank = min(rows, columns)
    values = torch.arange(1, rank + 1, device=weight.device, dtype=torch.float32) ** -0.5
    left = torch.randn(rows, rank, device=weight.device)
    right = torch.randn(rank, columns, device=weight.device)
    made = (left * values) @ right
    return made * (0.02 / made.std())


def made_tokenizer() -> Any:
    """A tokenizer that gives a token for each byte of a text; 256 is the end, and the padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)} | {"</s>": len(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="</s>", pad_token="</s>", model_max_length=4096
    )


def made_documents(shapes: Shapes) -> list[tuple[str, str]]:
    """Prompts with answers, of so many tokens together."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    return [
        ("w" + "".join(draw.choices(letters, k=shapes.tokens - 4)) + "=", f" {draw.choice(letters[:10])}")
        for _ in range(shapes.documents)
    ]
