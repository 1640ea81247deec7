"""Decompositions: exact truncation through the Gram matrix and the random range finder against numpy in float64, and a
cache that may fail in any way without changing a bit.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.errors import RecipeError, UserError, VariantFailed
from harness_ext.linalg import cache as disk
from harness_ext.linalg import decompose, devices, gram, randomized
from harness_ext.linalg.cache import DiskCache, Entry, lasting
from harness_ext.linalg.decompose import GRAM_FP32, GRAM_FP64, SVD, Decomposer, NotConverged
from harness_ext.methods.budget import Keep
from harness_ext.methods.svd import EXACT_INSTEAD, truncate_svd
from harness_ext.methods.weighted_svd import scaled_truncation
from harness_ext.model import digests
from harness_ext.recipe.recipe import parse_recipe

LIMIT = 1e-5
# As shares of the norm, the roundoff of fp32 along the error, and what the rounding of many numbers adds at right
# angles to it: of two factors, and of their product too.
ROUNDOFF = 2.0**-24
OF_FACTORS, OF_PRODUCT = 2e-7, 1e-6


def fixed(rank: int) -> Callable[[torch.Tensor], int]:
    return lambda singular_values: rank


def with_spectrum(rows: int, columns: int, singular_values: numpy.ndarray, seed: int = 0) -> torch.Tensor:
    generator = numpy.random.default_rng(seed)
    count = min(rows, columns)
    left, right = (numpy.linalg.qr(generator.standard_normal((size, count))).Q for size in (rows, columns))
    return torch.tensor((left * singular_values[:count]) @ right.T, dtype=torch.float32)


def least_errors(weight: torch.Tensor) -> numpy.ndarray:
    """At every rank, by Eckart and Young."""
    s = numpy.linalg.svd(weight.double().numpy(), compute_uv=False)
    return numpy.sqrt(numpy.concatenate([numpy.cumsum(s[::-1] ** 2)[::-1], [0.0]]))


def distance(weight: torch.Tensor, edit) -> float:
    return float(numpy.linalg.norm(weight.double().numpy() - edit.weight().double().numpy()))


PLACES = numpy.arange(160)
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


def not_converged(*args: object, **kwargs: object) -> None:
    raise torch.linalg.LinAlgError("did not converge")


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


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


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


# The cache.


@pytest.fixture
def weight() -> torch.Tensor:
    return with_spectrum(40, 30, 1.0 / (1.0 + PLACES[:30]))


def both(kept: DiskCache | Path | None, weight: torch.Tensor) -> list[torch.Tensor]:
    factors = Decomposer(kept)
    found = [
        *factors.of(weight),
        factors.truncate(weight, fixed(3)).weight(),
        factors.truncate(weight, fixed(29)).weight(),
    ]
    factors.flush()
    return found


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(one, other, strict=True))


def test_kept_decompositions_are_read_back_bit_for_bit_and_not_made_again(
    weight: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = both(tmp_path, weight)
    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, lambda *args, **kwargs: pytest.fail("decomposed twice"))
    assert equal(cold, both(tmp_path, weight.clone()))
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


@pytest.mark.parametrize(
    "specification",
    ["svd:keep.rank=5", "svd:keep.rank=23", "identity", "laser-rmt", "svd:decomposition=randomised,keep.rank=1"],
)
def test_an_edit_is_the_same_with_and_without_the_cache(
    make_lm, specification: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(cache: Path) -> str:
        monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(cache))
        lm = make_lm("gpt2")
        lm.apply(parse_recipe(specification), no_documents)
        return lm.weights.digest()

    (tmp_path / "none").touch()
    assert digest(tmp_path / "a") == digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "none")


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "cut to nothing": lambda path: path.write_bytes(b""),
    "one bit": damage_middle,
    "not safetensors": lambda path: path.write_bytes(b"\xff" * 200),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(damage: str, weight: torch.Tensor, tmp_path: Path) -> None:
    cold = both(tmp_path, weight)
    for path in tmp_path.iterdir():
        DAMAGES[damage](path)
    assert equal(cold, both(tmp_path, weight))
    assert equal(cold, both(tmp_path, weight))


def test_the_file_of_another_matrix_is_not_taken(weight: torch.Tensor, tmp_path: Path) -> None:
    both(tmp_path, weight)
    names = {path.name.split("-", 1)[1]: path for path in tmp_path.iterdir()}
    other = weight.flip(0).contiguous()
    cold = both(None, other)
    both(tmp_path, other)
    for path in tmp_path.iterdir():
        source = names[path.name.split("-", 1)[1]]
        if path != source:
            path.write_bytes(source.read_bytes())
    assert equal(cold, both(tmp_path, other))


def test_a_fallback_is_kept_with_the_factors(
    weight: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.linalg.svd

    def fails_in_fp32(matrix: torch.Tensor, **options: bool):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return real(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", fails_in_fp32)
    for _ in range(2):
        factors = Decomposer(tmp_path)
        svd = factors.of(weight)
        assert svd.s.dtype == torch.float32 and list(factors.fallbacks.values()) == ["fp64"]
        torch.testing.assert_close((svd.u * svd.s) @ svd.vh, weight, atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(torch.linalg, "svd", not_converged)
    with pytest.raises(NotConverged, match="in fp64 neither"):
        Decomposer().of(weight)


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def save(cache: DiskCache, name: str, count: int, value: float = 0.0) -> None:
    cache.save(name, {"a": torch.full((count,), float(value))})
    disk.flush()


def test_the_folder_stays_within_its_bound_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {path.stem for path in tmp_path.iterdir()}

    earlier, cache = DiskCache(tmp_path, 13_500), DiskCache(tmp_path, 13_500)
    for number in range(3):
        save(earlier, str(number), 1000, number)
        os.utime(tmp_path / f"{number}.safetensors", (1000 + number, 1000 + number))
    assert cache.load("0", {"a": (1000,)}, torch.device("cpu")).tensors["a"][0] == 0
    save(cache, "3", 1000)
    assert names() == {"0", "2", "3"} and sizes(tmp_path) <= 13_500
    save(cache, "large", 4000)
    assert names() == {"0", "2", "3"}
    assert cache.load("0", {"a": (999,)}, torch.device("cpu")) is None


def test_what_a_session_used_makes_no_room_and_what_finds_none_is_not_serialised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is larger than the folder, gone through twice: what was kept the first time is found the second."""
    copies, real = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda value: copies.append(value.numel()) or real(value))
    for session in range(2):
        cache, found = DiskCache(tmp_path, 13_500), []
        for number in range(6):
            if cache.load(str(number), {"a": (1000,)}, torch.device("cpu")) is not None:
                found.append(number)
            else:
                save(cache, str(number), 1000, number)
        assert found == ([0, 1, 2] if session else [])
        assert {path.stem for path in tmp_path.iterdir()} == {"0", "1", "2"}
        assert copies.count(1000) == (9 if session else 6), "hashed and written if kept, checked if found, else neither"


