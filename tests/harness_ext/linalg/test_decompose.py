"""Decompositions: exact truncation through the Gram matrix and the random range finder against numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.errors import RecipeError, UserError, VariantFailed
from harness_ext.linalg import cache as disk
from harness_ext.linalg import decompose, devices, gram, randomized
from harness_ext.linalg.cache import Entry
from harness_ext.linalg.decompose import GRAM_FP32, GRAM_FP64, SVD, Decomposer
from harness_ext.methods.budget import Keep
from harness_ext.methods.svd import EXACT_INSTEAD, truncate_svd
from harness_ext.methods.weighted_svd import scaled_truncation
from harness_ext.model import digests
from harness_ext.recipe.recipe import parse_recipe
from tests.harness_ext.linalg.matrices import PLACES, fixed, no_documents, not_converged, with_spectrum

LIMIT = 1e-5
# As shares of the norm, the roundoff of fp32 along the error, and what the rounding of many numbers adds at right
# angles to it: of two factors, and of their product too.
ROUNDOFF = 2.0**-24
OF_FACTORS, OF_PRODUCT = 2e-7, 1e-6


def least_errors(weight: torch.Tensor) -> numpy.ndarray:
    """At every rank, by Eckart and Young."""
    s = numpy.linalg.svd(weight.double().numpy(), compute_uv=False)
    return numpy.sqrt(numpy.concatenate([numpy.cumsum(s[::-1] ** 2)[::-1], [0.0]]))


def distance(weight: torch.Tensor, edit) -> float:
    return float(numpy.linalg.norm(weight.double().numpy() - edit.weight().double().numpy()))


STRUCTURED = {
    "falling slowly": (1.0 + PLACES) ** -0.5,
    "falling": 1.0 / (1.0 + PLACES),
    "geometric, to 1e-8": 10 ** (-8 * PLACES / 159),
    "deficient": (PLACES < 60) * (2.0 - PLACES / 100),
    "repeated": numpy.where(PLACES < 80, 2.0, 1.0),
    "all equal": numpy.ones(160),
    "outliers": numpy.where(PLACES < 4, 80.0, 1.5 - PLACES / 160),
    "one component": (PLACES == 0) * 3.0,
    "zero": numpy.zeros(160),
}


def allowed(least: float, norm: float, across: float) -> float:
    return float(numpy.hypot(least * (1 + LIMIT), across * norm)) + ROUNDOFF * norm


def assert_exact(weight: torch.Tensor, ranks: range | list[int]) -> set[str]:
    """Every truncation is within the limit of the best, and so is what it says of itself; gives the decompositions that
    were used.
    """
    truncation, least, norm = Decomposer().truncation(weight), least_errors(weight), float(weight.double().norm())
    used = set()
    for rank in ranks:
        edit = truncation.cut(fixed(rank))
        unrounded = numpy.linalg.norm(weight.double().numpy() - (edit.left.double() @ edit.right.double()).numpy())
        assert edit.rank == rank and edit.left.dtype == edit.right.dtype == weight.dtype
        if edit.decomposition != SVD:
            assert edit.excess_error <= LIMIT
            assert unrounded <= allowed(least[rank], norm, OF_FACTORS)
            assert distance(weight, edit) <= allowed(least[rank], norm, OF_PRODUCT)
        used.add(edit.decomposition)
    return used


@pytest.mark.parametrize("shape", [(160, 160), (160, 230), (230, 160)])
@pytest.mark.parametrize("name", STRUCTURED)
def test_truncation_is_exact_at_every_rank_whatever_the_spectrum(name: str, shape: tuple[int, int]) -> None:
    used = assert_exact(with_spectrum(*shape, STRUCTURED[name]), range(0, 161, 4))
    assert used <= {GRAM_FP32, GRAM_FP64}
    if name == "falling":
        assert used == {GRAM_FP32, GRAM_FP64}


@pytest.mark.parametrize("size", [1e-30, 1e6, 1e30])
def test_one_huge_value_and_scales_at_the_ends_of_fp32_do_no_harm(size: float) -> None:
    noise = torch.randn(60, 90, generator=torch.Generator().manual_seed(2))
    with_one = noise.clone()
    with_one[7, 11] = size
    assert_exact(noise * size, range(61))
    assert_exact(with_one, range(61))


@given(st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31)), st.floats(-9, 0))
@settings(max_examples=60, deadline=None)
def test_truncation_is_exact_for_random_matrices(matrix: tuple[int, int, int], decay: float) -> None:
    rows, columns, seed = matrix
    scale = numpy.logspace(0, decay, columns)
    assert_exact(
        torch.tensor(numpy.random.default_rng(seed).standard_normal((rows, columns)) * scale, dtype=torch.float32),
        range(min(rows, columns) + 1),
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STRUCTURED)
def test_what_passes_the_bound_is_as_near_as_it_says(name: str, precision: torch.dtype) -> None:
    """The components themselves, multiplied in float64, so that nothing but the bound lets an inexact one through."""
    weight = with_spectrum(160, 200, STRUCTURED[name], seed=4)
    found, least = gram.decompose(weight, precision), least_errors(weight)
    rest, norm = weight.double().numpy(), float(weight.double().norm())
    for rank in range(161):
        if rank:
            rest = rest - numpy.outer(
                found.directions[rank - 1].double().numpy(), found.projections[rank - 1].double().numpy()
            )
        if found.suffices(rank):
            assert numpy.linalg.norm(rest) <= allowed(least[rank], norm, OF_FACTORS)
    s = numpy.linalg.svd(weight.double().numpy(), compute_uv=False)
    numpy.testing.assert_allclose(
        found.singular_values.numpy(), s, atol=(1e-3 if precision == torch.float32 else 1e-6) * s[0]
    )


@pytest.mark.slow
def test_a_large_matrix_is_cut_as_by_numpy() -> None:
    """Beyond 1,024 rows eigenvectors come from scipy; a Gram matrix whose rows are no multiple of a block."""
    weight = torch.randn(1100, 1300, generator=torch.Generator().manual_seed(0))
    truncation = Decomposer().truncation(weight)
    edit = truncation.cut(lambda singular_values: 400)
    singular_values = numpy.linalg.svd(weight.double().numpy(), compute_uv=False)
    least = (singular_values[400:] ** 2).sum() ** 0.5
    assert (weight.double() - edit.weight().double()).norm().item() <= least * (1 + 1e-5)
    assert edit.decomposition == "gram_fp32" and edit.excess_error < 1e-5


def test_the_spectrum_of_energies_gives_the_rank_that_numpy_gives() -> None:
    weight = with_spectrum(160, 230, STRUCTURED["falling slowly"])
    squared = numpy.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2
    for share in (0.3, 0.61, 0.9, 0.99):
        edit = Decomposer().truncate(weight, Keep(energy=share).rank_rule((160, 230)))
        assert edit.rank == int(numpy.argmax(squared.cumsum() >= share * squared.sum())) + 1


def test_every_rank_is_a_slice_of_one_decomposition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weight, calls, eigh = with_spectrum(160, 160, STRUCTURED["falling slowly"]), [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(1) or eigh(matrix))
    for rank in (1, 20, 80):
        Decomposer(tmp_path).truncate(weight, fixed(rank))
    assert len(calls) == 1


def test_where_the_gram_matrix_does_not_do_the_full_decomposition_is_taken_and_recorded(
    make_lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.linalg, "eigh", not_converged)
    lm = make_lm("llama")
    (record,) = lm.apply(parse_recipe("svd:matrices=[up_proj],layers=[0],keep.rank=3"), no_documents).records
    assert (record.decomposition, record.excess_error, record.fallback) == (SVD, None, None)
    lm.undo()
    monkeypatch.setattr(torch.linalg, "svd", not_converged)
    with pytest.raises(VariantFailed, match="does not converge") as caught:
        lm.apply(parse_recipe("svd:matrices=[up_proj],layers=[1],keep.rank=3"), no_documents)
    assert caught.value.kind == "not_converged"


def test_the_receipt_says_where_the_factors_are_from(make_lm) -> None:
    lm = make_lm("llama")
    for specification, decomposition in (
        ("svd:keep.rank=3", GRAM_FP32),
        ("identity", SVD),
        ("magnitude", None),
        ("random-subspace", None),
    ):
        records = lm.apply(parse_recipe(specification), no_documents).records
        assert {record.decomposition for record in records} == {decomposition}
        assert all(
            (record.excess_error is not None and 0 <= record.excess_error <= LIMIT) == (decomposition == GRAM_FP32)
            for record in records
        )
        lm.undo()


# The random range finder.


@pytest.mark.parametrize("name", ["flat", "falling slowly", "falling", "exponential", "step", "all equal"])
@pytest.mark.parametrize("shape", [(600, 600), (500, 900), (900, 500)])
def test_the_range_finder_is_within_a_hundredth_of_the_best_and_estimates_that(
    name: str, shape: tuple[int, int]
) -> None:
    places = numpy.arange(min(shape))
    spectra = {
        "falling slowly": (1.0 + places) ** -0.25,
        "falling": 1.0 / (1.0 + places),
        "exponential": numpy.exp(-places / 30),
        "step": numpy.where(places < 8, 1.0, 0.9),
        "all equal": numpy.ones(len(places)),
    }
    weight = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1))
        if name == "flat"
        else with_spectrum(*shape, spectra[name])
    )
    rank = min(shape) // 100
    edit = randomized.truncate(weight, rank, torch.Generator().manual_seed(0))
    excess = distance(weight, edit) / least_errors(weight)[rank] - 1
    assert edit.rank == rank and edit.decomposition == "randomised"
    assert -1e-6 <= excess <= 0.01 and excess <= edit.excess_error + 2e-3
    assert edit.excess_error <= 0.0025


def test_a_seed_means_the_same_and_another_seed_something_else() -> None:
    weight = torch.randn(500, 400, generator=torch.Generator().manual_seed(1))
    one, same, other = (
        randomized.truncate(weight, 4, torch.Generator().manual_seed(seed)).weight() for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_recipe_asks_for_it_and_where_it_is_not_worth_while_gets_the_exact_one() -> None:
    weight = torch.randn(300, 400, generator=torch.Generator().manual_seed(1))

    def edit(keep: Keep):
        return truncate_svd(
            weight,
            truncate=Decomposer().truncate,
            keep=keep,
            generator=torch.Generator().manual_seed(0),
            decomposition="randomised",
        )

    assert (edit(Keep(rank=3)).decomposition, edit(Keep(rank=3)).fallback) == ("randomised", None)
    assert (edit(Keep(rank=200)).decomposition, edit(Keep(rank=200)).fallback) == (GRAM_FP32, EXACT_INSTEAD)
    with pytest.raises(UserError, match=r"keep.energy needs singular values"):
        edit(Keep(energy=0.5))
    with pytest.raises(RecipeError, match="decomposition"):
        parse_recipe("svd:decomposition=fast")
    assert parse_recipe("svd").recipe_id != parse_recipe("svd:decomposition=randomised").recipe_id


# The full decomposition through the Gram matrix, and the order of attempts.


@pytest.mark.parametrize("shape", [(160, 160), (160, 400), (400, 160)])
@pytest.mark.parametrize("name", [*STRUCTURED, "flat"])
def test_both_sides_from_eigenvectors_are_as_good_as_lapacks(name: str, shape: tuple[int, int]) -> None:
    """Reconstruction, orthonormality of either side and singular values, against numpy in float64; where W has fewer
    directions than its sides are long, it says that it cannot.
    """
    weight = (
        torch.randn(shape, generator=torch.Generator().manual_seed(3))
        if name == "flat"
        else with_spectrum(*shape, STRUCTURED[name], seed=1)
    )
    found = gram.full(weight)
    s = numpy.linalg.svd(weight.double().numpy(), compute_uv=False)
    if found is None:
        assert s[-1] <= 1e-6 * numpy.linalg.norm(s)
        return
    u, sizes, vh = (part.double().numpy() for part in found)
    norm, unit = numpy.linalg.norm(s), numpy.eye(160)
    assert all(part.is_contiguous() and part.dtype == torch.float32 for part in found)
    assert (u.shape, sizes.shape, vh.shape) == ((shape[0], 160), (160,), (160, shape[1]))
    assert (numpy.diff(sizes) <= 0).all() and numpy.abs(sizes - s).max() <= 1e-6 * s[0]
    assert numpy.linalg.norm((u * sizes) @ vh - weight.double().numpy()) <= 1e-6 * norm
    assert numpy.abs(u.T @ u - unit).max() <= 1e-6 and numpy.abs(vh @ vh.T - unit).max() <= 1e-6
    # What needs both sides of each component: derivatives of a loss in the singular values.
    slope = numpy.random.default_rng(5).standard_normal(shape)
    left, _, right = numpy.linalg.svd(weight.double().numpy(), full_matrices=False)
    apart = numpy.diff(s, append=0.0).__abs__() > 1e-2 * s[0]
    apart[1:] &= apart[:-1].copy()
    ours, theirs = (numpy.einsum("ik,ij,kj->k", a, slope, b) for a, b in ((u, vh), (left, right)))
    assert numpy.abs(ours - theirs)[apart].max(initial=0.0) <= 1e-5 * numpy.abs(theirs).max()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_both_sides_at_the_ends_of_fp32(scale: float) -> None:
    weight = torch.randn(40, 60, generator=torch.Generator().manual_seed(3)) * scale
    u, s, vh = gram.full(weight)
    assert float((((u * s) @ vh - weight) / scale).abs().max()) < 1e-5


def test_where_that_is_the_way_what_it_cannot_reach_is_decomposed_by_lapack(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, real, calls = torch.randn(26, 70, generator=torch.Generator().manual_seed(1)), torch.linalg.svd, []
    monkeypatch.setattr(decompose, "full_by_gram", lambda matrix: True)
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **options: calls.append(1) or real(*args, **options))
    u, s, vh = Decomposer().of(weight)
    assert not calls and float(((u * s) @ vh - weight).norm() / weight.norm()) < 1e-6
    weight[7] = weight[8]
    u, s, vh = Decomposer().of(weight)
    assert calls and float((vh @ vh.T - torch.eye(26)).abs().max()) < 1e-5


class Placed:
    """As much of a matrix as the order goes by."""

    def __init__(self, device: str, dtype: torch.dtype, shape: tuple[int, int] = (4096, 4096)) -> None:
        self.device, self.dtype, self.shape = torch.device(device), dtype, shape


@pytest.mark.parametrize(
    ("capability", "at_once"),
    [((8, 0), True), ((9, 0), True), ((10, 0), True), ((8, 6), False), ((8, 9), False), ((12, 0), False)],
)
def test_fp64_comes_at_once_where_it_costs_what_fp32_costs(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], at_once: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.gram_attempts(Placed("cuda", torch.float32)) == ((GRAM_FP64,) if at_once else (GRAM_FP32, GRAM_FP64))
    assert devices.full_by_gram(Placed("cuda", torch.float32)) is at_once
    for device in ("cpu", "cuda"):
        assert devices.gram_attempts(Placed(device, torch.float64)) == (GRAM_FP64,)
        assert not devices.full_by_gram(Placed(device, torch.float64, (300, 3000)))
    assert devices.gram_attempts(Placed("cpu", torch.float32)) == (GRAM_FP32, GRAM_FP64)
    assert not devices.full_by_gram(Placed("cpu", torch.float32, (300, 3000)))


def test_the_order_is_the_devices_whatever_the_cache_holds(
    weight: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = Decomposer(tmp_path).truncate(weight, fixed(3))
    monkeypatch.setattr(decompose, "gram_attempts", lambda matrix: (GRAM_FP64,))
    elsewhere = Decomposer(tmp_path).truncate(weight, fixed(3))
    assert (on_cpu.decomposition, elsewhere.decomposition) == (GRAM_FP32, GRAM_FP64)
    assert torch.equal(elsewhere.weight(), Decomposer().truncate(weight, fixed(3)).weight())


def test_a_matrix_made_from_a_weight_is_decomposed_once_for_all_ranks_and_never_hashed(
    make_lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ASVD at three budgets in one session, without the user's cache: each scaled matrix has one decomposition."""
    (tmp_path / "none").touch()
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "none"))
    lm, made, real = make_lm("llama"), [], gram.decompose
    (matrix,) = lm.weights.layout.select(parse_recipe("svd:matrices=[up_proj],layers=[0]").steps[0])
    scales = [torch.linspace(1, 2, 24).double(), torch.linspace(1, 3, 24).double()]
    monkeypatch.setattr(gram, "decompose", lambda matrix, precision: made.append(1) or real(matrix, precision))
    hashed, digest = [], digests._digest_on_cpu
    monkeypatch.setattr(digests, "_digest_on_cpu", lambda value: hashed.append(value.numel()) or digest(value))
    monkeypatch.setattr(disk, "_digest", lambda tensors: "unchecked")
    for scale in scales:
        for rank in (3, 5, 9):
            weight = lm.weights.read(matrix)
            scaled_truncation(weight, scale, lm.editable.decomposer.truncate, Keep(rank=rank))
    assert len(made) == 2 and sorted(hashed) == [24] * 6 + [24 * 40]


