"""The plain way to score an edit, for comparison: every request by itself through the whole model, unpadded, written
from the definitions; and documents to score it on. Shares no code with the search.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy
import torch

from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.methods import Svd

FRACTIONS = [0.9, 0.5, 0.2, 0.05]
GRID = "fractions=[0.9,0.5,0.2,0.05]"


def svd_of(lm):
    """The factors of a matrix of the model as it is."""
    return lambda matrix: Svd(*torch.linalg.svd(lm.weights.read(matrix), full_matrices=False))


def accuracy_and_loss(lm, documents) -> tuple[list[bool], float]:
    """Right or wrong of each document, and their mean loss, one request at a time."""
    right, losses = [], []
    for document in documents:
        answers = [
            _answer(lm, context, answer)
            for context, answer in document.choices or ((document.context, document.answer),)
        ]
        if document.choices:
            right.append(int(numpy.argmax([likelihood for likelihood, _, _ in answers])) in document.right)
        else:
            right.append(answers[0][1])
        likelihood, _, tokens = answers[document.right[0] if document.choices else 0]
        losses.append(-likelihood / tokens)
    return right, float(numpy.mean(losses))


def _answer(lm, context: str, answer: str) -> tuple[float, bool, int]:
    """The log-likelihood of an answer, whether it is greedy, and its number of tokens."""
    before, after = lm._encode_pair(context, answer)
    with torch.no_grad():
        logits = lm.model(torch.tensor([(before + after)[:-1]])).logits[0, -len(after) :].float().log_softmax(-1)
    return float(logits[range(len(after)), after].double().sum()), logits.argmax(-1).tolist() == after, len(after)


def documents_for(lm, count: int = 16) -> list[LabelledDocument]:
    """Half of them answered as the model does, so that edits can make it worse; some with choices."""
    generator = numpy.random.default_rng(0)
    made = []
    for number in range(count):
        words = generator.integers(0, 40, generator.integers(2, 7))
        context = " ".join(f"w{word}" for word in words)
        with torch.no_grad():
            ranked = lm.model(torch.tensor([lm.tok_encode(context)])).logits[0, -1].argsort(descending=True).tolist()
        # Special tokens are no words.
        ranked = [token for token in ranked if token > 2]
        answer = f" {lm.tok_decode([ranked[0 if number % 2 else 2]])}"
        choices = (
            tuple((context, f" {lm.tok_decode([ranked[place]])}") for place in (4, 1, 3)) if number % 4 == 3 else ()
        )
        made.append(
            LabelledDocument(
                "t", context, choices[1][1] if choices else answer, str(number), choices, (1,) if choices else ()
            )
        )
    return made


def drawing(documents):
    return lambda calibration: [CalibrationSet("t", "train", 0, tuple(documents))]


def scored(lm, documents) -> tuple[int, float]:
    right, loss = accuracy_and_loss(lm, documents)
    return sum(right), loss


def read_all(lm: Any, documents: Iterable[Any], handles: Iterable[Any]) -> None:
    """Let the model read documents one by one, without gradients, for hooks that are gone afterwards."""
    for document in documents:
        context, answer = lm._encode_pair(document.context, document.answer)
        with torch.no_grad():
            lm.model(torch.tensor([(context + answer)[:-1]]))
    for handle in handles:
        handle.remove()
