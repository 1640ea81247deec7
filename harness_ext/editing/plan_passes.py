"""What a forward pass, a backward pass and a statistic take on a device: measured there, on random numbers, for a
plan.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.sinks import sink_tokens
from harness_ext.editing.plan_measurement import scaled, square
from harness_ext.editing.plan_timing import timed
from harness_ext.editing.plan_trials import Shape, activations, update
from harness_ext.methods.statistic_registry import RegisteredStatistic, statistics_among
from harness_ext.model.digests import digests_of, tensor_digest

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.methods import Svd

WIDEST = 1024
"""The widest decoder layer that is made to be measured; what it takes beside its products grows with the width."""
_VOCABULARY = 64
_MOST_TOKENS = 128
_HASHED_BYTES = 1 << 26
_SMALL_TENSORS, _TIMES_NAMED = 32, 3
_PACKAGES = ("lm_eval", "torch", "transformers", "accelerate", "safetensors", "datasets", "numpy")


class BatchSize(NamedTuple):
    """A batch of calibration documents."""

    documents: int
    tokens: int

    @property
    def of_all(self) -> int:
        """Tokens of all its documents."""
        return self.documents * self.tokens


@cache
def statistics_seconds(names: frozenset[str], shape: Shape, batch: BatchSize, dtype: str, device: str) -> float:
    """What the statistics of one matrix take of a pass, for one batch; smaller matrices stand for large ones."""
    import torch

    tried = scaled(shape, 512) if min(shape) > 1024 else shape
    inputs, gradients = _in_dtype(tried, batch, dtype, device)
    total = 0.0
    for item in statistics_among(names):
        svd: Svd | Any = _factors(tried, min(tried), device) if item.needs_components else None
        statistic = item.make(svd) if item.needs_components else item.make()
        own_gradients = gradients if item.needs_gradients else None
        with torch.no_grad():
            total += timed(lambda: _taken_in(statistic, item, inputs, own_gradients), device)  # noqa: B023 - at once
    return total * square(shape) / square(tried) * max(1.0, batch.tokens / _MOST_TOKENS)


def _in_dtype(shape: Shape, batch: BatchSize, dtype: str, device: str) -> tuple[Tensor, Tensor]:
    import torch

    made = activations(shape, batch.documents, min(batch.tokens, _MOST_TOKENS), device)
    inputs, gradients = (value.to(getattr(torch, dtype)) for value in made)
    return inputs, gradients


def _taken_in(statistic: Any, item: RegisteredStatistic, inputs: Tensor, gradients: Tensor | None) -> None:
    update(statistic, item, inputs.float(), gradients if gradients is None else gradients.float())


@cache
def watching_seconds(width: int, batch: BatchSize, dtype: str, device: str) -> float:
    """What a pass does with the inputs of a module under watch, for one batch: it finds sinks, twice."""
    inputs, _ = _in_dtype((1, width), batch, dtype, device)
    real = _all_real(inputs)

    def work() -> None:
        for _ in range(2):
            sinks = sink_tokens(inputs, real, real).every
        int(real.sum()), int(sinks.sum())

    return timed(work, device) * max(1.0, batch.tokens / _MOST_TOKENS)


@cache
def outputs_seconds(width: int, batch: BatchSize, dtype: str, device: str) -> float:
    """What a pass does with the outputs of a matrix under watch, for one batch: it measures them."""
    outputs, _ = _in_dtype((1, width), batch, dtype, device)
    real = _all_real(outputs)

    def work() -> None:
        norms = outputs.float().norm(dim=-1).double()
        float(norms[real].sum()), float(norms[real & real].sum())

    return timed(work, device) * max(1.0, batch.tokens / _MOST_TOKENS)


def _all_real(values: Tensor) -> Tensor:
    import torch

    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


def _factors(shape: Shape, rank: int, device: str) -> Svd:
    import torch

    from harness_ext.methods import Svd

    rows, columns = shape
    return Svd(*(torch.randn(size).to(device) for size in ((rows, rank), (rank,), (rank, columns))))


@cache
def product_seconds(shape: Shape, tokens: int, dtype: str, device: str) -> float:
    """What a linear layer of this shape takes for so many tokens; a part of a large one stands for it."""
    import torch

    rows, columns = (min(length, 4096) for length in shape)
    some = min(tokens, 1024)
    weight = torch.randn(rows, columns).to(dtype=getattr(torch, dtype), device=device)
    inputs = torch.randn(some, columns).to(weight)
    with torch.no_grad():
        seconds = timed(lambda: torch.nn.functional.linear(inputs, weight), device)
    return seconds * square(shape) / (rows * columns) * tokens / some


class HostSeconds(NamedTuple):
    """What a pass takes beside its products: once, and for each decoder layer."""

    once: float
    layer: float


@cache
def forward_seconds(width: int, batch: BatchSize, dtype: str, device: str) -> HostSeconds:
    """Norms, attention, activation functions and the calls of modules, at a model's width."""
    return _beside_products(width, batch, dtype, device, backward=False)


