"""Truncation weighted on both sides, against its objective in float64 numpy, and its laws."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.calibration import collect
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.errors import RecipeError
from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods.budget import Keep
from harness_ext.methods.feature_space import feature_space
from harness_ext.methods.two_sided_svd import UNWEIGHTED, nearest_factors, two_sided_svd
from harness_ext.methods.weighted_svd import fisher_weighted_svd
from harness_ext.recipe.recipe import parse_recipe
from tests.harness_ext.search.plain_search import documents_for, drawing

CASES = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**31), st.floats(0.05, 1))


class Weighted:
    """A matrix `[m, n]`, second moments of its inputs and of the gradients at its outputs."""

    def __init__(self, rows: int, columns: int, seed: int, share: float = 0.5) -> None:
        generator = numpy.random.default_rng(seed)
        self.weight = generator.standard_normal((rows, columns))
        inputs, gradients = (
            generator.standard_normal((size, size)) @ generator.standard_normal((size, 40)) for size in (columns, rows)
        )
        self.inputs, self.gradients = inputs @ inputs.T / 40, gradients @ gradients.T / 40
        self.rank = max(1, round(share * min(rows, columns)))

    def edit(self, shrink_in: float = 0.1, shrink_out: float = 0.3, rank: int | None = None):
        return two_sided_svd(
            torch.tensor(self.weight),
            input_second_moment=torch.tensor(self.inputs),
            gradient_second_moment=torch.tensor(self.gradients),
            keep=Keep(rank=self.rank if rank is None else rank),
            shrink_in=shrink_in,
            shrink_out=shrink_out,
        )

    def moments(self, shrink_in: float, shrink_out: float) -> tuple[numpy.ndarray, numpy.ndarray]:
        """The moments, shrunk as the formula says."""
        pairs = ((self.inputs, shrink_in), (self.gradients, shrink_out))
        inputs, outputs = (
            (1 - share) * moment + share * numpy.trace(moment) / len(moment) * numpy.eye(len(moment))
            for moment, share in pairs
        )
        return inputs, outputs

    def loss(self, weight: numpy.ndarray, shrink_in: float = 0.1, shrink_out: float = 0.3) -> float:
        inputs, outputs = self.moments(shrink_in, shrink_out)
        off = self.weight - weight
        return float(numpy.trace(outputs @ off @ inputs @ off.T))

    def reference(self, shrink_in: float = 0.1, shrink_out: float = 0.3) -> numpy.ndarray:
        """By Cholesky factors on both sides and one SVD: `L_B^-T [L_B^T W L_A]_r L_A^-1`."""
        left, right = (numpy.linalg.cholesky(moment) for moment in reversed(self.moments(shrink_in, shrink_out)))
        u, s, vh = numpy.linalg.svd(left.T @ self.weight @ right, full_matrices=False)
        cut = u[:, : self.rank] * s[: self.rank] @ vh[: self.rank]
        return numpy.linalg.solve(left.T, cut) @ numpy.linalg.inv(right)


@given(CASES)
@settings(deadline=None, max_examples=60)
def test_it_is_the_optimum_of_both_weights(case: tuple[int, int, int, float]) -> None:
    weighted = Weighted(*case)
    found, wanted = weighted.edit(), weighted.reference()
    scale = weighted.loss(numpy.zeros_like(weighted.weight))
    assert found.rank == weighted.rank
    assert weighted.loss(found.weight().numpy()) == pytest.approx(weighted.loss(wanted), rel=1e-8, abs=1e-12 * scale)


@given(CASES)
@settings(deadline=None, max_examples=40)
def test_outputs_weighted_alike_are_svd_llm(case: tuple[int, int, int, float]) -> None:
    weighted = Weighted(*case)
    plain = feature_space(
        torch.tensor(weighted.weight),
        input_second_moment=torch.tensor(weighted.inputs),
        input_mean_with_sinks=torch.zeros(weighted.weight.shape[1]),
        keep=Keep(rank=weighted.rank),
        centred=False,
        bias=False,
    )
    found = weighted.edit(0.0, 1.0)
    scale = weighted.loss(numpy.zeros_like(weighted.weight), 0.0, 1.0)
    losses = [weighted.loss(one.weight().numpy(), 0.0, 1.0) for one in (found, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-8, abs=1e-12 * scale)


@given(CASES)
@settings(deadline=None, max_examples=40)
def test_at_full_rank_nothing_changes(case: tuple[int, int, int, float]) -> None:
    weighted = Weighted(*case)
    whole = weighted.edit(rank=min(weighted.weight.shape)).weight().numpy()
    numpy.testing.assert_allclose(whole, weighted.weight, atol=1e-8 * abs(weighted.weight).max())


def test_without_gradients_outputs_are_weighted_alike() -> None:
    weighted = Weighted(6, 5, 1)
    weighted.gradients = numpy.zeros_like(weighted.gradients)
    assert weighted.edit().fallback == UNWEIGHTED


def test_the_gradients_are_those_at_the_outputs(make_lm) -> None:
    """Of each document's summed loss, token by token, by plain autograd."""
    lm = make_lm("llama", dtype="float64")
    texts = [("w1 w2 w3", " w4"), ("w5 w6 w7", " w8")]
    matrices = [matrix for matrix in lm.weights.layout.matrices if matrix.key.endswith("1.mlp.up_proj.weight")]
    documents = DocumentBatches([LabelledDocument("t", *text, text[0]) for text in texts], 2)
    (found,) = collect.gather(lm, matrices, frozenset({"gradient_second_moment"}), documents, lambda _: None).values()
    total, tokens = torch.zeros(1, dtype=torch.float64), 0
    for context, answer in texts:
        seen: list[torch.Tensor] = []
        module = lm.model.get_submodule(matrices[0].module)
        hook = module.register_forward_hook(lambda *args, seen=seen: (args[2].retain_grad(), seen.append(args[2]))[0])
        numbers = lm.tok_encode(context + answer)
        with torch.enable_grad():
            embedded = lm.model.get_input_embeddings()(torch.tensor([numbers[:-1]])).detach().requires_grad_(True)
            logits = lm.model(inputs_embeds=embedded, use_cache=False).logits[0]
            count = len(numbers) - len(lm.tok_encode(context))
            loss = torch.nn.functional.cross_entropy(logits[-count:], torch.tensor(numbers[-count:]), reduction="sum")
            loss.backward()
        hook.remove()
        gradients = seen[0].grad[0].double()
        total, tokens = total + gradients.T @ gradients, tokens + len(gradients)
    wanted = total / tokens
    got = found["gradient_second_moment"]
    # the loss of a document may be a mean over its answer's tokens: a common factor changes no edit
    torch.testing.assert_close(got / got.trace(), wanted / wanted.trace(), rtol=1e-5, atol=1e-7)


