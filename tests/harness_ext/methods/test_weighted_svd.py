"""Truncation and pruning of weights against references written from the formulas in float64 numpy, and their laws."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from harness_ext.calibration import collect
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.calibration.statistics import FisherInformation
from harness_ext.editing.plan import plan
from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods import registered_methods
from harness_ext.methods.budget import Keep
from harness_ext.methods.sparse import magnitude, wanda
from harness_ext.methods.weighted_svd import (
    LARGEST_ONLY,
    UNSCALED,
    activation_aware_svd,
    fisher_weighted_svd,
    marchenko_pastur,
    marchenko_pastur_median,
    noise_level,
)
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.recipe.recipe import parse_recipe

TRUNCATE = Decomposer().truncate
SHAPES = st.tuples(st.integers(1, 16), st.integers(1, 16), st.integers(0, 2**31))
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


def random(rows: int, columns: int, seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """A matrix, and positive weights of its columns."""
    generator = numpy.random.default_rng(seed)
    return generator.standard_normal((rows, columns)), generator.gamma(1.0, size=columns) + 0.01


# The noise spectrum.


@pytest.mark.parametrize("aspect", [0.05, 0.3, 0.75, 1.0])
def test_the_median_is_that_of_the_law(aspect: float) -> None:
    """Integrate the density as it is usually written, in x, up to the median: half."""
    from scipy.integrate import quad

    low, high = (1 - aspect**0.5) ** 2, (1 + aspect**0.5) ** 2
    share, _ = quad(
        lambda x: numpy.sqrt((high - x) * (x - low)) / (2 * numpy.pi * aspect * x),
        low,
        marchenko_pastur_median(aspect),
        limit=200,
    )
    assert share == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("shape", [(200, 200), (120, 300), (300, 120)])
@pytest.mark.parametrize("sigma", [0.02, 1.0])
def test_the_level_of_noise_is_found_with_and_without_signal(shape: tuple[int, int], sigma: float) -> None:
    generator = numpy.random.default_rng(1)
    noise = sigma * generator.standard_normal(shape)
    signal = generator.standard_normal((shape[0], 5)) @ generator.standard_normal((5, shape[1])) * sigma * 3
    for matrix, expected in ((noise, 0), (noise + signal, 5)):
        weight = torch.tensor(matrix)
        assert noise_level(torch.linalg.svdvals(weight), shape) == pytest.approx(sigma, rel=0.05)
        edit = marchenko_pastur(weight, truncate=TRUNCATE, threshold=1.05)
        assert (edit.rank, edit.fallback) == ((expected, None) if expected else (1, LARGEST_ONLY))


@given(SHAPES, st.floats(0.1, 3))
@settings(max_examples=40, deadline=None)
def test_the_edge_scales_with_the_matrix_and_what_stays_lies_above_it(shape, threshold: float) -> None:
    matrix, _ = random(*shape)
    weight = torch.tensor(matrix)
    edit = marchenko_pastur(weight, truncate=TRUNCATE, threshold=threshold)
    s, (rows, columns) = numpy.linalg.svd(matrix, compute_uv=False), matrix.shape
    aspect, larger = min(rows, columns) / max(rows, columns), max(rows, columns)
    edge = (
        numpy.median(s)
        / numpy.sqrt(larger * marchenko_pastur_median(aspect))
        * (numpy.sqrt(rows) + numpy.sqrt(columns))
    )
    assert edit.rank == max(1, int((s > threshold * edge).sum()))
    assert marchenko_pastur(1000 * weight, truncate=TRUNCATE, threshold=threshold).rank == edit.rank


@pytest.mark.slow
def test_a_plan_does_not_guess_a_rank_that_the_weights_decide(make_model) -> None:
    planned = plan(parse_recipe("laser-rmt"), read_checkpoint(str(make_model("llama"))))
    assert {item.rank_after for item in planned.matrices} == {None} and planned.seconds > 0


# Weighted columns.


@given(SHAPES, st.floats(0.05, 1), st.floats(0.1, 1.5))
@settings(max_examples=40, deadline=None)
def test_scaled_truncations_equal_the_reference(shape, share: float, exponent: float) -> None:
    matrix, size = random(*shape)
    rank = max(1, round(share * min(matrix.shape)))
    weight, keep = torch.tensor(matrix), Keep(rank=rank)
    edits = {
        "asvd": (
            activation_aware_svd(
                weight, truncate=TRUNCATE, input_magnitude=torch.tensor(size), keep=keep, exponent=exponent
            ),
            size**exponent,
        ),
        "fwsvd": (
            fisher_weighted_svd(weight, truncate=TRUNCATE, fisher_information=torch.tensor(size), keep=keep),
            numpy.sqrt(size),
        ),
    }
    for edit, scale in edits.values():
        u, s, vh = numpy.linalg.svd(matrix @ numpy.diag(scale), full_matrices=False)
        expected = (u[:, :rank] * s[:rank]) @ vh[:rank] @ numpy.diag(1 / scale)
        numpy.testing.assert_allclose(edit.weight().numpy(), expected, atol=1e-8 * max(1, scale.max() / scale.min()))
        # Eckart-Young in the weighted norm, and so no worse there than plain truncation.
        weighted = numpy.linalg.norm((matrix - edit.weight().numpy()) * scale)
        assert weighted == pytest.approx(numpy.sqrt((s[rank:] ** 2).sum()), abs=1e-9)
        u, s, vh = numpy.linalg.svd(matrix, full_matrices=False)
        assert weighted <= numpy.linalg.norm((matrix - (u[:, :rank] * s[:rank]) @ vh[:rank]) * scale) + 1e-9
        assert edit.rank == rank and edit.fallback is None


def test_equal_columns_give_plain_truncation_and_energy_is_that_of_the_scaled_matrix() -> None:
    matrix, size = random(9, 7, 4)
    weight = torch.tensor(matrix)
    u, s, vh = numpy.linalg.svd(matrix, full_matrices=False)
    plain = (u[:, :3] * s[:3]) @ vh[:3]
    for size_of_all, fallback in ((2.5, None), (0.0, UNSCALED)):
        edit = activation_aware_svd(
            weight, truncate=TRUNCATE, input_magnitude=torch.full((7,), size_of_all), keep=Keep(rank=3)
        )
        numpy.testing.assert_allclose(edit.weight().numpy(), plain, atol=1e-10)
        assert edit.fallback == fallback
    scaled = numpy.linalg.svd(matrix * numpy.sqrt(size), compute_uv=False) ** 2
    edit = fisher_weighted_svd(weight, truncate=TRUNCATE, fisher_information=torch.tensor(size), keep=Keep(energy=0.8))
    assert edit.rank == int(numpy.argmax(scaled.cumsum() >= 0.8 * scaled.sum())) + 1


def test_a_column_that_never_matters_leaves_the_others_exact() -> None:
    matrix, size = random(6, 5, 2)
    size[3] = 0.0
    edit = fisher_weighted_svd(
        torch.tensor(matrix), truncate=TRUNCATE, fisher_information=torch.tensor(size), keep=Keep(rank=4)
    )
    assert torch.isfinite(edit.weight()).all()
    others = [0, 1, 2, 4]
    numpy.testing.assert_allclose(edit.weight().numpy()[:, others], matrix[:, others], atol=1e-9)


@pytest.mark.parametrize("role", ["k_proj", "up_proj"])
@pytest.mark.parametrize("size", [1, 3])
def test_the_fisher_information_equals_that_of_whole_gradients(
    make_lm, plain_family: str, role: str, size: int
) -> None:
    """Each document's own backward pass to the weight itself, squared, summed over rows."""
    lm = make_lm(plain_family, dtype="float64")
    (matrix,) = lm.weights.layout.select(parse_recipe(f"identity:matrices=[{role}],layers=[1]").steps[0])
    found = collect.gather(
        lm,
        [matrix],
        frozenset({"fisher_information"}),
        DocumentBatches(DOCUMENTS, size),
        lambda matrix: pytest.fail("no factors are needed"),
    )
    parameter = dict(lm.model.named_parameters())[matrix.parameter]
    squared = []
    for document in DOCUMENTS:
        context, answer = (lm.tok_encode(text.strip()) for text in (document.context, document.answer))
        logits = lm.model(torch.tensor([context + answer[:-1]])).logits[0, -len(answer) :]
        (gradient,) = torch.autograd.grad(cross_entropy(logits, torch.tensor(answer)), parameter)
        rows = gradient.T if matrix.stored_transposed else gradient
        squared.append((rows[slice(*matrix.rows[0])] if matrix.rows else rows).numpy() ** 2)
    numpy.testing.assert_allclose(
        found[matrix.key]["fisher_information"].numpy(), numpy.mean(squared, axis=0).sum(0), rtol=1e-4, atol=1e-9
    )


