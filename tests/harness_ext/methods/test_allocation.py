"""Ranks under one budget: the laws of every rule, the formulas, and the optimum by trying everything."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.errors import UserError
from harness_ext.methods.allocation import Spectrum, d_rank, least_error, scaled, svd_llm_v2, uniform
from harness_ext.model.size import stored_parameters


def spectra_of(seed: int, count: int = 5, largest: int = 24) -> dict[str, Spectrum]:
    generator = numpy.random.default_rng(seed)
    found = {}
    for number in range(count):
        rows, columns = (int(size) for size in generator.integers(6, largest, 2))
        values = numpy.sort(generator.gamma(1.0, 10.0, min(rows, columns)))[::-1]
        kind = ("q_proj", "k_proj", "v_proj", "up_proj")[number % 4]
        found[f"m{number}"] = Spectrum((rows, columns), values.tolist(), kind, 50)
    return found


def stored(spectra: dict[str, Spectrum], ranks: dict[str, int]) -> int:
    return sum(stored_parameters(one.shape, ranks[key]) if key in ranks else one.size for key, one in spectra.items())


RULES = {
    "uniform": lambda spectra, share: uniform(spectra),
    "d-rank": lambda spectra, share: d_rank(spectra, 0.2),
    "svd-llm-v2": svd_llm_v2,
}


@given(st.integers(0, 2**31), st.floats(0.35, 1), st.sampled_from([1, 2]), st.sampled_from([*RULES, "least-error"]))
@settings(deadline=None, max_examples=120)
def test_the_budget_is_kept_and_used(seed: int, share: float, align: int, rule: str) -> None:
    spectra = spectra_of(seed)
    budget = share * sum(one.size for one in spectra.values())
    try:
        if rule == "least-error":
            ranks = least_error(spectra, share, align)
        else:
            ranks = scaled(spectra, RULES[rule](spectra, share), share, align)
    except UserError:
        assert sum(min(one.size, align * one.cost) for one in spectra.values()) > budget
        return
    spent = stored(spectra, ranks)
    assert spent <= budget + 1e-6
    for key, rank in ranks.items():
        one = spectra[key]
        # a rank that saves nothing is not given: the matrix is dense
        assert rank % align == 0 and align <= rank and rank * one.cost < one.size
        if rule != "least-error":
            grown = stored_parameters(one.shape, min(rank + align, *one.shape))
            assert spent - rank * one.cost + grown > budget or grown <= rank * one.cost
    assert bool(ranks) == (budget < sum(one.size for one in spectra.values()))


@given(st.integers(0, 2**31), st.floats(0.3, 0.95))
@settings(deadline=None, max_examples=30)
def test_least_error_is_the_best_of_all_choices(seed: int, share: float) -> None:
    """Tried out: nothing that stores as few numbers loses less."""
    spectra = spectra_of(seed, count=3, largest=9)
    try:
        ranks = least_error(spectra, share)
    except UserError:
        return

    def lost(key: str, rank: int | None) -> float:
        squares = numpy.square(spectra[key].values)
        return 0.0 if rank is None else float(squares[rank:].sum() / squares.sum())

    own = sum(lost(key, ranks.get(key)) for key in spectra)
    allowed = stored(spectra, ranks)
    choices = [
        [None, *(rank for rank in range(1, min(one.shape)) if rank * one.cost < one.size)] for one in spectra.values()
    ]
    for choice in itertools.product(*choices):
        taken = {key: rank for key, rank in zip(spectra, choice, strict=True) if rank is not None}
        if stored(spectra, taken) <= allowed:
            assert own <= sum(lost(key, taken.get(key)) for key in spectra) + 1e-9


def test_d_rank_is_lagranges_solution() -> None:
    """`k = sqrt(R / w) P / sum sqrt(R w)`, where nothing reaches break-even."""
    spectra = {f"m{n}": Spectrum((400, 300), [math.exp(-i / (20 * n)) for i in range(300)]) for n in (1, 2, 3)}
    share = 0.3
    ranks = scaled(spectra, d_rank(spectra), share)
    budget = share * sum(one.size for one in spectra.values())
    total = sum(math.sqrt(one.effective_rank * one.cost) for one in spectra.values())
    for key, one in spectra.items():
        assert ranks[key] == pytest.approx(math.sqrt(one.effective_rank / one.cost) * budget / total, abs=1.01)


def test_the_effective_rank_counts_equal_values() -> None:
    assert Spectrum((9, 9), [2.0] * 4 + [0.0] * 5).effective_rank == pytest.approx(4)
    assert Spectrum((9, 9), [0.0] * 9).effective_rank == 1


def test_values_get_what_queries_and_keys_give() -> None:
    spectra = {kind: Spectrum((40, 40), [1.0] * 40, kind) for kind in ("q_proj", "k_proj", "v_proj", "up_proj")}
    before, after = d_rank(spectra), d_rank(spectra, 0.25)
    assert after["q_proj"] == pytest.approx(0.75 * before["q_proj"])
    assert after["v_proj"] == pytest.approx(1.5 * before["v_proj"]) and after["up_proj"] == before["up_proj"]
    cost = sum(after[key] * one.cost for key, one in spectra.items())
    assert cost == pytest.approx(sum(before[key] * one.cost for key, one in spectra.items()))


def test_svd_llm_v2_keeps_the_share_of_a_kind() -> None:
    spectra = {f"m{n}": Spectrum((30, 30), [100.0 * n / (i + 1) for i in range(30)], "q", 10) for n in (1, 3, 9)}
    wanted = svd_llm_v2(spectra, 0.8)
    removed = {key: 1 - wanted[key] / one.break_even for key, one in spectra.items()}
    assert sum(removed.values()) / 3 == pytest.approx(0.2)
    # what loses more is cut less
    assert removed["m1"] > removed["m3"] > removed["m9"]
    # errors that the logarithm cannot rank are alike
    small = {f"m{n}": Spectrum((30, 30), [1e-3 * n] * 30, "q") for n in (1, 2)}
    assert svd_llm_v2(small, 0.8) == pytest.approx(dict.fromkeys(small, 0.8 * 15))


def test_some_matrices_may_be_kept_dense() -> None:
    spectra = {key: Spectrum((40, 40), [1.0] * 40) for key in "abcd"}
    ranks = scaled(spectra, {"a": math.inf, "b": math.inf, "c": 20.0, "d": 20.0}, 0.75)
    assert ranks == {"c": 10, "d": 10}
    with pytest.raises(UserError, match="too small"):
        scaled(spectra, {"a": math.inf, "b": math.inf, "c": math.inf, "d": 20.0}, 0.5)
