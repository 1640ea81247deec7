"""Passes from a layer in the middle, of several weights at once, against the edited model scored one document at a
time; and that against lm-eval itself.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from lm_eval.api.instance import Instance

from harness_ext.calibration.context import StepContext
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods.budget import Keep
from harness_ext.methods.clustered_svd import blocks, truncate_clusters
from harness_ext.progress import Progress
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.search import suffix_replay
from harness_ext.search.candidates import Grouped, Nested
from harness_ext.search.evaluator import CandidateEvaluator
from tests.harness_ext.search.plain_search import accuracy_and_loss, svd_of

PLAIN = [
    LabelledDocument("t", context, answer, context)
    for context, answer in [
        ("w1 w2 w3", " w4"),
        ("w5 w6 w7 w8 w9", " w10 w11"),
        ("w2 w9", " w3"),
        ("w12 w13 w14 w15", " w16"),
        ("w20 w21", " w23"),
    ]
]
CHOICES = (("w7 w8 w9", " w1"), ("w7 w8 w9", " w2 w3"), ("w7 w8 w9", " w4 w5 w6"))
DOCUMENTS = [
    *PLAIN,
    LabelledDocument("t", *CHOICES[1], "c", CHOICES, (1, 2)),
    LabelledDocument("t", "w3 w4", " w9", "d", (("w3 w4", " w8"), ("w3 w4", " w9")), (1,)),
]


def context_for(lm, step) -> StepContext:
    """A step on the model as it is, without a cache: every matrix is decomposed anew."""
    return StepContext(replace(lm.editable, decomposer=Decomposer()), step, 0, Progress())


def evaluator_for(lm, specification: str, documents=DOCUMENTS) -> CandidateEvaluator:
    step = parse_recipe(specification).steps[0]
    return CandidateEvaluator(context_for(lm, step), lm.weights.layout.select(step), documents)


def check(lm, evaluator: CandidateEvaluator, matrix, ranks=(3, 1, 5), notes=0) -> None:
    """Every alternative has the score of the model that is really edited so."""
    svd = svd_of(lm)(matrix)
    trials = evaluator.try_out(matrix, Nested(svd.u * svd.s, svd.vh, ranks), [{"rank": rank} for rank in ranks])
    assert len(evaluator.notes) == notes
    for rank, trial in zip(ranks, trials, strict=True):
        lm.weights.replace(matrix, (svd.u[:, :rank] * svd.s[:rank]) @ svd.vh[:rank])
        right, loss = accuracy_and_loss(lm, DOCUMENTS)
        lm.weights.restore()
        assert trial.loss == pytest.approx(loss, rel=2e-4), (matrix.key, rank)
        assert trial.right == "".join(str(int(one)) for one in right), (matrix.key, rank)


def test_a_batch_counts_when_it_is_scored(make_lm, monkeypatch) -> None:
    evaluator, counted = evaluator_for(make_lm("llama"), "laser-search:matrices=[all]"), []
    plain = evaluator._replay.plain

    def watched(place: int):
        counted.append(evaluator.context.progress.stages[-1].done)
        return plain(place)

    monkeypatch.setattr(evaluator._replay, "plain", watched)
    evaluator.as_it_is()
    assert counted == list(range(len(evaluator._batches)))


@pytest.mark.slow
def test_every_matrix_of_family(make_lm, family: str) -> None:
    lm = make_lm(family)
    digest = lm.weights.digest()
    evaluator = (
        evaluator_for(lm, "laser-search:matrices=[all]")
        if family not in ("mixtral", "qwen3_moe")
        else evaluator_for(lm, "laser-search:matrices=[attn]")
    )
    tried = [matrix for matrix in evaluator.matrices if matrix.expert is None]
    right, loss = accuracy_and_loss(lm, DOCUMENTS)
    assert evaluator.before.loss == pytest.approx(loss, rel=1e-4) and evaluator.before.score.correct == sum(right)
    for matrix in tried[-1:] + tried[:: max(1, len(tried) // 6)]:
        check(lm, evaluator, matrix)
    assert lm.weights.digest() == digest
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in lm.model.modules()
    )


def test_the_score_is_lm_evals(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    trial = evaluator_for(lm, "laser-search").before
    asked = [
        (place, pair)
        for place, document in enumerate(DOCUMENTS)
        for pair in document.choices or ((document.context, document.answer),)
    ]
    answers = lm.loglikelihood([Instance("loglikelihood", {}, pair, place) for place, pair in asked], disable_tqdm=True)
    for place, document in enumerate(DOCUMENTS):
        own = [answer for (where, _), answer in zip(asked, answers, strict=True) if where == place]
        likelihoods = [likelihood for likelihood, _ in own]
        right = likelihoods.index(max(likelihoods)) in document.right if document.choices else own[0][1]
        assert trial.right[place] == str(int(right))


def test_choices_share_what_they_begin_with(make_lm, family: str) -> None:
    """Packed behind one another where the architecture takes it, and the same either way; replayed passes of packed
    documents are checked with all others here.
    """
    lm = make_lm(family)
    evaluator = evaluator_for(lm, "laser-search:matrices=[attn]")
    packed = [question.packed for question in evaluator._questions]
    # A window, or positions by distance, make of a mask what is not meant.
    assert packed == [False] * 5 + [family not in ("mistral", "gemma2", "gemma3", "bloom", "falcon-per-head"), False]
    if packed[5]:
        assert [len(row.tokens) for row in evaluator._questions[5].rows] == [3 + 1 + 2]
    assert len(evaluator._questions[6].rows) == 1


@pytest.mark.slow
def test_parts_of_matrices(make_lm, plain_family: str) -> None:
    """Heads: rows of a matrix, or of one that is fused; columns of the output."""
    lm = make_lm(plain_family)
    evaluator = evaluator_for(lm, "laser-search:matrices=[attn],per_head=true")
    for matrix in evaluator.matrices[1::5]:
        check(lm, evaluator, matrix)


def test_half_precision_tries_what_would_be_written(make_lm) -> None:
    lm = make_lm("llama", dtype="bfloat16")
    evaluator = evaluator_for(lm, "laser-search")
    for matrix in evaluator.matrices[::3]:
        svd = svd_of(lm)(matrix)
        (trial,) = evaluator.try_out(matrix, Nested(svd.u * svd.s, svd.vh, (4,)), [{}])
        lm.weights.replace(matrix, (svd.u[:, :4] * svd.s[:4]) @ svd.vh[:4])
        _, loss = accuracy_and_loss(lm, DOCUMENTS)
        lm.weights.restore()
        assert trial.loss == pytest.approx(loss, rel=0.02)


def test_states_that_do_not_fit_are_computed_again(make_lm, monkeypatch) -> None:
    lm = make_lm("llama")
    evaluator = evaluator_for(lm, "laser-search")
    order = list(reversed(evaluator.matrices))
    expected = [evaluator.try_out(matrix, Nested(*_factors(lm, matrix), (2,)), [{}])[0] for matrix in order]
    monkeypatch.setattr(suffix_replay, "STATE_BYTES", 1)
    small = evaluator_for(lm, "laser-search")
    for matrix, known in zip(order, expected, strict=True):
        (trial,) = small.try_out(matrix, Nested(*_factors(lm, matrix), (2,)), [{}])
        assert trial.loss == pytest.approx(known.loss, rel=1e-6)
    assert small.passes > evaluator.passes


def _factors(lm, matrix):
    svd = svd_of(lm)(matrix)
    return svd.u * svd.s, svd.vh


def test_an_architecture_that_cannot_be_replayed_is_run_whole(make_lm, monkeypatch) -> None:
    lm = make_lm("llama")
    # Layers that look at how often they were run cannot be left out.
    original = suffix_replay.pass_on
    monkeypatch.setattr(
        suffix_replay, "pass_on", lambda length: lambda *args, **kwargs: original(length)(*args, **kwargs) + 1
    )
    monkeypatch.setattr(suffix_replay, "enter", lambda layer, hidden, copies, shared: ExitStack())
    evaluator = evaluator_for(lm, "laser-search")
    check(lm, evaluator, evaluator.matrices[-1], notes=1)
    assert "every trial took a whole pass" in evaluator.notes[0]


@pytest.mark.parametrize("grouping", ["block", "subspace"])
def test_clusters_keep_the_leading_components_of_each_group(grouping: str) -> None:
    weight = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keep = Keep(rank_fraction=0.5)
    edit = truncate_clusters(
        weight, keep=keep, generator=torch.Generator().manual_seed(1), clusters=3, grouping=grouping
    )
    again = truncate_clusters(
        weight, keep=keep, generator=torch.Generator().manual_seed(1), clusters=3, grouping=grouping
    )
    assert torch.equal(edit.weight(), again.weight())
    if grouping == "block":
        assert edit.rank == 2 + 1 + 1
        for rows, rank in zip(([0, 1, 2, 3], [4, 5, 6], [7, 8, 9]), (2, 1, 1), strict=True):
            u, s, vh = torch.linalg.svd(weight[rows], full_matrices=False)
            torch.testing.assert_close(edit.weight()[rows], (u[:, :rank] * s[:rank]) @ vh[:rank])
    else:
        # Grouped by direction, the rows lose less than grouped by place.
        block = truncate_clusters(weight, keep=keep, generator=torch.Generator(), clusters=3)
        assert float((weight - edit.weight()).norm()) < float((weight - block.weight()).norm())


def test_k_subspaces_finds_two_lines() -> None:
    lines = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    weight = torch.stack([lines[number % 2] * (number + 1) for number in range(12)])
    edit = truncate_clusters(
        weight, keep=Keep(rank=1), generator=torch.Generator().manual_seed(0), clusters=2, grouping="subspace"
    )
    torch.testing.assert_close(edit.weight(), weight)


def test_groups_of_rows_are_computed_like_their_weights() -> None:
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    parts = []
    for rows in blocks(7, 3):
        u, s, vh = torch.linalg.svd(weight[rows], full_matrices=False)
        parts.append((rows, Nested(u * s, vh, (2, 1))))
    grouped, inputs = Grouped(tuple(parts)), torch.randn(4, 5)
    for place in (0, 1):
        torch.testing.assert_close(grouped.outputs(inputs)[place], inputs @ grouped.weight(place).T)
    torch.testing.assert_close(grouped.only([1]).weight(0), grouped.weight(1))
