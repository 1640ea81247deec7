"""Basis selection: its rule and its parametrisation against float64 references, the whole training against one written
from the formula, and that the model is left as it was.
"""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from harness_ext.calibration.batches import pad, summed_loss
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.calibration.loss import mean_loss
from harness_ext.editing.plan import plan
from harness_ext.errors import RecipeError, UserError, VariantFailed
from harness_ext.methods import Svd
from harness_ext.methods.basis_selection import basis_selection
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.recipe.settings import Training
from harness_ext.training.bases import Bases, all_bases, bases_to_keep, ratios
from harness_ext.training.override import swapped
from harness_ext.training.trainer import TrainingPlan, all_labels, schedule, train

DOCUMENTS = [
    LabelledDocument("t", context, answer, context)
    for context, answer in [
        ("w1 w2 w3", " w4"),
        ("w5 w6 w7 w8 w9", " w10 w11"),
        ("w2 w9", " w3"),
        ("w12 w13 w14 w15", " w16"),
        ("w20 w21 w22", " w23 w24"),
    ]
]
QUICK = {
    "keeping_epochs": 2,
    "pruning_times": 2,
    "pruning_epochs": 2,
    "post_epochs": 2,
    "added_rank": 2,
    "learning_rate": 0.003,
}
# Their attention takes the softmax in float32 of scores masked in the model's dtype: in float64 a padded row overflows
# to NaN.
EAGER = ("gemma2", "bloom")


def documents(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, tuple(DOCUMENTS))]


def recipe(words: str = "matrices=[mlp]", **training: object):
    changes = ",".join(f"training.{name}={value}" for name, value in {**QUICK, **training}.items())
    return parse_recipe(f"basis-selection:calibration.batch_size=2,{changes},{words}")


def select(lm, words: str):
    return [
        matrix
        for matrix in lm.weights.layout.select(parse_recipe(f"identity:{words}").steps[0])
        if matrix.expert is None
    ]


def decomposed(lm, matrix) -> Svd:
    return Svd(*torch.linalg.svd(lm.weights.read(matrix), full_matrices=False))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bases(lm, matrix, seed: int = 0) -> Bases:
    """Bases of random values of either sign, a few dropped, and with new ones that are not zero."""
    bases = all_bases(decomposed(lm, matrix), 3, generator(seed))
    bases.values.data.mul_(torch.randn(len(bases.values), generator=generator(seed), dtype=bases.values.dtype))
    bases.added_left.data.add_(torch.randn(bases.added_left.shape, generator=generator(seed), dtype=bases.values.dtype))
    return bases.only(torch.arange(0, len(bases.values), 2))


def dense(bases: Bases) -> torch.Tensor:
    u, s, vh, a, b = (
        getattr(bases, name).detach().double().numpy() for name in ("u", "values", "vh", "added_left", "added_right")
    )
    return torch.from_numpy(u @ numpy.diag(s) @ vh + a @ b)


def same_as_before(lm, digest: str) -> bool:
    hooked = any(module._forward_hooks for module in lm.model.modules())
    return (
        lm.weights.digest() == digest
        and not hooked
        and all(parameter.requires_grad and parameter.grad is None for parameter in lm.model.parameters())
    )


# The rule and the parametrisation.


@given(st.lists(st.integers(-5, 5), max_size=12), st.floats(0.05, 1))
@settings(max_examples=200, deadline=None)
def test_the_fewest_bases_that_reach_the_sum_are_kept(values: list[int], ratio: float) -> None:
    total = float(sum(map(abs, values)))
    kept = bases_to_keep(torch.tensor(values, dtype=torch.float32), ratio, total).tolist()
    sizes = numpy.abs(numpy.array(values, dtype=float))
    assert kept == sorted(set(kept)) and sizes[kept].sum() >= ratio * total - 1e-9
    largest = numpy.sort(sizes)[::-1]
    assert not kept or largest[: len(kept) - 1].sum() < ratio * total
    # The largest, and of equal ones the first.
    assert kept == sorted(sorted(range(len(values)), key=lambda place: (-sizes[place], place))[: len(kept)])


