"""Two truncations in two metrics, against float64 numpy by Cholesky, and their laws."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.errors import RecipeError
from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods.budget import Keep
from harness_ext.methods.feature_space import feature_space
from harness_ext.methods.nested_decomposition import nested_decomposition
from harness_ext.recipe.recipe import parse_recipe
from tests.harness_ext.search.plain_search import documents_for, drawing

CASES = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**31), st.floats(0.05, 1))
TRUNCATE = Decomposer().truncate


class Case:
    """A matrix `[m, n]` and inputs of 40 tokens."""

    def __init__(self, rows: int, columns: int, seed: int, share: float = 0.5) -> None:
        generator = numpy.random.default_rng(seed)
        self.weight = generator.standard_normal((rows, columns))
        self.inputs = generator.standard_normal((columns, columns)) @ generator.standard_normal((columns, 40))
        self.moment = self.inputs @ self.inputs.T / 40
        self.rank = max(1, round(share * min(rows, columns)))

    def edit(self, main_fraction: float = 0.7, rank: int | None = None, dtype: torch.dtype = torch.float64):
        return nested_decomposition(
            torch.tensor(self.weight, dtype=dtype),
            input_second_moment=torch.tensor(self.moment),
            truncate=TRUNCATE,
            keep=Keep(rank=self.rank if rank is None else rank),
            main_fraction=main_fraction,
        )

    def reference(self, main: int, rest: int) -> numpy.ndarray:
        """`[W S]_k1 S^-1` with S a Cholesky factor of the moment, and plain SVD of what it leaves."""
        root = numpy.linalg.cholesky(self.moment)
        first = cut(self.weight @ root, main) @ numpy.linalg.inv(root)
        return first + cut(self.weight - first, rest)


def cut(matrix: numpy.ndarray, rank: int) -> numpy.ndarray:
    u, s, vh = numpy.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


@given(CASES, st.floats(0.05, 1))
@settings(deadline=None, max_examples=80)
def test_it_is_the_published_sum(case: tuple[int, int, int, float], share: float) -> None:
    one = Case(*case)
    main = max(1, int(share * one.rank + 1e-9))
    found = one.edit(share)
    assert found.rank == one.rank
    wanted = one.reference(main, one.rank - main)
    numpy.testing.assert_allclose(found.weight().numpy(), wanted, atol=1e-6 * abs(one.weight).max())


@given(CASES)
@settings(deadline=None, max_examples=40)
def test_at_full_rank_nothing_changes(case: tuple[int, int, int, float]) -> None:
    one = Case(*case)
    whole = one.edit(rank=min(one.weight.shape)).weight().numpy()
    numpy.testing.assert_allclose(whole, one.weight, atol=1e-8 * abs(one.weight).max())


@given(CASES)
@settings(deadline=None, max_examples=40)
def test_it_lies_between_the_two_truncations(case: tuple[int, int, int, float]) -> None:
    """No better on the texts than truncation by outputs, and no nearer to the weights than plain truncation; and the
    second part brings it no farther from the weights than the first part alone.
    """
    one = Case(*case)
    found, by_outputs = one.edit().weight().numpy(), one.reference(one.rank, 0)
    plain, first = cut(one.weight, one.rank), one.reference(max(1, int(0.7 * one.rank + 1e-9)), 0)
    on_texts = [numpy.linalg.norm((one.weight - each) @ one.inputs) for each in (by_outputs, found)]
    in_weights = [numpy.linalg.norm(one.weight - each) for each in (plain, found, first)]
    assert on_texts[0] <= on_texts[1] + 1e-6 * numpy.linalg.norm(one.weight @ one.inputs)
    assert in_weights == sorted(in_weights) or numpy.allclose(in_weights, sorted(in_weights), atol=1e-6)


def test_all_of_the_rank_by_outputs_is_svd_llm() -> None:
    one = Case(9, 7, 3)
    alone = feature_space(
        torch.tensor(one.weight),
        input_second_moment=torch.tensor(one.moment),
        input_mean_with_sinks=torch.zeros(7),
        keep=Keep(rank=one.rank),
        centred=False,
        bias=False,
    )
    torch.testing.assert_close(one.edit(1.0).weight(), alone.weight())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_takes_weights_of_any_precision(dtype: torch.dtype) -> None:
    one = Case(8, 12, 5)
    found = one.edit(dtype=dtype)
    assert found.left.dtype == found.right.dtype == dtype
    wanted = one.reference(2, 2)
    off = numpy.linalg.norm(found.weight().double().numpy() - wanted)
    assert off <= 20 * torch.finfo(dtype).eps * numpy.linalg.norm(one.weight)


def test_a_rank_of_zero_is_nothing_and_of_one_goes_by_outputs() -> None:
    one = Case(6, 5, 2)
    assert not one.edit(rank=0).weight().any()
    numpy.testing.assert_allclose(one.edit(rank=1).weight().numpy(), one.reference(1, 0), atol=1e-8)


@pytest.mark.parametrize("share", ["0", "1.1", "-1", "all"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(RecipeError, match="main_fraction"):
        parse_recipe(f"nsvd:main_fraction={share}")


def test_the_recipe_applies_and_keeps_its_budget(make_lm) -> None:

    lm = make_lm("llama")
    applied = lm.apply(parse_recipe("nsvd:keep.param_fraction=0.5"), drawing(documents_for(lm)))
    assert applied.records
    assert all(record.parameters_after <= 0.5 * record.parameters_before for record in applied.records)