@pytest.mark.parametrize("tokens", [1, 3, 200, 900])
@pytest.mark.parametrize(("rows", "columns"), [(5, 9), (600, 40)])
def test_the_fisher_information_of_short_and_long_documents_is_that_of_their_gradients(
    tokens: int, rows: int, columns: int
) -> None:
    draw = numpy.random.default_rng(tokens)
    x, g = draw.normal(size=(2, tokens, columns)), draw.normal(size=(2, tokens, rows))
    statistic = FisherInformation()
    statistic.update(torch.tensor(x), torch.tensor(g), torch.ones(2, tokens, dtype=torch.bool))
    expected = numpy.mean([((own_g.T @ own_x) ** 2).sum(0) for own_g, own_x in zip(g, x, strict=True)], axis=0)
    numpy.testing.assert_allclose(statistic.result().numpy(), expected, rtol=1e-10)


# Single weights.


@given(SHAPES, st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_sparse_yardsticks_keep_exactly_the_largest(shape, density: float) -> None:
    matrix, size = random(*shape)
    weight = torch.tensor(matrix)
    by_size = magnitude(weight, density=density).weight().numpy()
    gone = int(numpy.floor((1 - density) * matrix.size + 1e-9))
    expected = matrix.flatten()
    expected[numpy.argsort(numpy.abs(expected), kind="stable")[:gone]] = 0
    numpy.testing.assert_array_equal(by_size, expected.reshape(matrix.shape))

    pruned = wanda(weight, input_second_moment_diagonal=torch.tensor(size), density=density)
    rows = matrix.copy()
    for row in rows:
        row[
            numpy.argsort(numpy.abs(row) * numpy.sqrt(size), kind="stable")[
                : int(numpy.floor((1 - density) * len(row) + 1e-9))
            ]
        ] = 0
    numpy.testing.assert_array_equal(pruned.weight().numpy(), rows)
    assert pruned.rank == min(matrix.shape) and pruned.bias_shift is None


def documents(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, tuple(DOCUMENTS))]


@pytest.mark.parametrize("name", ["laser-rmt", "asvd", "fwsvd", "magnitude", "wanda"])
def test_the_recipes_run_are_recorded_and_undone(make_lm, plain_family: str, name: str) -> None:
    lm = make_lm(plain_family)
    digest, parameters = lm.weights.digest(), lm.model.num_parameters()
    applied = lm.apply(parse_recipe(name), documents)
    assert applied.records and all(record.relative_error > 0 for record in applied.records)
    if name in ("magnitude", "wanda"):
        assert lm.totals()["parameters_after"] == parameters and all(
            record.rank_after == record.rank_before for record in applied.records
        )
    lm.undo()
    assert lm.weights.digest() == digest


def test_needs_are_what_the_statistics_say() -> None:
    methods = registered_methods()
    needs = {
        name: methods[name].needs
        for name in ("magnitude", "wanda", "feature_space", "activation_aware_svd", "fisher_weighted_svd", "eigenprune")
    }
    assert list(needs.values()) == ["nothing", "texts", "texts", "texts", "labelled documents", "labelled documents"]
