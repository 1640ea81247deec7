"""Calibration documents as batches of tokens, and the loss of a model on one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.documents import LabelledDocument
from harness_ext.errors import UserError
from harness_ext.methods.statistic_registry import statistics_among

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor

    from harness_ext.calibration.context import DocumentBatches

COUNTS_PADDING = frozenset(
    (
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "deepseek_v4", "marian", "mbart", "mvp"),
        *("pegasus", "plbart", "recurrent_gemma", "roformer", "rwkv", "trocr", "xlm"),
    )
)
"""Model types that count positions, or carry a state, from the first column of a batch on, whatever the mask says: of a
document padded on the left they make something else. A test holds the list against tiny models of every type.
"""


TOKENS_AT_ONCE = 4096
"""Tokens of a batch, padding included, of which nothing but sums is kept."""
TOKENS_WITH_GRADIENTS = 2048
"""The same where a backward pass keeps what a layer made of them, or logits are made of them."""
_TOKENS_OF_PROBE = 24
_LOGITS_AT_ONCE = 256


class Encoded(NamedTuple):
    """A document in tokens: those that go in, and those of the answer that must come out."""

    tokens: list[int]
    answer: list[int]
    task: str = ""


@dataclass(frozen=True)
class PaddedBatch:
    """One batch, padded on one side: tokens, mask and positions `[b, t]`; labels `[b, t]`, -100 where nothing is
    predicted. tasks: of each document.
    """

    tokens: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor
    tasks: tuple[str, ...] = ()

    def parts(self, most_tokens: int) -> Iterator[tuple[slice, PaddedBatch]]:
        """The batch in runs of documents of no more tokens than that, with their places; a longer document is one by
        itself.
        """
        documents, width = self.tokens.shape
        step = max(1, most_tokens // width)
        for start in range(0, documents, step):
            own = slice(start, start + step)
            values = (self.tokens, self.mask, self.positions, self.labels)
            tokens, mask, positions, labels = (value[own] for value in values)
            yield own, PaddedBatch(tokens, mask, positions, labels, self.tasks[own])

    @property
    def first(self) -> Tensor:
        """Which tokens are the first of their documents, `[b, t]`."""
        return self.mask.bool() & (self.positions == 0)


def summed_loss(lm: HFLM, batch: PaddedBatch) -> Tensor:
    """The sum over documents of the mean cross-entropy of each one's answer tokens, in fp32."""
    return document_losses(lm, batch).sum()


def document_losses(lm: HFLM, batch: PaddedBatch) -> Tensor:
    """The mean cross-entropy of each document's answer tokens `[b]`, in fp32."""
    return losses_of_logits(lm.model(**arguments_of(batch), **_last_logits(lm, batch), use_cache=False).logits, batch)


def arguments_of(batch: PaddedBatch) -> dict[str, Tensor]:
    """What a model is called with."""
    return {"input_ids": batch.tokens, "attention_mask": batch.mask, "position_ids": batch.positions}


def call_of(lm: HFLM, batch: PaddedBatch) -> Callable[[], Any]:
    """The call of the whole model with a batch, to be made later."""
    return lambda: lm.model(**arguments_of(batch), use_cache=False)


def _last_logits(lm: HFLM, batch: PaddedBatch) -> dict[str, int]:
    """The argument that keeps a model from making logits of a prompt's tokens, where it takes one; not with gradients:
    a product of fewer rows is rounded in another way, and `zero_sum` chooses by sums that small changes turn around.
    """
    import torch

    if torch.is_grad_enabled() or "logits_to_keep" not in inspect.signature(lm.model.forward).parameters:
        return {}
    wanted = (batch.labels != -100).any(0).nonzero()[0]
    return {"logits_to_keep": batch.labels.shape[1] - int(wanted)}


def losses_of_logits(logits: Tensor, batch: PaddedBatch) -> Tensor:
    """`document_losses`, from the logits `[b, k, vocabulary]` of the last k places."""
    import torch
    from torch.nn.functional import cross_entropy

    labels = batch.labels[:, -logits.shape[1] :].to(logits.device)
    # The answer's tokens alone: softmax over a vocabulary for every token of the prompts takes longer than the model;
    # and some at a time, since its numbers are many.
    asked = labels != -100
    places = asked.nonzero()
    # A backward pass would make zeros for all logits at each part.
    parts = places.split(len(places) if logits.requires_grad else _LOGITS_AT_ONCE)
    each = torch.cat(
        [
            cross_entropy(logits[rows, columns].float(), labels[rows, columns], reduction="none")
            for rows, columns in (part.unbind(1) for part in parts)
        ]
    )
    losses = each.new_zeros(labels.shape).masked_scatter(asked, each)
    return losses.sum(1) / asked.sum(1).to(losses)