def test_all_bases_stay_where_together_they_have_become_too_small() -> None:
    assert bases_to_keep(torch.tensor([1.0, -2.0]), 0.8, 10.0).tolist() == [0, 1]


def test_the_ratio_falls_in_equal_steps() -> None:
    assert ratios(0.6, 4) == pytest.approx([0.9, 0.8, 0.7, 0.6])
    settings = Training(keep_ratio=0.5, pruning_times=2, keeping_epochs=1, pruning_epochs=2, post_epochs=1)
    assert [tuple(epoch) for epoch in schedule(settings)] == [
        ("keeping", None),
        ("pruning", 0.75),
        ("pruning", None),
        ("pruning", 0.5),
        ("pruning", None),
        ("post", None),
    ]
    assert settings.epochs == len(schedule(settings)) and Training().epochs == len(schedule(Training()))


def test_the_parametrisation_is_the_formula(make_lm) -> None:
    lm = make_lm("gpt2", dtype="float64")
    for matrix in select(lm, "layers=[0]"):
        fresh = all_bases(decomposed(lm, matrix), 3, generator())
        torch.testing.assert_close(dense(fresh), lm.weights.read(matrix))
        bases = random_bases(lm, matrix)
        assert (bases.values < 0).any() and len(bases.values) == len(bases.kept) == (len(fresh.values) + 1) // 2
        inputs = torch.randn(2, 5, matrix.shape[1], generator=generator(), dtype=torch.float64)
        for function in (bases, bases.pair()):
            torch.testing.assert_close(function(inputs).detach(), inputs @ dense(bases).T)
        pair = bases.pair()
        roots = bases.values.detach().abs().sqrt()
        torch.testing.assert_close(pair.left[:, : len(roots)].detach().norm(dim=0), roots)
        torch.testing.assert_close(pair.right[: len(roots)].detach().norm(dim=1), roots)


def test_more_bases_than_the_full_rank_are_as_of_full_rank() -> None:
    for rows, columns in ((4, 6), (6, 4)):
        left, right = torch.randn(rows, 5, generator=generator()), torch.randn(5, columns, generator=generator(1))
        edit = basis_selection(torch.zeros(rows, columns), trained_left=left, trained_right=right)
        assert edit.rank == 4
        torch.testing.assert_close(edit.weight(), left @ right)


# Inside the model.


@pytest.mark.parametrize(
    "words", ["matrices=[all]", "matrices=[q_proj,up_proj,o_proj],layers=[1]", "matrices=[k_proj,o_proj],per_head=true"]
)
def test_the_swapped_model_is_that_of_the_dense_matrices(make_lm, family: str, words: str) -> None:
    lm = make_lm(family, dtype="float32" if family in EAGER else "float64")
    digest = lm.weights.digest()
    matrices = select(lm, words)
    bases = {matrix.key: random_bases(lm, matrix) for matrix in matrices}
    tokens = torch.arange(3, 17).reshape(2, 7)
    with torch.no_grad():
        with swapped(lm.model, matrices, bases.__getitem__):
            ours = lm.model(tokens).logits
        assert same_as_before(lm, digest)
        untouched = lm.model(tokens).logits
        for matrix in matrices:
            lm.weights.replace(matrix, dense(bases[matrix.key]))
        expected = lm.model(tokens).logits
    # Some families normalise in float32 whatever the dtype.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3 if family in EAGER else 1e-5)
    assert not torch.allclose(expected, untouched, atol=0.1)


