"""The greedy search: what it tries on equals what is written at last, and it takes nothing that does not lower the
measured loss.
"""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch
from torch.nn.functional import cross_entropy

from harness_ext.calibration.collect import gather
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.calibration.loss import mean_loss
from harness_ext.errors import RecipeError
from harness_ext.methods import Svd
from harness_ext.methods.eigenprune import eigenprune_greedy
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.recipe.settings import SearchSettings
from harness_ext.search.eigenprune_greedy import greedy_search
from harness_ext.search.removals import EditedSite, RemovalCandidate, RemovalTrials

DOCUMENTS = [
    LabelledDocument("t", context, answer, context)
    for context, answer in [
        ("w1 w2 w3", " w4"),
        ("w5 w6 w7 w8 w9", " w10 w11"),
        ("w2 w9", " w3"),
        ("w12 w13 w14 w15", " w16"),
        ("w20 w21", " w23"),
    ]
]


def documents(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, tuple(DOCUMENTS))]


def decompose(lm):
    return lambda matrix: Svd(*torch.linalg.svd(lm.weights.read(matrix), full_matrices=False))


def site_of(lm, matrices, means=None) -> EditedSite:
    if means is None:
        gathered = gather(lm, matrices, frozenset({"input_mean"}), DocumentBatches(DOCUMENTS, 5), decompose(lm))
        means = {key: values["input_mean"] for key, values in gathered.items()}
    return EditedSite(lm, matrices, means, decompose(lm))


def reference_loss(lm, documents=DOCUMENTS) -> float:
    """One document at a time, unpadded."""
    losses = []
    for document in documents:
        context, answer = (lm.tok_encode(text.strip()) for text in (document.context, document.answer))
        with torch.no_grad():
            losses.append(
                float(
                    cross_entropy(
                        lm.model(torch.tensor([context + answer[:-1]])).logits[0, -len(answer) :].double(),
                        torch.tensor(answer),
                    )
                )
            )
    return float(numpy.mean(losses))


def test_the_loss_is_the_mean_over_documents(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    assert mean_loss(lm, DOCUMENTS, 2) == pytest.approx(reference_loss(lm), rel=1e-5)


@pytest.mark.parametrize(
    "specification", ["identity:matrices=[down_proj]", "identity:matrices=[attn],per_head=true", "identity"]
)
def test_a_removal_on_trial_is_the_edit_that_is_made(make_lm, plain_family: str, specification: str) -> None:
    lm = make_lm(plain_family, dtype="float64")
    digest = lm.weights.digest()
    matrices = lm.weights.layout.select(parse_recipe(specification).steps[0])
    generator = torch.Generator().manual_seed(0)
    marks = {matrix.key: torch.rand(min(matrix.shape), generator=generator) < 0.3 for matrix in matrices}
    means = {matrix.key: torch.randn(matrix.shape[1], generator=generator, dtype=torch.float64) for matrix in matrices}
    with RemovalTrials(site_of(lm, matrices, means), DocumentBatches(DOCUMENTS, 5)).standing(marks):
        tried = reference_loss(lm)
    assert lm.weights.digest() == digest and not any(module._forward_hooks for module in lm.model.modules())
    for matrix in matrices:
        weight = lm.weights.read(matrix)
        edit = eigenprune_greedy(
            weight, svd=decompose(lm)(matrix), removed_components=marks[matrix.key], input_mean=means[matrix.key]
        )
        assert edit.rank == int((~marks[matrix.key]).sum())
        lm.weights.replace(matrix, edit.weight())
        lm.weights.shift_bias(matrix, edit.bias_shift)
    # A Llama normalises in float32 whatever its dtype.
    assert reference_loss(lm) == pytest.approx(tried, rel=1e-6)


@pytest.mark.slow
def test_a_removal_stands_where_the_loss_falls_and_that_of_no_task_rises_far(make_lm, monkeypatch) -> None:
    """Each component by itself, against losses of plain passes task by task. The bound is that of a tiny model."""
    harm = 0.0005
    monkeypatch.setattr("harness_ext.calibration.loss.HARM", harm)
    lm = make_lm("llama", dtype="float64")
    tasks = {"first": DOCUMENTS[:2], "second": DOCUMENTS[2:]}
    named = [replace(one, task=task) for task, own in tasks.items() for one in own]
    matrices = lm.weights.layout.select(parse_recipe("identity:matrices=[down_proj]").steps[0])
    before = {task: reference_loss(lm, own) for task, own in tasks.items()}
    outcomes = set()
    for matrix in matrices:
        for component in range(0, min(matrix.shape), 2):
            trials = RemovalTrials(site_of(lm, matrices), DocumentBatches(named, 2))
            accepted = trials.attempt([RemovalCandidate(-1.0, matrix.key, component)])
            marks = {item.key: torch.zeros(min(item.shape), dtype=torch.bool) for item in matrices}
            marks[matrix.key][component] = True
            with trials.standing(marks):
                after = {task: reference_loss(lm, own) for task, own in tasks.items()}
            rises = {task: after[task] - before[task] for task in tasks}
            falls = sum(len(own) * rises[task] for task, own in tasks.items()) < 0
            harmed = max(rises.values()) > harm
            assert accepted == (falls and not harmed), (matrix.key, component, rises)
            outcomes.add((falls, harmed))
    assert outcomes >= {(True, True), (True, False), (False, True)}


@pytest.mark.slow
def test_the_loss_falls_with_every_round_and_the_edit_has_the_loss_found(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    matrices = lm.weights.layout.select(parse_recipe("identity:matrices=[down_proj]").steps[0])
    before, counts = mean_loss(lm, DOCUMENTS, 5), []
    losses = [before]
    for rounds in (1, 2, 3):
        found = greedy_search(
            site_of(lm, matrices), DocumentBatches(DOCUMENTS, 5), SearchSettings(rounds=rounds, at_once=4)
        )
        with found.standing():
            losses.append(reference_loss(lm))
        assert found.loss.mean == pytest.approx(losses[-1], rel=1e-5)
        counts.append(sum(int(values.sum()) for values in found.removed.values()))
    assert losses == sorted(losses, reverse=True) and losses[1] < before
    assert counts == sorted(counts) and counts[0] <= 4

    applied = lm.apply(
        parse_recipe("eigenprune-greedy:search.rounds=3,search.at_once=4,calibration.batch_size=5"), documents
    )
    assert mean_loss(lm, DOCUMENTS, 5) == pytest.approx(losses[-1], rel=1e-4)
    assert sum(record.rank_before - record.rank_after for record in applied.records) == counts[-1]


def test_a_search_that_finds_nothing_changes_nothing(make_lm, monkeypatch) -> None:
    lm = make_lm("llama")
    matrices = lm.weights.layout.select(parse_recipe("identity:matrices=[down_proj]").steps[0])
    monkeypatch.setattr("harness_ext.search.eigenprune_greedy._candidates", lambda effects, removed: [])
    found = greedy_search(site_of(lm, matrices), DocumentBatches(DOCUMENTS, 5), SearchSettings())
    assert not any(values.any() for values in found.removed.values())
    digest = lm.weights.digest()
    lm.apply(parse_recipe("eigenprune-greedy"), documents)
    assert lm.weights.digest() == digest


def test_the_settings_of_a_search_are_checked() -> None:
    assert parse_recipe("eigenprune-greedy:search.rounds=2").steps[0].search == SearchSettings(rounds=2)
    with pytest.raises(RecipeError, match=r"search.round: unknown key, did you mean 'rounds'\?"):
        parse_recipe("eigenprune-greedy:search.round=2")
    assert parse_recipe("eigenprune").steps[0].search is None
