"""Methods against references written from the formulas in float64 numpy, and the laws they must obey."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods import Svd, method, registered_methods
from harness_ext.methods.budget import Keep
from harness_ext.methods.eigenprune import ablation_prune, eigenprune
from harness_ext.methods.random_edits import random_subspace
from harness_ext.methods.svd import identity, truncate_svd

MATRICES = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**31))


def random_matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    """A matrix with a falling spectrum, as trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    return matrix * torch.linspace(2, 0.1, columns)


def decompose(weight: torch.Tensor) -> Svd:
    return Svd(*torch.linalg.svd(weight, full_matrices=False))


def numpy_truncation(weight: torch.Tensor, rank: int) -> numpy.ndarray:
    u, s, vh = numpy.linalg.svd(weight.double().numpy(), full_matrices=False)
    return sum((s[i] * numpy.outer(u[:, i], vh[i]) for i in range(rank)), numpy.zeros(weight.shape))


@given(MATRICES, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_truncation_equals_numpys_in_float64(matrix: tuple[int, int, int], share: float) -> None:
    weight = random_matrix(*matrix)
    rank = round(share * min(weight.shape))
    edit = truncate_svd(weight, truncate=Decomposer().truncate, keep=Keep(rank=rank), generator=torch.Generator())
    assert edit.rank == rank and edit.bias_shift is None
    expected = numpy_truncation(weight, rank)
    assert numpy.linalg.norm(edit.weight().double().numpy() - expected) <= 2e-5 * max(float(weight.norm()), 1e-6)


@given(MATRICES)
@settings(max_examples=40, deadline=None)
def test_eckart_young_error_is_the_dropped_energy_and_falls_with_rank(matrix: tuple[int, int, int]) -> None:
    weight = random_matrix(*matrix).double()
    svd = decompose(weight)
    cut = Decomposer().truncation(weight).cut
    errors = [
        float((weight - cut(Keep(rank=rank).rank_rule(tuple(weight.shape))).weight()).norm())
        for rank in range(min(weight.shape) + 1)
    ]
    expected = [float((svd.s[rank:] ** 2).sum().sqrt()) for rank in range(min(weight.shape) + 1)]
    assert errors == pytest.approx(expected, abs=1e-9)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(errors))


@given(MATRICES)
@settings(max_examples=40, deadline=None)
def test_identity_gives_the_matrix_back(matrix: tuple[int, int, int]) -> None:
    weight = random_matrix(*matrix)
    edit = identity(weight, svd=decompose(weight))
    assert edit.rank == min(weight.shape)
    assert float((edit.weight() - weight).norm()) <= 1e-5 * max(float(weight.norm()), 1e-6)


@given(MATRICES, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_random_subspace_is_an_orthogonal_projection_of_the_asked_rank(
    matrix: tuple[int, int, int], share: float
) -> None:
    weight = random_matrix(*matrix).double()
    rank = round(share * min(weight.shape))

    def project(of: torch.Tensor) -> torch.Tensor:
        return random_subspace(of, keep=Keep(rank=rank), generator=torch.Generator().manual_seed(3)).weight()

    once = project(weight)
    assert torch.linalg.matrix_rank(once) <= rank
    torch.testing.assert_close(project(once), once, atol=1e-10, rtol=1e-9)
    # Pythagoras: what is kept and what is gone are orthogonal.
    assert float(once.norm() ** 2 + (weight - once).norm() ** 2) == pytest.approx(float(weight.norm() ** 2), abs=1e-9)
    assert torch.equal(project(weight), once)


@pytest.mark.parametrize(
    ("prune", "effects_name"), [(eigenprune, "counterfactual_effects"), (ablation_prune, "ablation_effects")]
)
@given(matrix=MATRICES, fraction=st.floats(0.01, 0.99))
@settings(max_examples=40, deadline=None)
def test_pruning_drops_the_lowest_effects_and_keeps_the_mean_output(
    prune, effects_name: str, matrix: tuple[int, int, int], fraction: float
) -> None:
    rows, columns, seed = matrix
    weight = random_matrix(rows, columns, seed).double()
    generator = numpy.random.default_rng(seed)
    size = min(rows, columns)
    effects = generator.standard_normal(size)
    mean = generator.standard_normal(columns)
    edit = prune(
        weight,
        svd=decompose(weight),
        input_mean=torch.tensor(mean),
        fraction=fraction,
        **{effects_name: torch.tensor(effects)},
    )

    dropped = sorted(range(size), key=lambda i: effects[i])[: int(numpy.floor(fraction * size + 1e-9))]
    u, s, vh = numpy.linalg.svd(weight.numpy(), full_matrices=False)
    removed = sum((s[i] * numpy.outer(u[:, i], vh[i]) for i in dropped), numpy.zeros((rows, columns)))
    assert edit.rank == size - len(dropped)
    numpy.testing.assert_allclose(edit.weight().numpy(), weight.numpy() - removed, atol=1e-9)
    numpy.testing.assert_allclose(edit.bias_shift.numpy(), removed @ mean, atol=1e-9)
    numpy.testing.assert_allclose(
        edit.weight().numpy() @ mean + edit.bias_shift.numpy(), weight.numpy() @ mean, atol=1e-9
    )


def test_eigenprune_breaks_ties_from_the_smaller_singular_value() -> None:
    weight = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    edit = eigenprune(
        weight, svd=decompose(weight), counterfactual_effects=torch.zeros(4), input_mean=torch.zeros(4), fraction=0.5
    )
    torch.testing.assert_close(edit.weight(), torch.diag(torch.tensor([4.0, 3.0, 0.0, 0.0])))


def test_every_method_says_what_it_does_and_is_importable_without_its_arguments() -> None:
    for name, registered in registered_methods().items():
        assert registered.summary.endswith("."), name
        assert registered.function.__doc__, name


def test_a_method_with_a_positional_argument_too_many_is_refused() -> None:
    with pytest.raises(TypeError, match="must be keyword-only"):

        @method(summary="Wrong.")
        def wrong(weight, rank: int): ...


def test_a_parameter_without_annotation_is_refused() -> None:
    with pytest.raises(TypeError, match="has no type annotation"):

        @method(summary="Wrong.")
        def wrong(weight, /, *, strength): ...