def test_the_gradient_of_a_value_is_what_the_loss_does(make_lm) -> None:
    """`dL/ds_i = u_i^T G v_i`, G that of the dense weight, and both are the slope of the loss."""
    lm = make_lm("gpt2", dtype="float64")
    (matrix,) = select(lm, "matrices=[up_proj],layers=[1]")
    bases = all_bases(decomposed(lm, matrix), 2, generator())
    tokens, labels = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([6, 7, 8, 9, 10])

    def loss() -> torch.Tensor:
        with swapped(lm.model, [matrix], lambda key: bases):
            return cross_entropy(lm.model(tokens).logits[0], labels)

    (ours,) = torch.autograd.grad(loss(), [bases.values])
    weight = lm.model.get_parameter(matrix.parameter)
    (stored,) = torch.autograd.grad(cross_entropy(lm.model(tokens).logits[0], labels), [weight])
    torch.testing.assert_close(ours, torch.einsum("mi,mn,in->i", bases.u, stored.T, bases.vh))
    for place in (0, 3, 11):
        values = bases.values.detach().clone()
        ends = []
        for sign in (1, -1):
            bases.values.data.copy_(values)
            bases.values.data[place] += sign * 1e-5
            ends.append(float(loss().detach()))
        bases.values.data.copy_(values)
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(ours[place]), rel=1e-5, abs=1e-9)


def test_the_loss_of_texts_is_that_of_every_token(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    expected = []
    for document in DOCUMENTS:
        tokens = torch.tensor(lm.tok_encode(document.context + document.answer))
        with torch.no_grad():
            expected.append(float(cross_entropy(lm.model(tokens[None, :-1]).logits[0].double(), tokens[1:])))
    batch = pad(lm, DOCUMENTS)
    labels = all_labels(batch.tokens, batch.mask, batch.labels)
    with torch.no_grad():
        assert float(summed_loss(lm, type(batch)(batch.tokens, batch.mask, batch.positions, labels))) == pytest.approx(
            sum(expected), rel=1e-5
        )


# The training as a whole.


def reference(lm, matrix, asked: Training, seed: int, start: Bases) -> tuple[torch.Tensor, list[float]]:
    """The dense weight put into the model by `functional_call`, one unpadded document at a time, and AdamW written out;
    gives W~ and the loss of each epoch.
    """
    u, vh = start.u, start.vh
    s, a, b = (getattr(start, name).detach().clone() for name in ("values", "added_left", "added_right"))
    kept, total, losses, epoch = numpy.arange(len(s)), None, [], 0
    moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in (s, a, b)]
    steps = 0

    def loss_of(weight, document) -> torch.Tensor:
        tokens = torch.tensor(lm.tok_encode(document.context + document.answer))
        count = len(tokens) - 1 if asked.loss == "text" else len(lm.tok_encode(document.answer.strip()))
        logits = torch.func.functional_call(lm.model, {matrix.parameter: weight.T}, (tokens[None, :-1],)).logits[0]
        return cross_entropy(logits[-count:], tokens[-count:])

    def one_epoch(trained: list[torch.Tensor], weight_of) -> None:
        nonlocal steps, epoch
        order = list(DOCUMENTS)
        random.Random(f"{seed}:{epoch}").shuffle(order)
        seen = 0.0
        for first in range(0, len(order), 2):
            batch = order[first : first + 2]
            leaves = [value.requires_grad_(True) for value in trained]
            summed = sum(loss_of(weight_of(*leaves), document) for document in batch)
            gradients = torch.autograd.grad(summed / len(batch), leaves)
            seen += float(summed.detach())
            steps += 1
            for value, gradient, (first_moment, second_moment) in zip(trained, gradients, moments, strict=True):
                value.requires_grad_(False)
                first_moment.mul_(0.9).add_(0.1 * gradient)
                second_moment.mul_(0.999).add_(0.001 * gradient**2)
                value.mul_(1 - asked.learning_rate * asked.weight_decay)
                value.sub_(
                    asked.learning_rate
                    * (first_moment / (1 - 0.9**steps))
                    / ((second_moment / (1 - 0.999**steps)).sqrt() + 1e-8)
                )
        losses.append(seen / len(order))
        epoch += 1

    def with_bases(s, a, b):
        return u[:, kept] @ torch.diag(s) @ vh[kept] + a @ b

    for _ in range(asked.keeping_epochs):
        one_epoch([s, a, b], with_bases)
    total = float(s.abs().sum())
    for number in range(asked.pruning_times):
        ratio = 1 - (1 - asked.keep_ratio) * (number + 1) / asked.pruning_times
        order = numpy.argsort(-s.abs().numpy(), kind="stable")
        count = next(
            (count for count in range(len(s) + 1) if float(s.abs().numpy()[order[:count]].sum()) >= ratio * total),
            len(s),
        )
        places = numpy.sort(order[:count])
        kept, s, moments[0] = kept[places], s[places], (moments[0][0][places], moments[0][1][places])
        for _ in range(asked.pruning_epochs):
            one_epoch([s, a, b], with_bases)
    root = s.abs().sqrt()
    left = torch.cat([u[:, kept] * root, a], dim=1)
    right = torch.cat([(s.sign() * root)[:, None] * vh[kept], b])
    moments, steps = [(torch.zeros_like(value), torch.zeros_like(value)) for value in (left, right)], 0
    for _ in range(asked.post_epochs):
        one_epoch([left, right], lambda left, right: left @ right)
    return left @ right, losses


