"""LASER's eight tasks: items, prompts, gold answers, and scores against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from .conftest import module, requests

LOADING, SCORING = module("laser/loading.py"), module("laser/scoring.py")


def first(tasks, name):
    return [request.args for request in requests(tasks[name], tasks[name].test_docs()[0])]


def test_counterfact_asks_each_fact_in_three_wordings(file_tasks):
    documents = list(file_tasks["counterfact"].test_docs())
    assert [document["prompt"] for document in documents[:3]] == [
        "The capital of Veldmark is",
        "Invented for a test. Veldmark's capital,",
        "A map of Veldmark shows its capital,",
    ]
    assert [(document["case_id"], document["answer"]) for document in documents] == [(0, "Oster")] * 3 + [
        (1, "Tarn")
    ] * 3
    assert first(file_tasks, "counterfact") == [("The capital of Veldmark is", " Oster")]


def test_hotpotqa_scores_validation_and_as_many_training_questions(file_tasks):
    task = file_tasks["hotpotqa_closed"]
    assert [document["answer"] for document in task.test_docs()] == ["the Merle", "yes", "Corrin", "green"]
    assert [document["answer"] for document in task.training_docs()] == ["Tessa Vane", "1911"]
    # A question mark where none is, none after a full stop, white space stripped.
    assert [document["prompt"].removesuffix(" The answer is")[-5:] for document in task.test_docs()] == [
        "born?",
        "nded?",
        "uilt.",
        "Hale?",
    ]


def test_open_answers_are_generated_and_scored(file_tasks):
    prompt = "Which river runs through the town where Ada Quill was born? The answer is"
    assert first(file_tasks, "hotpotqa_closed") == [
        (prompt, {"until": [], "do_sample": False, "max_gen_toks": 15}),
        (prompt, " the Merle"),
    ]
    assert first(file_tasks, "wikidata_qa") == [
        ("The town of Oster is located in", {"until": [], "do_sample": False, "max_gen_toks": 10}),
        ("The town of Oster is located in", " Veldmark"),
    ]


def test_fever_keeps_consistent_claims_once_and_never_learns_from_scored_ones(file_tasks):
    task = file_tasks["fever_claims"]
    scored = {document["prompt"]: document["label"] for document in task.test_docs()}
    question = "Consider the following claim: {} Is this claim true or false. The claim is"
    assert scored == {
        question.format("Oster lies on a river."): 1,
        question.format("Oster lies on the moon."): 0,
        question.format("The Petrel was a steam engine."): 0,
        question.format("Does a petrel fly?"): 1,
    }
    assert len(task.test_docs()) == 4
    assert [document["prompt"] for document in task.training_docs()] == [
        question.format("Hale is a county."),
        question.format("Hale is a colour."),
    ]
    assert [continuation for _, continuation in first(file_tasks, "fever_claims")] == [" false", " true"]


def test_bios(file_tasks):
    gender, profession = file_tasks["bios_gender"], file_tasks["bios_profession"]
    assert [document["label"] for document in gender.test_docs()] == [1, 0, 1, 0]
    assert (
        gender.test_docs()[1]["prompt"]
        == "Consider the following text: He runs a small firm and files the taxes of half the town. Is the person in"
        " this text a male or female? The gender of this person is"
    )
    labels = profession.config.doc_to_choice
    assert [labels[document["label"]] for document in profession.test_docs()] == ["teacher", "poet", "architect"]
    assert [labels[document["label"]] for document in profession.training_docs()] == ["journalist"]
    assert profession.test_docs()[2]["prompt"].endswith(
        "bridges. What is the profession of the person in this text? The profession of this person is"
    )


def test_the_professions_numbers_are_the_data_sets():
    """Its 28 professions in alphabetical order, `dj` after `dietitian`, as its card lists them."""
    names = [
        "accountant",
        "architect",
        "attorney",
        "chiropractor",
        "comedian",
        "composer",
        "dentist",
        "dietitian",
        "dj",
        "filmmaker",
        "interior designer",
        "journalist",
        "model",
        "nurse",
        "painter",
        "paralegal",
        "pastor",
        "personal trainer",
        "photographer",
        "physician",
        "poet",
        "professor",
        "psychologist",
        "rapper",
        "software engineer",
        "surgeon",
        "teacher",
        "yoga teacher",
    ]
    assert {name: names.index(name) for name in LOADING.PROFESSIONS} == LOADING.PROFESSION_NUMBERS


def test_truthfulqa_makes_a_claim_of_every_answer(file_tasks):
    documents = list(file_tasks["truthfulqa_claims"].test_docs())
    assert [document["label"] for document in documents] == [1, 1, 0, 1, 0]
    assert (
        documents[1]["prompt"]
        == "What happens if you swallow a button? Usually nothing.Is this statement true or false? This statement is"
    )
    assert documents[3]["prompt"] == "Do snails have teeth? Yes.Is this statement true or false? This statement is"


def test_epistemic_reasoning(file_tasks):
    documents = list(file_tasks["epistemic_reasoning"].test_docs())
    assert [document["label"] for document in documents] == [0, 1] and all(
        document["prompt"].endswith("\nRelation:") for document in documents
    )
    assert [continuation for _, continuation in first(file_tasks, "epistemic_reasoning")] == [
        " entailment",
        " non-entailment",
    ]


def test_wikidata_keeps_items_with_one_answer(file_tasks):
    assert [(document["prompt"], document["answer"]) for document in file_tasks["wikidata_qa"].test_docs()] == [
        ("The town of Oster is located in", "Veldmark"),
        ("Tessa Vane was born in the year", "1902"),
    ]


@pytest.mark.parametrize(
    ("label", "probabilities", "accuracy"), [(0, (0.6, 0.1), 1.0), (1, (0.6, 0.1), 0.0), (1, (0.2, 0.2), 0.5)]
)
def test_closed_scores_by_hand(file_tasks, label, probabilities, accuracy):
    scores = file_tasks["fever_claims"].process_results({"label": label}, [(math.log(p), False) for p in probabilities])
    assert scores == {"acc": accuracy, "log_loss": pytest.approx(-math.log(probabilities[label]))}


@pytest.mark.parametrize(
    ("generated", "accuracy"), [(" The MERLE, of course", 1.0), ("Themerle", 0.0), ("the merl", 0.0), ("", 0.0)]
)
def test_open_scores_by_hand(file_tasks, generated, accuracy):
    scores = file_tasks["hotpotqa_closed"].process_results({"answer": " the Merle"}, [generated, (-2.5, False)])
    assert scores == {"acc": accuracy, "log_loss": 2.5}


@pytest.mark.parametrize(
    ("rank", "top"),
    [
        (1, (1.0, 1.0, 1.0)),
        (2, (0.0, 1.0, 1.0)),
        (5, (0.0, 1.0, 1.0)),
        (6, (0.0, 0.0, 1.0)),
        (10, (0.0, 0.0, 1.0)),
        (11, (0.0, 0.0, 0.0)),
    ],
)
def test_ranks_by_hand(file_tasks, rank, top):
    scores = file_tasks["counterfact"].process_results({}, [(-3.0, False), rank])
    assert scores == {"acc": 0.0, "log_loss": 3.0, **dict(zip(("top_1", "top_5", "top_10"), top, strict=True))}


def test_without_ranks_there_are_no_ranked_scores(file_tasks):
    assert file_tasks["counterfact"].process_results({}, [(-0.5, True)]) == {"acc": 1.0, "log_loss": 0.5}


def test_no_scored_item_is_a_training_item(file_tasks):
    for name, task in file_tasks.items():
        if task.has_training_docs():
            scored = {tuple(map(str, document.values())) for document in task.eval_docs}
            assert not scored & {tuple(map(str, document.values())) for document in task.training_docs()}, name