def test_what_waits_to_be_written_is_found_and_what_was_changed_meanwhile_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go_on, real = threading.Event(), threading.Event(), disk._digest

    def slow(tensors):
        held.set()
        assert go_on.wait(20)
        return real(tensors)

    monkeypatch.setattr(disk, "_digest", slow)
    cache, other = DiskCache(tmp_path), DiskCache(tmp_path)
    one, two = torch.ones(10), torch.ones(10)
    cache.save("one", {"a": one}, "a note")
    cache.save("two", {"a": two})
    assert held.wait(20) and not list(tmp_path.glob("*.safetensors"))
    for reader in (cache, other):
        entry = reader.load("one", {"a": (10,)}, torch.device("cpu"))
        assert torch.equal(entry.tensors["a"], one) and entry.note == "a note"
        assert reader.load("one", {"a": (11,)}, torch.device("cpu")) is None
    two += 1
    assert cache.load("two", {"a": (10,)}, torch.device("cpu")) is None
    go_on.set()
    disk.flush()
    assert [path.stem for path in tmp_path.iterdir()] == ["one"]
    assert DiskCache(tmp_path).load("one", {"a": (10,)}, torch.device("cpu")).note == "a note"


def test_a_process_that_ends_writes_what_waits_and_one_that_is_killed_leaves_a_sound_folder(
    tmp_path: Path, repository: Path
) -> None:
    code = (
        "import os, signal, sys, torch; from pathlib import Path; from harness_ext.linalg.cache import DiskCache\n"
        "cache = DiskCache(Path(sys.argv[1]))\n"
        "for number in range(3): cache.save(str(number), {'a': torch.full((100_000,), float(number))})\n"
        "if sys.argv[2] == 'kill': os.kill(os.getpid(), signal.SIGKILL)"
    )
    for how in ("kill", "end"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), how], cwd=repository, timeout=120, check=False
        )
        assert done.returncode == (-signal.SIGKILL if how == "kill" else 0)
        for number in range(3):
            found = DiskCache(tmp_path).load(str(number), {"a": (100_000,)}, torch.device("cpu"))
            assert (found is None and how == "kill") or bool((found.tensors["a"] == number).all())