@pytest.mark.parametrize("loss", ["text", "answer"])
def test_a_training_equals_the_reference(make_lm, loss: str) -> None:
    """On GPT-2, whose every operation but the loss stays in float64. What rounding is left, AdamW enlarges where a
    gradient is next to nothing.
    """
    lm = make_lm("gpt2", dtype="float64")
    (matrix,) = select(lm, "matrices=[up_proj],layers=[1]")
    asked = Training(
        keep_ratio=0.5,
        pruning_times=2,
        keeping_epochs=2,
        pruning_epochs=2,
        post_epochs=2,
        added_rank=2,
        learning_rate=0.01,
        weight_decay=0.1,
        loss=loss,
    )
    trained = train(
        lm,
        [matrix],
        DocumentBatches(DOCUMENTS, 2),
        TrainingPlan(asked, 7, lambda matrix: all_bases(decomposed(lm, matrix), asked.added_rank, generator())),
    )
    expected, losses = reference(lm, matrix, asked, 7, all_bases(decomposed(lm, matrix), asked.added_rank, generator()))
    left, right = trained.factors[matrix.key].values()
    moved = (expected - lm.weights.read(matrix)).norm()
    assert float((left @ right - expected).norm() / moved) < 1e-3
    assert [row["loss"] for row in trained.log] == pytest.approx(losses, rel=1e-4)
    (kept,) = trained.log[4]["bases"].values()
    assert left.shape[1] == kept + 2 and kept < trained.log[2]["bases"][matrix.key] < 24


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    digest = lm.weights.digest()
    before = mean_loss(lm, DOCUMENTS, 5)
    applied = lm.apply(recipe("matrices=[all]", loss="answer", learning_rate=0.01, post_epochs=12), documents)
    losses = [row["loss"] for row in applied.log]
    assert len(losses) == 18 and losses[-1] < 0.5 * losses[0]
    assert mean_loss(lm, DOCUMENTS, 5) < 0.5 * before
    rounds = {row["ratio"]: row["bases"] for row in applied.log if "bases" in row}
    assert list(rounds) == pytest.approx([0.9, 0.8])
    for record in applied.records:
        key = " ".join(filter(None, (record.name, record.part)))
        assert (
            record.rank_after == min(rounds[0.8][key] + 2, record.rank_before) and rounds[0.8][key] <= rounds[0.9][key]
        )
    lm.undo()
    assert same_as_before(lm, digest)


