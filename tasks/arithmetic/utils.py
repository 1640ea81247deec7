"""Multiplication and addition facts, made in code.

`int_mult` and `int_sum` follow eigenpruning (arXiv 2404.03147): products of 0..19 (400 facts) and sums
of 0..99 (10,000 facts), a random 80/20 split, and an answer that counts when it is the argmax over the
whole vocabulary, which is lm-eval's `is_greedy`.

Choices: the split depends on the operation and `SPLIT_SEED` alone, never on the wording, so a clean and a
noisy wording of one task share their test facts. Targets carry their own leading space, because lm-eval
adds no target delimiter to `loglikelihood` requests.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import DatasetDict

SPLIT_SEED = 0
TRAIN_FRACTION = 0.8


class Fact(NamedTuple):
    """One item of arithmetic: two operands and the right answer."""

    left: int
    right: int
    answer: int


class Split(NamedTuple):
    """The facts of one operation, divided for calibration and for scoring."""

    train: list[Fact]
    test: list[Fact]


def _split(size: int, operation: Callable[[int, int], int]) -> Split:
    """All `size * size` facts, shuffled by `SPLIT_SEED`; the first 80 % are the training split.

    `random.Random(seed).shuffle` gives the same order on every platform and Python from 3.2 on; the tests
    pin a hash of the result.
    """
    facts = [Fact(i, j, operation(i, j)) for i in range(size) for j in range(size)]
    random.Random(SPLIT_SEED).shuffle(facts)
    cut = round(TRAIN_FRACTION * len(facts))
    return Split(facts[:cut], facts[cut:])


def multiplication_facts() -> Split:
    """320 training and 80 test products of two integers from 0 to 19."""
    return _split(20, lambda i, j: i * j)


def addition_facts() -> Split:
    """8,000 training and 2,000 test sums of two integers from 0 to 99."""
    return _split(100, lambda i, j: i + j)


FACTS: dict[str, Callable[[], Split]] = {"multiplication": multiplication_facts, "addition": addition_facts}


def facts(operation: str, prompt: str, **metadata: Any) -> DatasetDict:
    """lm-eval's `custom_dataset`: the facts of an operation, each worded by `prompt`, a format string over left and right.

    `metadata` is the task's, which changes nothing.
    """
    from datasets import Dataset, DatasetDict

    def document(fact: Fact) -> dict[str, Any]:
        return {**fact._asdict(), "prompt": prompt.format(left=fact.left, right=fact.right), "target": f" {fact.answer}"}

    return DatasetDict({name: Dataset.from_list([document(fact) for fact in split]) for name, split in FACTS[operation]()._asdict().items()})


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Score one fact.

    Returns `acc`, 1.0 where every answer token is the argmax over the whole vocabulary, and
    `gold_logprob`, the natural log-probability of the right answer. (lm-eval would name the mean of the
    latter `perplexity` and exponentiate it.)
    """
    log_probability, is_greedy = results[0]
    return {"acc": float(is_greedy), "gold_logprob": float(log_probability)}
