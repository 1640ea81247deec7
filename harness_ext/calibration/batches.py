"""Calibration documents as batches of tokens, and the loss of a model on one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness_ext.calibration.documents import LabelledDocument
from harness_ext.errors import UserError

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor

COUNTS_PADDING = frozenset(
    (
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "deepseek_v4", "marian", "mbart", "mvp"),
        *("pegasus", "plbart", "recurrent_gemma", "roformer", "rwkv", "trocr", "xlm"),
    )
)
"""Model types that count positions, or carry a state, from the first column of a batch on, whatever the mask says: of a
document padded on the left they make something else. A test holds the list against tiny models of every type.
"""


@dataclass(frozen=True)
class PaddedBatch:
    """One batch, padded on one side: tokens, mask and positions `[b, t]`; labels `[b, t]`, -100 where nothing is
    predicted.
    """

    tokens: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor

    @property
    def first(self) -> Tensor:
        """Which tokens are the first of their documents, `[b, t]`."""
        return self.mask.bool() & (self.positions == 0)


def summed_loss(lm: HFLM, batch: PaddedBatch) -> Tensor:
    """The sum over documents of the mean cross-entropy of each one's answer tokens, in fp32."""
    from torch.nn.functional import cross_entropy

    logits = lm.model(
        input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).logits
    labels = batch.labels.to(logits.device)
    # The answer's tokens alone: softmax over a vocabulary for every token of the prompts takes longer than the model.
    asked = labels != -100
    each = cross_entropy(logits[asked].float(), labels[asked], reduction="none")
    losses = each.new_zeros(labels.shape).masked_scatter(asked, each)
    return (losses.sum(1) / asked.sum(1).to(losses)).sum()


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


def pad(lm: HFLM, documents: Sequence[LabelledDocument]) -> PaddedBatch:
    """One batch, padded on the left, or on the right for a model that would count padding as tokens."""
    import torch

    encoded = [_encode(lm, document) for document in documents]
    width = max(len(tokens) for tokens, _ in encoded)
    tokens = torch.full((len(encoded), width), lm.tokenizer.pad_token_id or 0)
    labels = torch.full((len(encoded), width), -100)
    mask = torch.zeros((len(encoded), width), dtype=torch.long)
    on_the_right = getattr(lm.model.config, "model_type", None) in COUNTS_PADDING
    for row, (document, answer) in enumerate(encoded):
        stop = len(document) if on_the_right else width
        tokens[row, stop - len(document) : stop] = torch.tensor(document)
        mask[row, stop - len(document) : stop] = 1
        labels[row, stop - len(answer) : stop] = torch.tensor(answer)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return PaddedBatch(*(value.to(lm.device) for value in (tokens, mask, positions, labels)))


def _encode(lm: HFLM, document: LabelledDocument) -> tuple[list[int], list[int]]:
    return encode(lm, document.context, document.answer, document.task)


def encode(lm: HFLM, context: str, answer: str, task: str) -> tuple[list[int], list[int]]:
    """The tokens that go in (all but the last), and those of the answer that must come out, cut from the left like
    lm-eval does. task: named where the answer has no tokens, which is a UserError.
    """
    if context:
        before, after = lm.encode_pair(context, answer)
    else:
        before, after = [lm.prefix_token_id], lm.tok_encode(answer, add_special_tokens=False)
    if not after:
        raise UserError(f"calibration: a document of {task!r} has an answer of no tokens: {answer!r}")
    whole = (before + after)[-(lm.max_length + 1) :]
    return whole[:-1], after