@pytest.mark.slow
def test_every_family_is_trained_and_restored(make_lm, family: str) -> None:
    lm = make_lm(family)
    digest = lm.weights.digest()
    words = (
        "matrices=[attn]"
        if any(matrix.expert is not None for matrix in lm.weights.layout.matrices)
        else "matrices=[all]"
    )
    for changes in (words, "matrices=[k_proj,o_proj],per_head=true"):
        applied = lm.apply(recipe(changes), documents)
        assert applied.log[-1]["loss"] < applied.log[0]["loss"]
        assert all(record.relative_error > 0 for record in applied.records)
        lm.undo()
        assert same_as_before(lm, digest)


def test_a_model_in_half_precision_is_trained_in_float32(make_lm) -> None:
    lm = make_lm("llama", dtype="bfloat16")
    applied = lm.apply(recipe(), documents)
    assert applied.log[-1]["loss"] < applied.log[0]["loss"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(make_lm) -> None:
    lm = make_lm("llama")
    digests = []
    for seed in (0, 0, 1):
        lm.apply(recipe(f"matrices=[mlp],seed={seed}"), documents)
        digests.append(lm.weights.digest())
        lm.undo()
    assert digests[0] == digests[1] != digests[2]


# What does not go well.


def test_a_training_that_diverges_is_a_failure_that_leaves_the_model_as_it_was(make_lm) -> None:
    lm = make_lm("gpt2")
    digest = lm.weights.digest()
    with pytest.raises(
        VariantFailed,
        match=(
            r"the training loss is not finite in epoch 1 of 8, after 1 batches: lower training.learning_rate \(now"
            r" 1e\+30\)"
        ),
    ):
        lm.apply(recipe(learning_rate=1e30), documents)
    assert same_as_before(lm, digest)


def test_what_cannot_be_trained_is_refused(make_lm, make_model) -> None:
    from harness_ext.model.checkpoint import read_checkpoint

    mixture = make_model("mixtral")
    with pytest.raises(
        UserError,
        match=(
            r"step 0: model.layers.0.mlp.experts.gate_up_proj gate_proj expert 0: .* cannot be .*; choose matrices"
            r" outside them, such as attn"
        ),
    ):
        plan(recipe(), read_checkpoint(str(mixture)))
    lm = make_lm("gpt2")
    digest = lm.weights.digest()
    with pytest.raises(
        UserError, match=r"transformer.wte.weight belongs to a Embedding, and only linear layers can be trained"
    ):
        lm.apply(recipe("matrices=[transformer.wte.weight]"), documents)
    with pytest.raises(UserError, match=r"c_attn.weight overlaps another matrix of the step"):
        lm.apply(recipe("matrices=[q_proj,'*c_attn.weight'],layers=[0]"), documents)
    assert same_as_before(lm, digest)


def test_the_settings_of_a_training_are_checked() -> None:
    assert (
        parse_recipe("basis-selection").steps[0].training == Training()
        and parse_recipe("svd").steps[0].training is None
    )
    with pytest.raises(RecipeError, match=r"training.keep_ration: unknown key, did you mean 'keep_ratio'\?"):
        parse_recipe("basis-selection:training.keep_ration=0.5")
    with pytest.raises(RecipeError, match=r"training.keep_ratio: input should be less than or equal to 1 \(found 2\)"):
        parse_recipe("basis-selection:training.keep_ratio=2")


@pytest.mark.slow
def test_a_plan_says_that_it_trains(make_model) -> None:
    from harness_ext.model.checkpoint import read_checkpoint

    planned = plan(recipe(), read_checkpoint(str(make_model("llama"))))
    assert planned.training_epochs == 8 and {item.rank_after for item in planned.matrices} == {None}
    without = plan(recipe(added_rank=0), read_checkpoint(str(make_model("llama"))))
    # Nine matrices of 24 x 40: two factors of rank 2, with gradients and two moments, in fp32.
    assert planned.peak_bytes - without.peak_bytes == 9 * 2 * 64 * 4 * 4
