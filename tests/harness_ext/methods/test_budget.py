"""Budgets: the rank that each measure means."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_ext.errors import UserError
from harness_ext.methods.budget import Keep, NotedKeep, pays
from harness_ext.model.size import stored_parameters

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


@pytest.mark.parametrize(
    ("share", "rank"),
    [(0.9, 2799), (0.8, 2263), (0.5, 1199)],  # as published for 4096 x 4096
)
def test_ranks_of_pivot_rows_are_the_published_ones(share: float, rank: int) -> None:
    assert Keep(param_fraction=share, format="pifa").rank_for((4096, 4096)) == rank


@given(SIZES, SIZES, st.floats(0.001, 1))
def test_pivot_rows_and_their_places_fit_the_budget_at_the_largest_rank_that_does(
    rows: int, columns: int, share: float
) -> None:
    keep = Keep(param_fraction=share, format="pifa")
    rank, budget = keep.rank_for((rows, columns)), share * rows * columns
    both = rows + columns + 1
    published = int(((both - (both**2 - 4 * budget) ** 0.5) / 2) + 1e-7)
    assert rank == min(max(1, published), rows, columns)
    assert rank >= Keep(param_fraction=share).rank_for((rows, columns))

    def numbers(of: int) -> int:
        coefficients, pivots, places = (rows - of) * of, of * columns, of
        return coefficients + pivots + places

    assert stored_parameters((rows, columns), rank, "pifa") == min(numbers(rank), rows * columns)
    assert rank == 1 or numbers(rank) <= budget * (1 + 1e-6)
    assert rank == min(rows, columns) or numbers(rank + 1) > budget * (1 - 1e-6)
    assert keep.is_below_one((rows, columns)) == (budget < numbers(1) * (1 - 1e-9))


def test_a_format_goes_with_any_measure_and_the_usual_one_is_said_by_saying_nothing() -> None:
    assert Keep(rank=3, format="factors") == Keep(rank=3) and Keep(rank=3).model_dump(exclude_none=True) == {"rank": 3}
    assert Keep(rank=3, format="pifa").rank_for((8, 8)) == 3 and Keep(rank=3, format="pifa").form == "pifa"
    assert Keep(ranks={"a": 3}, format="pifa", align=2).of("a") == Keep(rank=3, format="pifa", align=2)
    with pytest.raises(ValueError, match="align: auto knows the speed of two factors"):
        Keep(rank=3, format="pifa", align="auto")


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


@pytest.mark.parametrize(
    ("keep", "shape", "rank"),
    [
        (Keep(param_fraction=0.8, align=64), (11008, 4096), 2368),
        (Keep(param_fraction=0.8, align=8), (11008, 4096), 2384),
        (Keep(param_fraction=0.8, align="auto"), (11008, 4096), 2368),  # 20 of 2388 are less than one per cent
        (Keep(param_fraction=0.8, align="auto"), (28672, 8192), 5056),
        (Keep(param_fraction=0.2, align="auto"), (28672, 8192), 1272),  # 64 would be 1216: 58 of 1274
        (Keep(param_fraction=0.8, align="auto"), (576, 1536), 328),
        (Keep(param_fraction=0.95, align="auto"), (4096, 4096), 1945),  # no faster: as asked
        (Keep(rank=7, align=8), (100, 100), 7),
        (Keep(rank=8, align=8), (100, 100), 8),
        (Keep(rank=0, align=8), (100, 100), 0),
        (Keep(rank=100, align=64), (100, 300), 100),
        (Keep(rank=99, align=64), (100, 300), 64),
        (Keep(rank_fraction=0.29, align=8), (100, 300), 24),
        (Keep(ranks={"w": 30}, align=8), (100, 300), 24),
        (Keep(rank=29, align=1), (100, 300), 29),
    ],
)
def test_aligned_ranks(keep: Keep, shape: tuple[int, int], rank: int) -> None:
    assert keep.of("w").rank_for(shape) == rank


@given(SIZES, SIZES, st.floats(0.001, 1), st.one_of(st.integers(1, 80), st.just("auto")))
def test_alignment_keeps_to_the_budget_and_never_empties_a_matrix(
    rows: int, columns: int, share: float, align: object
) -> None:
    asked = Keep(param_fraction=share).rank_for((rows, columns))
    rank = Keep(param_fraction=share, align=align).rank_for((rows, columns))
    assert 1 <= rank <= asked
    if align == "auto":
        assert rank == asked or rank % 8 == 0
        assert asked - rank < 8 or (rank % 64 == 0 and asked - rank < 0.01 * asked)
        assert rank == asked or pays((rows, columns), rank)
    else:
        assert rank == asked or (rank % align == 0 and asked - rank < align)


def test_energy_is_aligned_too_and_the_rank_asked_for_is_noted() -> None:
    import torch

    keep = NotedKeep(energy=0.5, align=8)
    assert keep.noted((40, 40)) is None
    assert keep.rank_for((40, 40), torch.ones(40)) == 16 and keep.noted((40, 40)) == 20
    keep.rank_for((10, 40), torch.ones(10))
    assert keep.noted((40, 40)) is None


@pytest.mark.parametrize(
    ("shape", "rank", "expected"),
    [
        ((11008, 4096), 2384, True),
        ((11008, 4096), 2388, False),
        ((28672, 8192), 5096, True),
        ((28672, 8192), 5097, False),
        ((4096, 4096), 1840, True),
        ((4096, 4096), 1848, False),  # more than nine tenths of the numbers
        ((4096, 4096), 5, True),
        ((4096, 4096), 9, True),  # even six times as dear
        ((24, 24), 9, False),
        ((24, 24), 8, True),
        ((24, 24), 0, True),
    ],
)
def test_when_factors_pay(shape: tuple[int, int], rank: int, expected: bool) -> None:
    assert pays(shape, rank) is expected


@pytest.mark.parametrize("align", [0, -8, 2.5, "wide"])
def test_what_cannot_be_aligned_to(align: object) -> None:
    with pytest.raises(ValueError, match="align"):
        Keep(rank=8, align=align)
    with pytest.raises(ValueError, match="exactly one of rank.*found none"):
        Keep(align=8)
