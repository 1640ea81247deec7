"""Budgets: the rank that each measure means."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_ext.errors import UserError
from harness_ext.methods.budget import Keep

SIZES = st.integers(1, 400)


@pytest.mark.parametrize(
    ("keep", "shape", "rank"),
    [
        (Keep(rank=0), (4, 9), 0),
        (Keep(rank=4), (4, 9), 4),
        (Keep(rank_fraction=0.29), (100, 300), 29),  # 0.29 * 100 is 28.999999999999996
        (Keep(rank_fraction=0.01), (64, 128), 1),
        (Keep(rank_fraction=1.0), (5, 3), 3),
        (Keep(param_fraction=0.5), (100, 100), 25),
        (Keep(param_fraction=0.8), (4096, 11008), 2388),
    ],
)
def test_known_ranks(keep: Keep, shape: tuple[int, int], rank: int) -> None:
    assert keep.rank_for(shape) == rank


@given(SIZES, SIZES, st.floats(0.001, 1))
def test_two_factors_fit_the_parameter_budget_and_one_more_component_would_not(
    rows: int, columns: int, share: float
) -> None:
    rank = Keep(param_fraction=share).rank_for((rows, columns))
    assert rank == 1 or rank * (rows + columns) <= share * rows * columns * (1 + 1e-6)
    assert rank == min(rows, columns) or (rank + 1) * (rows + columns) > share * rows * columns * (1 - 1e-6)


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40), st.floats(0.01, 1))
def test_energy_keeps_the_fewest_components_that_reach_it(values: list[float], share: float) -> None:
    import torch

    singular_values = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank = Keep(energy=share).rank_for((len(values), len(values)), singular_values)
    squared = numpy.sort(numpy.array(values))[::-1] ** 2
    assert 1 <= rank <= len(values)
    assert squared[:rank].sum() >= share * squared.sum() * (1 - 1e-9)
    assert rank == 1 or squared[: rank - 1].sum() < share * squared.sum()


def test_a_rank_beyond_the_matrix_is_refused() -> None:
    with pytest.raises(UserError, match="rank 5 is beyond a 4 x 9 matrix: its largest rank is 4"):
        Keep(rank=5).rank_for((4, 9))


@given(SIZES, SIZES, st.floats(0.001, 1))
def test_a_budget_that_cannot_be_met_is_one_of_less_than_one_component(rows: int, columns: int, share: float) -> None:
    assert Keep(param_fraction=share).is_below_one((rows, columns)) == (
        share * rows * columns < (rows + columns) * (1 - 1e-9)
    )
    assert Keep(rank_fraction=share).is_below_one((rows, columns)) == (share * min(rows, columns) < 1 - 1e-9)
    assert not Keep(rank=0).is_below_one((rows, columns)) and not Keep(energy=share).is_below_one((rows, columns))


def test_energy_without_singular_values_is_refused() -> None:
    with pytest.raises(UserError, match="keep.energy needs singular values"):
        Keep(energy=0.5).rank_for((4, 9))
