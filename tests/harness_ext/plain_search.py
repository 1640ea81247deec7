"""The plain way to score an edit, for comparison: every request by itself through the whole model, unpadded. Written from the definitions, shares no code with the search."""

from __future__ import annotations

import numpy
import torch

from harness_ext.methods import Svd


def svd_of(lm):
    """The factors of a matrix of the model as it is."""
    return lambda matrix: Svd(*torch.linalg.svd(lm.weights.read(matrix), full_matrices=False))


def accuracy_and_loss(lm, documents) -> tuple[list[bool], float]:
    """Right or wrong of each document, and their mean loss, one request at a time."""
    right, losses = [], []
    for document in documents:
        answers = [_answer(lm, context, answer) for context, answer in document.choices or ((document.context, document.answer),)]
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
