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
from harness_ext.methods.budget import Keep
from harness_ext.methods.feature_space import feature_space
from harness_ext.methods.two_sided_svd import UNWEIGHTED, two_sided_svd

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