def test_the_loss_of_a_document_is_a_mean_over_its_answer(make_lm) -> None:
    """Where answers differ in length a sum would weigh tokens otherwise, which is what the released code has."""
    lm = make_lm("llama", dtype="float64")
    texts = [("w1 w2 w3", " w4"), ("w5 w6 w7", " w8 w9 w10 w11")]
    matrices = [matrix for matrix in lm.weights.layout.matrices if matrix.key.endswith("1.mlp.up_proj.weight")]

    def moment(some: list[tuple[str, str]]) -> torch.Tensor:
        documents = DocumentBatches([LabelledDocument("t", *text, text[0]) for text in some], 1)
        names = frozenset({"gradient_second_moment"})
        (found,) = collect.gather(lm, matrices, names, documents, lambda _: None).values()
        tokens = sum(len(lm.tok_encode("".join(text))) - 1 for text in some)
        return found["gradient_second_moment"].double() * tokens

    totals = []
    for reduction in ("mean", "sum"):
        total = torch.zeros(1, dtype=torch.float64)
        for context, answer in texts:
            seen: list[torch.Tensor] = []
            module = lm.model.get_submodule(matrices[0].module)
            hook = module.register_forward_hook(
                lambda *args, seen=seen: (args[2].retain_grad(), seen.append(args[2]))[0]
            )
            numbers = lm.tok_encode(context + answer)
            with torch.enable_grad():
                embedded = lm.model.get_input_embeddings()(torch.tensor([numbers[:-1]])).detach().requires_grad_(True)
                count = len(numbers) - len(lm.tok_encode(context))
                logits = lm.model(inputs_embeds=embedded, use_cache=False).logits[0, -count:]
                torch.nn.functional.cross_entropy(
                    logits, torch.tensor(numbers[-count:]), reduction=reduction
                ).backward()
            hook.remove()
            total = total + seen[0].grad[0].double().T @ seen[0].grad[0].double()
        totals.append(total)
    torch.testing.assert_close(moment(texts), totals[0], rtol=1e-5, atol=1e-7 * float(totals[0].trace()))
    assert not torch.allclose(totals[0] / totals[0].trace(), totals[1] / totals[1].trace(), rtol=0.05)
    assert "mean over its answer's tokens, where the released code sums" in parse_recipe("fisher-svd").caveats