def test_what_cannot_be_removed_stays_and_the_rest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier, cache = DiskCache(tmp_path, limit_bytes=3000), DiskCache(tmp_path, limit_bytes=3000)
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("foreign", "old"):
        save(earlier, name, 300)
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("foreign"):
            raise PermissionError(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    save(cache, "new", 300)
    assert {path.name for path in tmp_path.iterdir()} == {
        "folder.safetensors",
        "foreign.safetensors",
        "new.safetensors",
    }


def test_the_bound_is_also_a_share_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=10_000))
    cache = DiskCache(tmp_path)
    save(cache, "small", 500)
    save(cache, "large", 2000)
    assert [path.stem for path in tmp_path.iterdir()] == ["small"]


def test_what_a_killed_process_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    for name, age in ((".old.writing", 2 * 3600), (".new.writing", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    save(DiskCache(tmp_path), "a", 3)
    assert {path.name for path in tmp_path.iterdir()} == {".new.writing", "a.safetensors"}


def test_a_full_disk_costs_time_only(weight: torch.Tensor, tmp_path: Path) -> None:
    cold = both(None, weight)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        assert equal(cold, both(tmp_path, weight))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_goes_away_is_made_again(weight: torch.Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "factors"
    factors = Decomposer(folder)
    factors.of(weight)
    for _ in range(2):
        factors.flush()
        for path in folder.iterdir() if folder.exists() else ():
            path.unlink()
        if folder.exists():
            folder.rmdir()
        factors.of(weight)
    factors.of(weight + 1)
    factors.flush()
    assert list(folder.iterdir())


WRITER = """
import sys, torch
from pathlib import Path
from harness_ext.linalg.cache import DiskCache
from harness_ext.linalg.decompose import Decomposer
torch.set_num_threads(1)
weight = torch.randn(60, 60, generator=torch.Generator().manual_seed(5))
for number in range(40):
    factors = Decomposer(DiskCache(Path(sys.argv[1]), 150_000))
    for shift in range(4):
        assert torch.isfinite(factors.of(weight + shift).s).all()
        factors.truncate(weight + shift, lambda singular_values: 7)
print(float(factors.of(weight).s.double().sum()))
"""


@pytest.mark.slow
def test_processes_that_share_a_small_folder_do_not_disturb_each_other(tmp_path: Path, repository: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=repository,
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert len({out for out, _ in results}) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".writing")]


def test_the_users_cache_is_taken_unless_it_is_off_or_cannot_be_written(
    weight: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place_of_files() -> str:
        factors = Decomposer(lasting(tmp_path / "scratch"))
        factors.of(weight)
        factors.flush()
        (path,) = tmp_path.rglob("*.safetensors")
        path.unlink()
        return str(path.parent.relative_to(tmp_path))

    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "cache"))
    assert place_of_files() == "cache/factors"
    monkeypatch.setenv(disk.LIMIT_VARIABLE, "0")
    assert place_of_files() == "scratch/factors"
    monkeypatch.setenv(disk.LIMIT_VARIABLE, "0.5")
    assert place_of_files() == "cache/factors"
    (tmp_path / "file").touch()
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "file"))
    assert place_of_files() == "scratch/factors"
    for wrong in ("much", "nan", "inf"):
        monkeypatch.setenv(disk.LIMIT_VARIABLE, wrong)
        with pytest.raises(UserError, match="must be a number of GiB"):
            lasting(tmp_path)


def test_the_scratch_folder_goes_with_its_model_whatever_is_still_being_written(
    make_lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").touch()
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "none"))
    real = disk._digest
    monkeypatch.setattr(disk, "_digest", lambda tensors: time.sleep(0.05) or real(tensors))
    lm = make_lm("llama")
    scratch = lm.weights._scratch
    lm.apply(parse_recipe("svd:matrices=[up_proj],keep.rank=3"), no_documents)
    assert disk._writing and (scratch / "factors").exists()
    del lm
    gc.collect()
    assert not disk._writing and not scratch.exists()


def test_another_number_of_threads_is_another_name() -> None:
    names = {disk._computed_by("cpu", threads) for threads in (1, 2)}
    assert len(names) == 2
