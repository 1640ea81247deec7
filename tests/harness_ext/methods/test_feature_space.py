"""The feature-space family against references written from the formulas in float64 numpy, and its laws."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.calibration import collect, statistics
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.editing.learning import stages
from harness_ext.errors import VariantFailed
from harness_ext.methods import feature_space as module
from harness_ext.methods.budget import Keep
from harness_ext.methods.feature_space import WEIGHT_DIRECTIONS, feature_space
from harness_ext.recipe.recipe import parse_recipe

CASES = st.tuples(st.integers(2, 14), st.integers(2, 14), st.integers(0, 2**31), st.floats(0.05, 1))
TEXTS = [
    LabelledDocument("t", context, answer, context)
    for context, answer in [
        ("w1 w2 w3", " w4"),
        ("w5 w6 w7 w8 w9", " w10 w11"),
        ("w2 w9", " w3"),
        ("w12 w13 w14 w15", " w16"),
    ]
]


class Case:
    """A matrix with inputs `[n, N]` whose features differ in scale and have a mean."""

    def __init__(self, rows: int, columns: int, seed: int, share: float = 0.5, tokens: int = 60) -> None:
        generator = numpy.random.default_rng(seed)
        self.weight = generator.standard_normal((rows, columns))
        self.inputs = generator.standard_normal((columns, columns)) @ (
            generator.standard_normal((columns, tokens)) * numpy.linspace(3, 0.3, columns)[:, None]
        ) + 2 * generator.standard_normal((columns, 1))
        self.rank = max(1, round(share * min(rows, columns)))
        self.mean = self.inputs.mean(1)

    def edit(self, *, centred: bool, bias: bool, rank: int | None = None, keep: Keep | None = None):
        return feature_space(
            torch.tensor(self.weight),
            input_second_moment=torch.tensor(self.inputs @ self.inputs.T / self.inputs.shape[1]),
            input_mean_with_sinks=torch.tensor(self.mean),
            keep=keep or Keep(rank=self.rank if rank is None else rank),
            centred=centred,
            bias=bias,
        )

    def error(self, weight: numpy.ndarray, shift: numpy.ndarray | float = 0.0) -> float:
        """The relative error of the outputs."""
        outputs = self.weight @ self.inputs
        return float(
            numpy.linalg.norm(outputs - weight @ self.inputs - numpy.reshape(shift, (-1, 1)))
            / numpy.linalg.norm(outputs)
        )


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_centred_with_bias_is_principal_component_analysis_of_the_outputs(case) -> None:
    case = Case(*case)
    edit = case.edit(centred=True, bias=True)
    outputs = case.weight @ case.inputs
    u, s, vh = numpy.linalg.svd(outputs - outputs.mean(1, keepdims=True), full_matrices=False)
    expected = (u[:, : case.rank] * s[: case.rank]) @ vh[: case.rank] + outputs.mean(1, keepdims=True)
    ours = edit.weight().numpy() @ case.inputs + edit.bias_shift.numpy()[:, None]
    numpy.testing.assert_allclose(ours, expected, atol=1e-7 * numpy.abs(outputs).max())
    assert edit.rank == case.rank and edit.fallback is None


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_uncentred_equals_truncation_aware_whitening_by_cholesky(case) -> None:
    """SVD-LLM: S = chol(X X^T), the SVD of W S truncated, S undone; equal to 1e-10 where the spectrum leaves no tie."""
    case = Case(*case)
    factor = numpy.linalg.cholesky(case.inputs @ case.inputs.T)
    u, s, vh = numpy.linalg.svd(case.weight @ factor, full_matrices=False)
    whitened = (u[:, : case.rank] * s[: case.rank]) @ vh[: case.rank] @ numpy.linalg.inv(factor)
    gap = 1.0 if case.rank == len(s) else 1 - s[case.rank] / s[case.rank - 1]
    scale = numpy.abs(case.weight).max() * numpy.linalg.cond(factor) / gap
    difference = numpy.abs(case.edit(centred=False, bias=False).weight().numpy() - whitened).max()
    assert difference <= max(1e-10, 1e-14 * scale)


def test_the_equivalence_holds_to_1e_10_on_a_well_conditioned_case() -> None:
    generator = numpy.random.default_rng(0)
    case = Case(12, 9, 0)
    case.inputs = generator.standard_normal((9, 400)) + 0.5
    factor = numpy.linalg.cholesky(case.inputs @ case.inputs.T)
    u, s, vh = numpy.linalg.svd(case.weight @ factor, full_matrices=False)
    for rank in range(1, 10):
        whitened = (u[:, :rank] * s[:rank]) @ vh[:rank] @ numpy.linalg.inv(factor)
        assert numpy.abs(case.edit(centred=False, bias=False, rank=rank).weight().numpy() - whitened).max() < 1e-10


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_family_and_the_fall_of_the_error(case) -> None:
    """Centred with bias <= uncentred <= plain SVD, and centred without bias is no better than uncentred; every error
    falls with rank.
    """
    case = Case(*case)
    edits = {
        (centred, bias): case.edit(centred=centred, bias=bias)
        for centred, bias in [(True, True), (False, False), (True, False)]
    }
    errors = {
        key: case.error(edit.weight().numpy(), 0.0 if edit.bias_shift is None else edit.bias_shift.numpy())
        for key, edit in edits.items()
    }
    u, s, vh = numpy.linalg.svd(case.weight, full_matrices=False)
    plain = case.error((u[:, : case.rank] * s[: case.rank]) @ vh[: case.rank])
    assert errors[True, True] <= errors[False, False] + 1e-9
    assert errors[False, False] <= plain + 1e-9
    assert errors[False, False] <= errors[True, False] + 1e-9
    by_rank = [
        case.error(case.edit(centred=False, bias=False, rank=rank).weight().numpy())
        for rank in range(min(case.weight.shape) + 1)
    ]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(by_rank))
    assert by_rank[-1] < 1e-7


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_it_is_a_projection_of_the_outputs_that_keeps_their_mean(case) -> None:
    case = Case(*case)
    edit = case.edit(centred=True, bias=True)
    left = edit.left.numpy()
    numpy.testing.assert_allclose(left.T @ left, numpy.eye(case.rank), atol=1e-12)
    numpy.testing.assert_allclose(edit.right.numpy(), left.T @ case.weight, atol=1e-9)
    numpy.testing.assert_allclose(
        edit.weight().numpy() @ case.mean + edit.bias_shift.numpy(), case.weight @ case.mean, atol=1e-8
    )


def test_energy_is_a_share_of_the_variance_of_the_outputs() -> None:
    case = Case(10, 7, 3)
    variances = numpy.linalg.svd(case.weight @ case.inputs, compute_uv=False) ** 2
    for share in (0.5, 0.9, 0.99, 1.0):
        expected = int(numpy.argmax(numpy.cumsum(variances) >= share * variances.sum() * (1 - 1e-12))) + 1
        assert case.edit(centred=False, bias=False, keep=Keep(energy=share)).rank == expected


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
@pytest.mark.parametrize("tokens", [3, 1])
def test_outputs_that_span_too_little_are_completed_from_the_weights(shape: tuple[int, int], tokens: int) -> None:
    """Three tokens move the outputs in three directions: those stay exact, the rest is the best of what remains, and
    the receipt is told.
    """
    case = Case(*shape, 5, tokens=tokens)
    edit = case.edit(centred=False, bias=False, rank=6)
    assert edit.fallback == WEIGHT_DIRECTIONS and case.error(edit.weight().numpy()) < 1e-9
    basis = numpy.linalg.qr(case.weight @ case.inputs)[0]
    rest = case.weight - basis @ basis.T @ case.weight
    expected = numpy.sqrt((numpy.linalg.svd(rest, compute_uv=False)[6 - tokens :] ** 2).sum())
    assert numpy.linalg.norm(case.weight - edit.weight().numpy()) == pytest.approx(expected, rel=1e-9)
    numpy.testing.assert_allclose(case.edit(centred=False, bias=False, rank=8).weight().numpy(), case.weight, atol=1e-9)


def test_inputs_that_are_all_zero_leave_plain_truncation() -> None:
    case = Case(6, 5, 1)
    case.inputs, case.mean = numpy.zeros((5, 4)), numpy.zeros(5)
    u, s, vh = numpy.linalg.svd(case.weight, full_matrices=False)
    edit = case.edit(centred=True, bias=True, rank=2)
    assert edit.fallback == WEIGHT_DIRECTIONS
    numpy.testing.assert_allclose(edit.weight().numpy(), (u[:, :2] * s[:2]) @ vh[:2], atol=1e-10)


# On a model.


def texts(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, tuple(TEXTS))]


def inputs_of(lm, matrix) -> numpy.ndarray:
    """The inputs of a matrix over all texts, one at a time and unpadded, `[N, n]`."""
    seen: list[torch.Tensor] = []
    handle = lm.model.get_submodule(matrix.module).register_forward_hook(
        lambda module, args, output: seen.append(args[0][0].detach())
    )
    for text in TEXTS:
        tokens = lm.tok_encode(text.context) + lm.tok_encode(text.answer.strip())
        with torch.no_grad():
            lm.model(torch.tensor([tokens[:-1]]))
    handle.remove()
    return torch.cat(seen).double().numpy()


@pytest.mark.parametrize("role", ["k_proj", "down_proj"])
def test_moments_equal_those_of_unpadded_texts(make_lm, plain_family: str, role: str) -> None:
    lm = make_lm(plain_family, dtype="float64")
    (matrix,) = lm.weights.layout.select(parse_recipe(f"identity:matrices=[{role}],layers=[1]").steps[0])
    names = frozenset({"input_mean_with_sinks", "input_second_moment", "input_magnitude"})
    found = collect.gather(
        lm, [matrix], names, DocumentBatches(TEXTS, 3), lambda matrix: pytest.fail("no factors are needed")
    )[matrix.key]
    inputs = inputs_of(lm, matrix)
    numpy.testing.assert_allclose(
        found["input_second_moment"].numpy(), inputs.T @ inputs / len(inputs), rtol=1e-5, atol=1e-6
    )
    numpy.testing.assert_allclose(found["input_mean_with_sinks"].numpy(), inputs.mean(0), rtol=1e-5, atol=1e-6)
    numpy.testing.assert_allclose(found["input_magnitude"].numpy(), numpy.abs(inputs).mean(0), rtol=1e-5, atol=1e-6)


def test_moments_are_gathered_in_bounded_memory(make_lm, monkeypatch) -> None:
    lm = make_lm("llama")
    matrices = lm.weights.layout.select(parse_recipe("identity").steps[0])
    names = frozenset({"input_second_moment"})
    at_once = collect.gather(lm, matrices, names, DocumentBatches(TEXTS, 4), lambda matrix: None)
    monkeypatch.setattr(collect, "FACTOR_BYTES", 2 * 8 * 40 * 40)
    assert len(list(collect.groups(matrices, names))) > 3
    for key, values in collect.gather(lm, matrices, names, DocumentBatches(TEXTS, 4), lambda matrix: None).items():
        torch.testing.assert_close(values["input_second_moment"], at_once[key]["input_second_moment"])


def test_sequential_statistics_see_the_matrices_edited_so_far(make_lm, plain_family: str) -> None:
    """The last stage's edit is the kernel's on the inputs that the edited model gives it; without `sequential`, on
    those of the model as it was.
    """
    for sequential in (True, False):
        lm, observed = make_lm(plain_family, dtype="float64"), make_lm(plain_family, dtype="float64")
        (matrix,) = lm.weights.layout.select(parse_recipe("identity:matrices=[down_proj],layers=[2]").steps[0])
        weight = lm.weights.read(matrix)
        specification = f"sfsd:keep.rank=4,sequential={str(sequential).lower()}"
        lm.apply(parse_recipe(specification), texts)
        # All but the last matrix edited: what the last one saw.
        source = lm if sequential else observed
        inputs = torch.tensor(inputs_of(source, matrix))
        expected = feature_space(
            weight,
            input_second_moment=inputs.T @ inputs / len(inputs),
            input_mean_with_sinks=inputs.mean(0),
            keep=Keep(rank=4),
            centred=True,
            bias=True,
        )
        torch.testing.assert_close(lm.weights.read(matrix), expected.weight(), rtol=1e-3, atol=1e-4)


def test_stages_are_runs_of_matrices_that_do_not_feed_each_other(make_lm) -> None:
    llama = make_lm("llama").weights.layout.select(parse_recipe("identity:layers=[0,1]").steps[0])
    roles = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert [[matrix.role for matrix in stage] for stage in stages(llama)] == roles * 2
    heads = make_lm("gpt2").weights.layout.select(
        parse_recipe("identity:layers=[0],per_head=true,matrices=[attn]").steps[0]
    )
    assert [len(stage) for stage in stages(heads)] == [12, 4]


@pytest.mark.parametrize("name", ["sfsd", "sfsd-released", "svd-llm", "swift"])
def test_the_recipes_run_and_undo(make_lm, plain_family: str, name: str) -> None:
    lm = make_lm(plain_family)
    digest = lm.weights.digest()
    applied = lm.apply(parse_recipe(name), texts)
    assert len(applied.records) == len(lm.weights.layout.matrices)
    assert {record.bias_shift for record in applied.records} == {name == "sfsd"}
    assert len(applied.calibration) == 1
    lm.undo()
    assert lm.weights.digest() == digest


def test_a_moment_that_is_not_finite_is_a_failure_with_its_place(make_lm, monkeypatch) -> None:
    lm = make_lm("llama")
    monkeypatch.setattr(statistics.InputSecondMoment, "result", lambda self: torch.full((24, 24), float("nan")))
    with pytest.raises(
        VariantFailed, match=r"input_second_moment of model.layers.0.self_attn.q_proj.weight .* NaN or an infinity"
    ):
        lm.apply(parse_recipe("svd-llm:matrices=[q_proj]"), texts)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_leading_singular_vectors_by_a_gram_matrix_span_the_same(shape: tuple[int, int], monkeypatch) -> None:
    """As a device that is fast in fp64 makes them, and where the last of them drown in rounding."""
    draw = torch.Generator().manual_seed(4)
    falling = torch.diag(0.7 ** torch.arange(30, dtype=torch.float64))
    bases = [torch.linalg.qr(torch.randn(n, 30, generator=draw, dtype=torch.float64)).Q for n in shape]
    matrix = bases[0] @ falling @ bases[1].T
    monkeypatch.setattr(module, "full_rate_fp64", lambda device: True)
    for count in (5, 12, 30):
        found = module._left_singular_vectors(matrix, count)
        torch.testing.assert_close(found.T @ found, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-7)
        assert float((found - bases[0][:, :count] @ (bases[0][:, :count].T @ found)).norm()) < 1e-6