class Batches:
    """A matrix `[m, n]` and the gradients of k batches, of few tokens each."""

    def __init__(self, rows: int, columns: int, seed: int, share: float = 0.5, count: int = 5) -> None:
        generator = numpy.random.default_rng(seed)
        self.weight = generator.standard_normal((rows, columns))
        sides = [generator.standard_normal((size, size)) for size in (rows, columns)]
        rank_of_each = min(columns, 1 + seed % 3)
        self.gradients = 1e-6 * numpy.stack(
            [
                sides[0] @ generator.standard_normal((rows, rank_of_each)) @ sides[1][:rank_of_each]
                + sides[0] @ generator.standard_normal((rows, columns)) @ sides[1]
                for _ in range(count)
            ]
        )
        self.rank = max(1, round(share * min(rows, columns)))

    def edit(self, **settings):
        return two_sided_svd(
            torch.tensor(self.weight),
            batch_gradients=torch.tensor(self.gradients),
            keep=Keep(rank=settings.pop("rank", self.rank)),
            output="batches",
            **settings,
        )

    def rearranged(self) -> numpy.ndarray:
        """The Fisher information as `[m^2, n^2]`, in which a Kronecker product B x A is `vec B vec A^T`."""
        rows, columns = self.weight.shape
        fisher = numpy.mean([numpy.outer(one, one) for one in self.gradients.reshape(len(self.gradients), -1)], axis=0)
        return fisher.reshape(rows, columns, rows, columns).transpose(0, 2, 1, 3).reshape(rows**2, columns**2)

    def factors(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """The nearest ones, by the full decomposition, both made positive."""
        rows, columns = self.weight.shape
        u, _, vh = numpy.linalg.svd(self.rearranged())
        outputs, inputs = u[:, 0].reshape(rows, rows), vh[0].reshape(columns, columns)
        return inputs * numpy.sign(numpy.trace(inputs)), outputs * numpy.sign(numpy.trace(outputs))


@given(CASES)
@settings(deadline=None, max_examples=25)
def test_factors_of_batches_are_nearest_to_their_fisher_information(case: tuple[int, int, int, float]) -> None:
    batches = Batches(min(case[0], 6), min(case[1], 6), *case[2:])
    found = nearest_factors(torch.tensor(batches.gradients))
    fisher = batches.rearranged()
    best, own = (
        numpy.linalg.norm(fisher - float(b.reshape(-1) @ fisher @ a.reshape(-1)) * numpy.outer(b, a))
        for a, b in (batches.factors(), [factor.numpy() for factor in found])
    )
    assert own == pytest.approx(best, rel=1e-9)
    for factor in found:
        assert float(factor.norm()) == pytest.approx(1) and float(torch.linalg.eigvalsh(factor)[0]) > -1e-12


@pytest.mark.parametrize("seed", range(6))
def test_by_batches_it_is_gfwsvd(seed: int) -> None:
    batches = Batches(6, 5, seed)
    inputs, outputs = batches.factors()
    shrunk = [
        numpy.linalg.cholesky((1 - share) * moment + share * numpy.trace(moment) / len(moment) * numpy.eye(len(moment)))
        for moment, share in ((inputs, 0.1), (outputs, 0.3))
    ]
    u, s, vh = numpy.linalg.svd(shrunk[1].T @ batches.weight @ shrunk[0], full_matrices=False)
    cut = u[:, : batches.rank] * s[: batches.rank] @ vh[: batches.rank]
    wanted = numpy.linalg.solve(shrunk[1].T, cut) @ numpy.linalg.inv(shrunk[0])
    numpy.testing.assert_allclose(batches.edit().weight().numpy(), wanted, atol=1e-5)
    whole = batches.edit(rank=5).weight().numpy()
    numpy.testing.assert_allclose(whole, batches.weight, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_one_diagonal_side_is_fwsvd(seed: int) -> None:
    batches = Batches(6, 8, seed)
    information = numpy.mean(batches.gradients**2, axis=0).sum(0)
    plain = fisher_weighted_svd(
        torch.tensor(batches.weight),
        fisher_information=torch.tensor(information),
        truncate=Decomposer().truncate,
        keep=Keep(rank=batches.rank),
    )
    found = batches.edit(shrink_in=0.0, shrink_out=1.0, diagonal_in=True)
    torch.testing.assert_close(found.weight(), plain.weight(), rtol=1e-7, atol=1e-9)


def test_nearest_with_one_side_given() -> None:
    """With B the identity the best A is the mean of `G^T G`; and a diagonal A is better than the diagonal of the best
    whole one.
    """
    batches = Batches(5, 4, 3)
    gradients = torch.tensor(batches.gradients)
    inputs, outputs = nearest_factors(gradients, alike_out=True)
    wanted = (gradients.mT @ gradients).mean(0)
    torch.testing.assert_close(inputs, wanted / wanted.norm(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(outputs, torch.eye(5).double() / 5**0.5)
    inputs, outputs = nearest_factors(gradients, alike_in=True)
    wanted = (gradients @ gradients.mT).mean(0)
    torch.testing.assert_close(outputs, wanted / wanted.norm(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(inputs, torch.eye(4).double() / 2)
    fisher = batches.rearranged()
    whole, (diagonal, beside) = batches.factors(), nearest_factors(gradients, diagonal_in=True)
    assert bool((diagonal == diagonal.diagonal().diag()).all())

    def overlap(a: numpy.ndarray, b: numpy.ndarray) -> float:
        return float(b.reshape(-1) @ fisher @ a.reshape(-1)) / float(numpy.linalg.norm(a) * numpy.linalg.norm(b))

    assert overlap(diagonal.numpy(), beside.numpy()) >= overlap(numpy.diag(numpy.diag(whole[0])), whole[1]) - 1e-18


def test_gradients_in_half_precision_and_none_at_all() -> None:
    batches = Batches(6, 5, 2)
    whole = batches.edit()
    single = two_sided_svd(
        torch.tensor(batches.weight).float(),
        batch_gradients=torch.tensor(batches.gradients).float(),
        keep=Keep(rank=batches.rank),
        output="batches",
    )
    assert single.left.dtype == torch.float32
    torch.testing.assert_close(single.weight().double(), whole.weight(), rtol=0, atol=1e-2)
    batches.gradients = numpy.zeros_like(batches.gradients)
    assert batches.edit().fallback == UNWEIGHTED
    u, s, vh = numpy.linalg.svd(batches.weight)
    numpy.testing.assert_allclose(
        batches.edit().weight().numpy(), u[:, : batches.rank] * s[: batches.rank] @ vh[: batches.rank], atol=1e-9
    )


def test_a_wrong_output_is_refused() -> None:
    with pytest.raises(RecipeError, match="'tokens' or 'batches'"):
        parse_recipe("fisher-svd:output=words")


@pytest.mark.parametrize("size", [1, 3, 16])
def test_gradients_of_batches_are_those_of_the_weight(make_lm, size: int) -> None:
    """Of the mean loss of documents dealt to sixteen batches, however they are run through the model."""
    lm = make_lm("llama", dtype="float64")
    documents = documents_for(lm, 21)
    matrices = [matrix for matrix in lm.weights.layout.matrices if matrix.key.endswith("1.mlp.up_proj.weight")]
    batches = DocumentBatches(documents, size)
    (found,) = collect.gather(lm, matrices, frozenset({"batch_gradients"}), batches, lambda _: None).values()
    weight = lm.model.get_parameter(matrices[0].parameter)
    wanted = torch.zeros(16, *weight.shape, dtype=torch.float64)
    weight.requires_grad_(True)
    for number, document in enumerate(documents):
        before, after = lm.encode_pair(document.context, document.answer)
        with torch.enable_grad():
            logits = lm.model(torch.tensor([(before + after)[:-1]]), use_cache=False).logits[0, -len(after) :]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(after))
            wanted[number % 16] += torch.autograd.grad(loss, weight)[0] / (2 if number % 16 < 5 else 1)
    weight.requires_grad_(False)
    got = found["batch_gradients"].double()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7 * float(wanted.abs().max()))


def test_a_step_gathers_what_its_setting_uses(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 6)
    weights, learned = {}, {}
    for output in ("tokens", "batches"):
        recipe = parse_recipe(f"fisher-svd:matrices=[o_proj],keep.rank=3,output={output}")
        applied = lm.apply(recipe, drawing(documents))
        learned[output] = {name for item in applied.edited for name in item.statistics}
        weights[output] = [lm.weights.values(matrix) for matrix in lm.weights.layout.select(recipe.steps[0])]
        lm.undo()
    assert learned == {"tokens": {"input_second_moment", "gradient_second_moment"}, "batches": {"batch_gradients"}}
    assert all(not torch.allclose(one, other) for one, other in zip(*weights.values(), strict=True))


def test_fwsvd_of_a_model_is_the_method_of_that_name(make_lm) -> None:
    """Where every document is a batch of its own."""
    lm = make_lm("llama")
    documents = documents_for(lm, 9)
    settings = "matrices=[down_proj,q_proj],keep.rank=3"
    own, plain = f"fisher-svd:{settings},output=batches,shrink_in=0,shrink_out=1,diagonal_in=true", f"fwsvd:{settings}"
    found = []
    for recipe in map(parse_recipe, (own, plain)):
        lm.apply(recipe, drawing(documents))
        found.append([lm.weights.values(matrix) for matrix in lm.weights.layout.select(recipe.steps[0])])
        lm.undo()
    assert len(found[0]) == 6
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))