def calibration_batches(lm: HFLM, documents: DocumentBatches, names: Collection[str]) -> list[PaddedBatch]:
    """The batches by which statistics are gathered: of at most so many documents as asked for, and of no more tokens
    than `TOKENS_AT_ONCE`, unless a statistic compares the documents of a batch.
    """
    chosen = statistics_among(names)
    compares = any(item.compares_documents or item.needs == "contrasts" for item in chosen)
    if compares:
        return list(batches_of(lm, documents.documents, documents.size))
    backward = any(item.needs_gradients for item in chosen)
    most = TOKENS_WITH_GRADIENTS if backward else TOKENS_AT_ONCE
    return list(batches_by_tokens(lm, documents.documents, documents.size, most))


def batches_by_tokens(
    lm: HFLM, documents: Sequence[LabelledDocument], most_documents: int, most_tokens: int
) -> Iterator[PaddedBatch]:
    """Batches of documents in their order, none of more documents or, with its padding, of more tokens than that; a
    longer document is one by itself.
    """
    batch: list[Encoded] = []
    for document in documents:
        encoded = _encode(lm, document)
        width = max(len(item.tokens) for item in [*batch, encoded])
        if batch and (len(batch) == most_documents or width * (len(batch) + 1) > most_tokens):
            yield _padded(lm, batch)
            batch = []
        batch.append(encoded)
    if batch:
        yield _padded(lm, batch)


def batches_of(lm: HFLM, documents: Sequence[LabelledDocument], batch_size: int) -> Iterator[PaddedBatch]:
    """Batches of one task each, since a counterfactual prompt should be one of the same kind; a last batch of one joins
    the batch before it.
    """
    for task in dict.fromkeys(document.task for document in documents):
        own = [document for document in documents if document.task == task]
        starts = list(range(0, len(own), batch_size))
        if len(starts) > 1 and len(own) - starts[-1] == 1:
            starts.pop()
        for start, stop in zip(starts, [*starts[1:], len(own)], strict=True):
            yield pad(lm, own[start:stop])


def probes(lm: HFLM, documents: Sequence[LabelledDocument]) -> tuple[PaddedBatch, PaddedBatch]:
    """Two small batches of different tokens, for trials of a model."""
    cut = [_encode(lm, document).tokens[:_TOKENS_OF_PROBE] for document in documents[:2]]
    other = [[*tokens[:1], *reversed(tokens)] for tokens in cut]
    return _unlabelled(lm, cut), _unlabelled(lm, other)


def _unlabelled(lm: HFLM, documents: Sequence[list[int]]) -> PaddedBatch:
    return _padded(lm, [Encoded(tokens, tokens[-1:]) for tokens in documents])


def pad(lm: HFLM, documents: Sequence[LabelledDocument]) -> PaddedBatch:
    """One batch, padded on the left, or on the right for a model that would count padding as tokens."""
    return _padded(lm, [_encode(lm, document) for document in documents])


def _padded(lm: HFLM, encoded: Sequence[Encoded]) -> PaddedBatch:
    import torch

    width = max(len(item.tokens) for item in encoded)
    tokens = torch.full((len(encoded), width), lm.tokenizer.pad_token_id or 0)
    labels = torch.full((len(encoded), width), -100)
    mask = torch.zeros((len(encoded), width), dtype=torch.long)
    on_the_right = getattr(lm.model.config, "model_type", None) in COUNTS_PADDING
    for row, (document, answer, _) in enumerate(encoded):
        stop = len(document) if on_the_right else width
        tokens[row, stop - len(document) : stop] = torch.tensor(document)
        mask[row, stop - len(document) : stop] = 1
        labels[row, stop - len(answer) : stop] = torch.tensor(answer)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    tasks = tuple(item.task for item in encoded)
    tokens, mask, positions, labels = (value.to(lm.device) for value in (tokens, mask, positions, labels))
    return PaddedBatch(tokens, mask, positions, labels, tasks)


def _encode(lm: HFLM, document: LabelledDocument) -> Encoded:
    return Encoded(*encode(lm, document.context, document.answer, document.task), document.task)


def encode(lm: HFLM, context: str, answer: str, task: str) -> tuple[list[int], list[int]]:
    """The tokens that go in (all but the last), and those of the answer that must come out, cut from the left like
    lm-eval does; of an answer longer than the model's window what fits. task: named where the answer has no tokens,
    which is a UserError.
    """
    if context:
        before, after = lm.encode_pair(context, answer)
    else:
        before, after = [], lm.tok_encode(answer, add_special_tokens=False)
    before = before or [lm.prefix_token_id]
    if not after:
        raise UserError(f"calibration: a document of {task!r} has an answer of no tokens: {answer!r}")
    whole = (before + after)[-(lm.max_length + 1) :]
    return whole[:-1], after[-(len(whole) - 1) :]
