"""What a search scores: the calibration documents as batches of tokens, and right or wrong and the loss of each from the logits at its answers.

A multiple-choice document is right where the choice of the highest log-likelihood is, as lm-eval's `acc` has it. Any other is right where every token of its answer is the argmax over the vocabulary
given those before it: that is what lm-eval scores for tasks of log-likelihood; for tasks that generate it stands in for generation (ours), and knows neither filters nor other wordings of the answer.
The loss of a document is the mean cross-entropy of the tokens of its (first) right answer, in nats, in fp32 from logits of any precision.

Tokens are padded on the right, as lm-eval does it, so that a causal model needs no mask; sequences of one document of which one begins another are run once: choices of one token cost one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.evidence import encode

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor

    from harness_ext.evidence.documents import LabelledDocument


class Score(NamedTuple):
    """Documents right, of how many, and their mean loss in nats: NaN where it is not finite."""

    correct: int
    documents: int
    loss: float

    @property
    def accuracy(self) -> float:
        """The share of documents that are right."""
        return self.correct / self.documents


class _Request(NamedTuple):
    """One answer that is scored: the sequence that holds it, the place that predicts its first token, and its tokens."""

    row: int
    start: int
    targets: list[int]


@dataclass(frozen=True)
class Question:
    """A document in tokens. rows: sequences. right: which requests are right answers, the first of them the one whose loss counts. chosen: whether the best request is the answer, or all must be greedy."""

    rows: list[list[int]]
    requests: list[_Request]
    right: tuple[int, ...]
    chosen: bool

    @property
    def width(self) -> int:
        """The length of its longest sequence."""
        return max(map(len, self.rows))


def questions(lm: HFLM, documents: Sequence[LabelledDocument]) -> list[Question]:
    """The documents in tokens, in order."""
    return [_question(lm, document) for document in documents]


def _question(lm: HFLM, document: LabelledDocument) -> Question:
    pairs = document.choices or ((document.context, document.answer),)
    encoded = [encode(lm, context, answer, document.task) for context, answer in pairs]
    rows: list[list[int]] = []
    for tokens, _ in sorted(encoded, key=lambda pair: len(pair[0]), reverse=True):
        if not any(row[: len(tokens)] == tokens for row in rows):
            rows.append(tokens)

    def request(tokens: list[int], answer: list[int]) -> _Request:
        row = next(place for place, row in enumerate(rows) if row[: len(tokens)] == tokens)
        return _Request(row, len(tokens) - len(answer), answer)

    return Question(rows, [request(*pair) for pair in encoded], document.right if document.choices else (0,), bool(document.choices))


@dataclass(frozen=True)
class Batch:
    """Documents that are run together. places: theirs in the calibration set. tokens `[b, t]`. needed `[n]`: places in `b t`, in a row, whose logits are wanted.

    Of each answer token: token_need, its place in `needed`; target; token_request. request_length `[q]`. options `[d, c]`: each document's requests, -1 where it has fewer; right `[d, c]`; chosen `[d]`.
    gold `[d]`: the request whose loss counts.
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

    def score(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Right `[a, d]`, bool, and loss `[a, d]`, fp64, of every document under each of a alternatives, from logits `[a, n, vocabulary]`."""
        import torch

        logits = logits.float()
        # The likelihood of a token is that of its place, which several choices may share.
        normaliser = logits.logsumexp(-1)[:, self.token_need]
        likelihood = (logits[:, self.token_need, self.target] - normaliser).double()
        missed = (logits.argmax(-1)[:, self.token_need] != self.target).double()
        count, requests = logits.shape[0], len(self.request_length)
        sums = likelihood.new_zeros(count, requests).index_add_(1, self.token_request, likelihood)
        misses = likelihood.new_zeros(count, requests).index_add_(1, self.token_request, missed)
        offered = torch.where(self.options >= 0, sums[:, self.options.clamp(min=0)], -torch.inf)
        # The first among equals, as numpy's argmax takes it for lm-eval.
        first = torch.where(offered == offered.amax(-1, keepdim=True), torch.arange(offered.shape[-1], device=offered.device), offered.shape[-1] - 1).amin(-1)
        is_right = torch.where(self.chosen, self.right.expand(count, -1, -1).gather(2, first[..., None])[..., 0], misses[:, self.gold] == 0)
        loss = -sums[:, self.gold] / self.request_length[self.gold]
        return is_right & loss.isfinite(), loss


def batches_by_length(asked: Sequence[Question], chosen: Sequence[int], tokens: int, device: object) -> list[Batch]:
    """The documents at these places, like lengths together, at most so many tokens a batch with padding, and at least one document."""
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


def _batch(asked: Sequence[Question], places: Sequence[int], device: object) -> Batch:
    import torch

    width = max(asked[place].width for place in places)
    rows = [row for place in places for row in asked[place].rows]
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    flat: list[tuple[int, int, int]] = []
    options: list[list[int]] = []
    lengths: list[int] = []
    first_row = 0
    for place in places:
        options.append(list(range(len(lengths), len(lengths) + len(asked[place].requests))))
        for request in asked[place].requests:
            flat += [((first_row + request.row) * width + request.start + step, target, len(lengths)) for step, target in enumerate(request.targets)]
            lengths.append(len(request.targets))
        first_row += len(asked[place].rows)
    most = max(map(len, options))
    spots, targets, requests = (torch.tensor(column) for column in zip(*flat, strict=True))
    needed, token_need = spots.unique(return_inverse=True)
    right = torch.tensor([[number in asked[place].right for number in range(most)] for place in places])
    gold = torch.tensor([own[asked[place].right[0]] for own, place in zip(options, places, strict=True)])
    chosen = torch.tensor([asked[place].chosen for place in places])
    padded = torch.tensor([own + [-1] * (most - len(own)) for own in options])
    return Batch(tuple(places), *(value.to(device) for value in (tokens, needed, token_need, targets, requests, torch.tensor(lengths), padded, right, chosen, gold)))
