"""What a search scores: the calibration documents as batches of tokens, and right or wrong and the loss of each from
the logits at its answers.

A multiple-choice document is right where the choice of the highest log-likelihood is, as lm-eval's `acc` has it. Any
other is right where every token of its answer is the argmax over the vocabulary given those before it: that is what
lm-eval scores for tasks of log-likelihood; for tasks that generate it stands in for generation (ours), and knows
neither filters nor other wordings of the answer. The loss of a document is the mean cross-entropy of the tokens of its
(first) right answer, in nats, in fp32 from logits of any precision.

Tokens are padded on the right, as lm-eval does it, so that a causal model needs no mask. Choices of one document share
what they begin with: where one sequence begins another it is not run at all, and else, packed, they stand one after the
other behind the common beginning, in places that a mask and positions keep apart. An architecture for which that is not
the same is run unpacked; the evaluator checks it.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.calibration.batches import encode

if TYPE_CHECKING:
    import torch
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor

    from harness_ext.calibration.documents import LabelledDocument


class CandidateScore(NamedTuple):
    """Documents right, of how many, and their mean loss in nats: NaN where it is not finite."""

    correct: int
    documents: int
    loss: float

    @property
    def accuracy(self) -> float:
        """The share of documents that are right."""
        return self.correct / self.documents


class _Row(NamedTuple):
    """One sequence. segments: 0 for what all choices begin with, else the choice that a token belongs to; empty where
    the sequence is an ordinary one. positions: of each token in its own choice.
    """

    tokens: list[int]
    segments: list[int]
    positions: list[int]


class _Request(NamedTuple):
    """One answer that is scored: the sequence that holds it, the places that predict its tokens, and the tokens."""

    row: int
    places: list[int]
    targets: list[int]


@dataclass(frozen=True)
class Question:
    """A document in tokens. right: which requests are right answers, the first of them the one whose loss counts.
    chosen: whether the best request is the answer, or all must be greedy.
    """

    rows: list[_Row]
    requests: list[_Request]
    right: tuple[int, ...]
    chosen: bool

    @property
    def width(self) -> int:
        """The length of its longest sequence."""
        return max(len(row.tokens) for row in self.rows)

    @property
    def packed(self) -> bool:
        """Whether choices stand behind one another in a sequence."""
        return any(row.segments for row in self.rows)


def questions(lm: HFLM, documents: Sequence[LabelledDocument], *, packed: bool) -> list[Question]:
    """The documents in tokens, in order. packed: choices behind one common beginning."""
    return [_question(lm, document, packed=packed) for document in documents]


def _question(lm: HFLM, document: LabelledDocument, *, packed: bool) -> Question:
    pairs = document.choices or ((document.context, document.answer),)
    encoded = [encode(lm, context, answer, document.task) for context, answer in pairs]
    right, chosen = (document.right if document.choices else (0,)), bool(document.choices)
    sequences: list[list[int]] = []
    for tokens, _ in sorted(encoded, key=lambda pair: len(pair[0]), reverse=True):
        if not any(sequence[: len(tokens)] == tokens for sequence in sequences):
            sequences.append(tokens)
    common = len(os.path.commonprefix(sequences))  # noqa: RUF071 - sequences of tokens, not paths
    if packed and len(sequences) > 1 and common:
        return Question(*_packed(encoded, sequences, common), right, chosen)

    def request(tokens: list[int], answer: list[int]) -> _Request:
        row = next(place for place, sequence in enumerate(sequences) if sequence[: len(tokens)] == tokens)
        return _Request(row, list(range(len(tokens) - len(answer), len(tokens))), answer)

    return Question(
        [_Row(sequence, [], []) for sequence in sequences], [request(*pair) for pair in encoded], right, chosen
    )


def _packed(
    encoded: Sequence[tuple[list[int], list[int]]], sequences: Sequence[list[int]], common: int
) -> tuple[list[_Row], list[_Request]]:
    """The sequences as one: the tokens that they all begin with, then the rest of each."""
    tokens, segments, positions = list(sequences[0][:common]), [0] * common, list(range(common))
    starts: list[int] = []
    for number, sequence in enumerate(sequences, start=1):
        starts.append(len(tokens))
        tokens += sequence[common:]
        segments += [number] * (len(sequence) - common)
        positions += range(common, len(sequence))

    def request(own: list[int], answer: list[int]) -> _Request:
        start = next(start for start, sequence in zip(starts, sequences, strict=True) if sequence[: len(own)] == own)
        places = [
            place if place < common else start + place - common for place in range(len(own) - len(answer), len(own))
        ]
        return _Request(0, places, answer)

    return [_Row(tokens, segments, positions)], [request(*pair) for pair in encoded]


@dataclass(frozen=True)
class Batch:
    """Documents that are run together. places: theirs in the calibration set. tokens `[b, t]`. needed `[n]`: places in
    `b t`, in a row, whose logits are wanted.

    Of each answer token: token_need, its place in `needed`; target; token_request. request_length `[q]`. options
    `[d, c]`: each document's requests, -1 where it has fewer; right `[d, c]`; chosen `[d]`. gold `[d]`: the request
    whose loss counts. positions `[b, t]` and mask `[b, 1, t, t]`, true where a token may look: of batches with packed
    choices; None for ordinary ones.
    """

    places: tuple[int, ...]
    tokens: Tensor
    needed: Tensor
    token_need: Tensor
    target: Tensor
    token_request: Tensor
    request_length: Tensor
    options: Tensor
    right: Tensor
    chosen: Tensor
    gold: Tensor
    positions: Tensor | None = None
    mask: Tensor | None = None

    def arguments(self, copies: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the model is called with, for so many copies of the batch."""
        import torch

        given = {"input_ids": self.tokens.repeat(copies, 1)}
        if self.mask is not None and self.positions is not None:
            hidden = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device).masked_fill_(
                ~self.mask, torch.finfo(dtype).min
            )
            given |= {
                "attention_mask": hidden.repeat(copies, 1, 1, 1),
                "position_ids": self.positions.repeat(copies, 1),
            }
        return given

    def likelihoods(self, logits: Tensor) -> Tensor:
        """The log-likelihood of each token of each answer, `[a, tokens]`, in fp64."""
        # That of a token is looked up at its place, which several choices may share.
        return (logits[:, self.token_need, self.target] - logits.logsumexp(-1)[:, self.token_need]).double()

    def score(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Right `[a, d]`, bool, and loss `[a, d]`, fp64, of every document under each of a alternatives, from logits
        `[a, n, vocabulary]`.
        """
        import torch

        logits = logits.float()
        likelihood = self.likelihoods(logits)
        missed = (logits.argmax(-1)[:, self.token_need] != self.target).double()
        count, requests = logits.shape[0], len(self.request_length)
        sums = likelihood.new_zeros(count, requests).index_add_(1, self.token_request, likelihood)
        misses = likelihood.new_zeros(count, requests).index_add_(1, self.token_request, missed)
        offered = torch.where(self.options >= 0, sums[:, self.options.clamp(min=0)], -torch.inf)
        # The first among equals, as numpy's argmax takes it for lm-eval.
        first = torch.where(
            offered == offered.amax(-1, keepdim=True),
            torch.arange(offered.shape[-1], device=offered.device),
            offered.shape[-1] - 1,
        ).amin(-1)
        is_right = torch.where(
            self.chosen, self.right.expand(count, -1, -1).gather(2, first[..., None])[..., 0], misses[:, self.gold] == 0
        )
        loss = -sums[:, self.gold] / self.request_length[self.gold]
        return is_right & loss.isfinite(), loss

    def divergence(self, logits: Tensor, reference: Tensor) -> Tensor:
        """How far each of a alternatives, by its logits `[a, n, vocabulary]`, is from the model that gave the reference
        `[n, vocabulary]`: `KL(reference || alternative)` in nats, the mean over the tokens of each document's (first)
        right answer, `[a, d]`, fp64.
        """
        import torch

        wanted, found = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
        chance = wanted.exp()
        # What the reference rules out counts nothing, whatever the alternative makes of it.
        each = torch.where(chance > 0, chance * (wanted - found), 0.0).sum(-1).double()
        sums = each.new_zeros(len(each), len(self.request_length))
        sums.index_add_(1, self.token_request, each[:, self.token_need])
        return sums[:, self.gold] / self.request_length[self.gold]


def batches_by_length(
    asked: Sequence[Question], chosen: Sequence[int], tokens: int, device: torch.device | str
) -> list[Batch]:
    """The documents at these places, like lengths together, at most so many tokens a batch with padding, and at least
    one document.
    """
    batches: list[Batch] = []
    group: list[int] = []
    rows = 0
    for place in sorted(chosen, key=lambda place: -asked[place].width):
        if group and (rows + len(asked[place].rows)) * asked[group[0]].width > tokens:
            batches.append(_batch(asked, group, device))
            group, rows = [], 0
        group.append(place)
        rows += len(asked[place].rows)
    return [*batches, _batch(asked, group, device)] if group else batches


def _batch(asked: Sequence[Question], places: Sequence[int], device: torch.device | str) -> Batch:
    import torch

    width = max(asked[place].width for place in places)
    rows = [row for place in places for row in asked[place].rows]
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, : len(row.tokens)] = torch.tensor(row.tokens)
    positions, mask = _apart(rows, width) if any(row.segments for row in rows) else (None, None)
    flat: list[tuple[int, int, int]] = []
    options: list[list[int]] = []
    lengths: list[int] = []
    first_row = 0
    for place in places:
        options.append(list(range(len(lengths), len(lengths) + len(asked[place].requests))))
        for request in asked[place].requests:
            flat += [
                ((first_row + request.row) * width + spot, target, len(lengths))
                for spot, target in zip(request.places, request.targets, strict=True)
            ]
            lengths.append(len(request.targets))
        first_row += len(asked[place].rows)
    most = max(map(len, options))
    spots, targets, requests = (torch.tensor(column) for column in zip(*flat, strict=True))
    needed, token_need = spots.unique(return_inverse=True)
    right = torch.tensor([[number in asked[place].right for number in range(most)] for place in places])
    gold = torch.tensor([own[asked[place].right[0]] for own, place in zip(options, places, strict=True)])
    chosen = torch.tensor([asked[place].chosen for place in places])
    padded = torch.tensor([own + [-1] * (most - len(own)) for own in options])
    return Batch(
        places=tuple(places),
        tokens=tokens.to(device),
        needed=needed.to(device),
        token_need=token_need.to(device),
        target=targets.to(device),
        token_request=requests.to(device),
        request_length=torch.tensor(lengths, device=device),
        options=padded.to(device),
        right=right.to(device),
        chosen=chosen.to(device),
        gold=gold.to(device),
        positions=None if positions is None else positions.to(device),
        mask=None if mask is None else mask.to(device),
    )


def _apart(rows: Sequence[_Row], width: int) -> tuple[Tensor, Tensor]:
    """Positions `[b, t]`, and which places each may look at, `[b, 1, t, t]`: earlier ones that all choices begin with,
    or of its own choice.
    """
    import torch

    positions = torch.arange(width).repeat(len(rows), 1)
    segments = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        if row.segments:
            positions[number, : len(row.tokens)] = torch.tensor(row.positions)
            segments[number, : len(row.tokens)] = torch.tensor(row.segments)
            # Padding goes on from the last position, which a table of positions is sure to have.
            positions[number, len(row.tokens) :] = row.positions[-1]
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    return positions, (visible & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
