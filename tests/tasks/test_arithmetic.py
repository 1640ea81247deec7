"""The arithmetic tasks: exact prompts and answers, and a split that never moves."""

from __future__ import annotations

import hashlib
import json

import pytest

WORDINGS = {
    "int_mult": ("18 x 17 =", " 306"),
    "int_mult_clean": ("18 times 17 is", " 306"),
    "int_sum": ("6 + 85 =", " 91"),
    "int_sum_clean": ("6 plus 85 is", " 91"),
}
SIZES = {"int_mult": (320, 80), "int_mult_clean": (320, 80), "int_sum": (8000, 2000), "int_sum_clean": (8000, 2000)}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDINGS)
def test_first_test_document_reads_exactly(tasks, name):
    task = tasks[name]
    document = task.test_docs()[0]
    (request,) = [task.construct_requests(document, task.fewshot_context(document, 0))]
    assert request.args == WORDINGS[name]


@pytest.mark.parametrize("name", WORDINGS)
def test_every_answer_is_right_and_splits_share_nothing(tasks, name):
    task = tasks[name]
    train, test = (
        [(doc["left"], doc["right"], doc["answer"]) for doc in split]
        for split in (task.training_docs(), task.test_docs())
    )
    assert (len(train), len(test)) == SIZES[name]
    size = 20 if "mult" in name else 100
    assert {(left, right) for left, right, _ in train + test} == {(i, j) for i in range(size) for j in range(size)}
    assert all(answer == (left * right if "mult" in name else left + right) for left, right, answer in train + test)


def test_clean_wording_has_the_same_split(tasks):
    for name in ("int_mult", "int_sum"):
        noisy, clean = (
            [(doc["left"], doc["right"]) for doc in tasks[which].test_docs()] for which in (name, f"{name}_clean")
        )
        assert noisy == clean


@pytest.mark.parametrize(
    ("function", "digest"),
    [
        ("multiplication_facts", "e1c849753c5caa10cd2d8938cc894590945886b2cbedd6ed169ece3ba7358e0c"),
        ("addition_facts", "23bef986e6c2fb022d9e14c96e729a31b2da3584c0c11d3a6f8b56428b2cee5c"),
    ],
)
def test_split_is_pinned(arithmetic, function, digest):
    split = getattr(arithmetic, function)()
    text = json.dumps([split.train, split.test])
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_metadata_reaches_the_dataset_function_and_changes_nothing(arithmetic):
    plain = arithmetic.facts("multiplication", "{left} x {right} =")
    assert (
        arithmetic.facts("multiplication", "{left} x {right} =", version=7.0, other="x")["test"][0] == plain["test"][0]
    )


def test_scores(tasks):
    task = tasks["int_mult"]
    document = task.test_docs()[0]
    assert task.process_results(document, [(-0.5, True)]) == {"acc": 1.0, "gold_logprob": -0.5}
    assert task.process_results(document, [(-3.0, False)]) == {"acc": 0.0, "gold_logprob": -3.0}


def test_few_shot_examples_have_one_space_before_the_answer(tasks):
    task = tasks["int_mult"]
    task.set_fewshot_seed(0)
    context = task.fewshot_context(task.test_docs()[0], 1)
    example, question = context.split("\n\n")
    assert question == "18 x 17 =" and "  " not in example and example.count("= ") == 1
