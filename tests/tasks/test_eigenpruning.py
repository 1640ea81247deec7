"""Eigenpruning's SuperGLUE tasks: prompts letter by letter, labels, and scores by hand."""

from __future__ import annotations

import math
import shutil

import pytest

from harness_ext.errors import UserError

from .conftest import FIXTURES, load, requests

PROMPTS = {
    "eigenpruning_cb": (
        "Premise: B: Nobody thinks that Nils sang.\n\nHypothesis: Nils sang\n\nDoes the premise entail, contradict or"
        " is neutral to the hypothesis?\nAnswer (entail, contradict, neutral):"
    ),
    "eigenpruning_copa": (
        "Premise: The bell rang.\n\nChoice 1: The class slept on.\n\nChoice 2: The class went out.\n\nWhat is the"
        " correct choice?\nThe correct choice is choice"
    ),
    "eigenpruning_rte": (
        "Premise: The Petrel sank off Hale in spring.\n\nHypothesis: The Petrel sank in autumn.\n\nDoes the premise"
        " entail or contradict to the hypothesis?\nAnswer (entails or contradicts): The premise"
    ),
}
ANSWERS = {
    "eigenpruning_cb": ([" entail", " contradict", " neutral"], [1, 0], [0, 2]),
    "eigenpruning_copa": ([" 1", " 2"], [1, 0], [0]),
    "eigenpruning_rte": ([" entails", " contradicts"], [1, 0], [0]),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_and_answers(file_tasks, name):
    task = file_tasks[name]
    continuations, scored, training = ANSWERS[name]
    built = requests(task, task.validation_docs()[0])
    assert [request.args for request in built] == [(PROMPTS[name], continuation) for continuation in continuations]
    assert [document["label"] for document in task.validation_docs()] == scored
    assert [document["label"] for document in task.training_docs()] == training


@pytest.mark.parametrize(
    ("results", "scores"),
    [
        ([(0.5, True), (0.2, False), (0.1, False)], (1.0, 1.0, 0.5)),
        ([(0.2, False), (0.1, False), (0.1, False)], (0.0, 1.0, 0.2)),
        ([(0.1, False), (0.3, False), (0.1, False)], (0.0, 0.0, 0.1)),
        ([(0.3, False), (0.3, False), (0.1, False)], (0.0, 0.0, 0.3)),
    ],
)
def test_scores_by_hand(file_tasks, results, scores):
    found = file_tasks["eigenpruning_cb"].process_results(
        {"label": 0}, [(math.log(p), greedy) for p, greedy in results]
    )
    assert found == {"acc": scores[0], "acc_choices": scores[1], "log_loss": pytest.approx(-math.log(scores[2]))}


def test_an_unlabelled_file_is_refused(tmp_path):
    """SuperGLUE's test files have no labels."""
    shutil.copytree(FIXTURES / "super_glue" / "RTE", tmp_path / "super_glue" / "RTE")
    path = tmp_path / "super_glue" / "RTE" / "val.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"not_entailment"', "-1"), encoding="utf-8")
    with pytest.raises(
        UserError,
        match="task eigenpruning_rte: an item has the label -1, where entailment or not_entailment was wanted",
    ):
        load("eigenpruning_rte", data_dir=str(tmp_path))