def test_without_a_name_a_tensor_is_hashed_on_the_cpu_only(weight: torch.Tensor) -> None:
    assert decompose.matrix_name(weight) == digests.tensor_digest(weight)
    assert decompose.matrix_name(weight.to("meta")) is None
    named = digests.named(weight.to("meta"), "a weight")
    assert decompose.matrix_name(named) == "a weight"
    scale = torch.ones(3)
    other = decompose.MadeFrom(named, "columns scaled", (scale,))
    assert decompose.matrix_name(weight.to("meta") * 2, other).startswith("a weight columns scaled ")
    assert decompose.matrix_name(named, other._replace(others=(2 * scale,))) != decompose.matrix_name(named, other)


def test_on_a_gpu_the_latest_decompositions_stay_as_far_as_there_is_room(
    weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8400, 10**9))
    factors = Decomposer()
    for number in range(3):
        factors._hold(str(number), Entry({"a": torch.zeros(100)}, None), weight)
    assert list(factors._on_device) == ["0", "1", "2"]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5000, 10**9))
    factors._hold("3", Entry({"a": torch.zeros(100)}, None), weight)
    assert list(factors._on_device) == ["2", "3"]
    factors._hold("large", Entry({"a": torch.zeros(10_000)}, None), weight)
    assert "large" not in factors._on_device