@cache
def backward_seconds(width: int, batch: BatchSize, dtype: str, device: str) -> HostSeconds:
    """The same of a backward pass without gradients of weights, and what a forward pass takes more that keeps what it
    needs.
    """
    both = _beside_products(width, batch, dtype, device, backward=True)
    forward = forward_seconds(width, batch, dtype, device)
    return HostSeconds(max(0.0, both.once - forward.once), max(0.0, both.layer - forward.layer))


def _beside_products(width: int, batch: BatchSize, dtype: str, device: str, *, backward: bool) -> HostSeconds:
    few = BatchSize(batch.documents, min(batch.tokens, _MOST_TOKENS))
    narrow = max(64, 64 * (min(width, WIDEST) // 64))
    one, three = (_small_pass(layers, narrow, few, dtype, device, backward) for layers in (1, 3))
    # Those of a backward pass are as large.
    products = (2 if backward else 1) * 7 * product_seconds((narrow, narrow), few.of_all, dtype, device)
    share = max(1.0, width / narrow) * batch.tokens / few.tokens
    layer = max(0.0, (three - one) / 2 - products)
    return HostSeconds(max(0.0, one - layer - products) * share, layer * share)


def _small_pass(layers: int, width: int, batch: BatchSize, dtype: str, device: str, backward: bool) -> float:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    heads = width // 64
    sizes = {"hidden_size": width, "intermediate_size": width, "num_attention_heads": heads, "vocab_size": _VOCABULARY}
    config = AutoConfig.for_model("llama", num_hidden_layers=layers, **sizes)
    model = AutoModelForCausalLM.from_config(config).to(dtype=getattr(torch, dtype), device=device).eval()
    model.requires_grad_(False)
    tokens = torch.zeros(batch, dtype=torch.long, device=device)
    mask = torch.ones_like(tokens)
    mask[0, 0] = 0
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_(backward)

    def loss() -> None:
        logits = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        found = -logits.float().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).sum()
        if backward:
            torch.autograd.grad(found, embedded)

    with torch.set_grad_enabled(backward):
        return timed(loss, device)


@cache
def scoring_seconds(vocabulary: int, answers: int, dtype: str, device: str) -> float:
    """What scores take of the logits of so many tokens of answers: the likelihood of each, and the best of all."""
    import torch

    some = min(answers, 64)
    logits = torch.zeros(some, vocabulary, dtype=getattr(torch, dtype), device=device)

    def work() -> None:
        single = logits.float()
        single.logsumexp(-1).double().sum().item(), single.argmax(-1).sum().item()

    return timed(work, device) * answers / some


@cache
def tokenising_seconds(tokens: int) -> float:
    """What it takes to turn a document of so many tokens into them, with a tokenizer of few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(32)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    text = " ".join(list(words) * math.ceil(tokens / len(words)))
    # lm-eval encodes the prompt, and the prompt with its answer.
    return timed(lambda: [tokenizer.encode(text) for _ in range(2 * 20)], "cpu") / 20


@cache
def receipt_seconds(size: int, tensors: int) -> float:
    """What a receipt takes: digests of the weights, of so many bytes once, and named before, between and after; and
    the versions of packages.
    """
    import torch

    some = max(1, min(size, _HASHED_BYTES))
    value = torch.zeros(some, dtype=torch.uint8)
    small = {str(number): torch.zeros(1) for number in range(_SMALL_TENSORS)}
    whole = timed(lambda: tensor_digest(value), "cpu", in_threads=True) * size / some
    names = timed(lambda: digests_of(small, lambda name: tensor_digest(small[name])), "cpu", in_threads=True)
    return whole + _TIMES_NAMED * names * tensors / _SMALL_TENSORS + _versions_seconds()


@cache
def _versions_seconds() -> float:
    """Once, as a run does it: what was read before is found faster."""
    started = time.thread_time()
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            metadata.version(name)
    return time.thread_time() - started
