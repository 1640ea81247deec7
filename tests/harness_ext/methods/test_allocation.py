"""Ranks under one budget: the laws of every rule, the formulas, and the optimum by trying everything."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.errors import BudgetTooSmall
from harness_ext.methods.allocation import (
    Spectrum,
    at_most,
    d_rank,
    depth_weight,
    least_error,
    lems,
    marchenko_pastur,
    scaled,
    svd_llm_v2,
    uniform,
)
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
    "d-rank": lambda spectra, share: d_rank(spectra, share, 0.2),
    "pooled": lambda spectra, share: d_rank(spectra, share, 0.2, pooled=True),
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
    except BudgetTooSmall:
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
    except BudgetTooSmall:
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
    ranks = scaled(spectra, d_rank(spectra, share), share)
    budget = share * sum(one.size for one in spectra.values())
    total = sum(math.sqrt(one.effective_rank * one.cost) for one in spectra.values())
    for key, one in spectra.items():
        assert ranks[key] == pytest.approx(math.sqrt(one.effective_rank / one.cost) * budget / total, abs=1.01)


@given(st.integers(0, 2**31), st.floats(0.5, 0.95), st.sampled_from(list(RULES)))
@settings(deadline=None, max_examples=60)
def test_what_stays_beside_is_paid_by_its_own_kind(seed: int, share: float, rule: str) -> None:
    """With numbers that stay, a rule wants of each kind, or of all, the share of all its numbers, those among them."""
    plain = spectra_of(seed, largest=60)
    spectra = {
        key: replace(one, beside=(number + 1) * one.size // 12) for number, (key, one) in enumerate(plain.items())
    }
    of = {"uniform": lambda: uniform(spectra, share), "d-rank": lambda: d_rank(spectra, share)}
    wanted = of.get(rule, lambda: RULES[rule](spectra, share))()
    if rule == "uniform":
        for key, one in spectra.items():
            assert share * wanted[key] * one.cost == pytest.approx(max(0, share * one.whole - one.beside), abs=1e-3)
    elif rule == "d-rank":
        for kind in {one.kind for one in spectra.values()}:
            own = {key: one for key, one in spectra.items() if one.kind == kind}
            kept = sum(wanted[key] * one.cost + one.beside for key, one in own.items())
            assert kept == pytest.approx(
                max(share * sum(one.whole for one in own.values()), sum(one.beside for one in own.values())), abs=1e-3
            )
    try:
        ranks = scaled(spectra, wanted, share)
    except BudgetTooSmall:
        return
    assert (
        stored(spectra, ranks) + sum(one.beside for one in spectra.values())
        <= share * sum(one.whole for one in spectra.values()) + 1e-6
    )


def test_the_effective_rank_counts_equal_values() -> None:
    assert Spectrum((9, 9), [2.0] * 4 + [0.0] * 5).effective_rank == pytest.approx(4)
    assert Spectrum((9, 9), [0.0] * 9).effective_rank == 1


def test_values_get_what_queries_and_keys_give() -> None:
    spectra = {kind: Spectrum((40, 40), [1.0] * 40, kind) for kind in ("q_proj", "k_proj", "v_proj", "up_proj")}
    for pooled in (False, True):
        before, after = d_rank(spectra, 0.5, pooled=pooled), d_rank(spectra, 0.5, 0.25, pooled)
        assert after["q_proj"] == pytest.approx(0.75 * before["q_proj"])
        assert after["v_proj"] == pytest.approx(1.5 * before["v_proj"]) and after["up_proj"] == before["up_proj"]
        cost = sum(after[key] * one.cost for key, one in spectra.items())
        assert cost == pytest.approx(sum(before[key] * one.cost for key, one in spectra.items()))


def test_values_take_what_they_have_room_for_and_the_rest_goes_back() -> None:
    """Values of grouped attention are small: at four fifths they are dense after a quarter of what they lost."""
    shapes = {"q_proj": (60, 60), "k_proj": (20, 60), "v_proj": (20, 60)}
    spectra = {kind: Spectrum(shape, [1.0] * min(shape), kind) for kind, shape in shapes.items()}
    before, after = d_rank(spectra, 0.8), d_rank(spectra, 0.8, 0.2)
    assert after["v_proj"] == math.inf
    freed = 0.2 * 20 * 60
    given = sum((before[key] - after[key]) * spectra[key].cost for key in ("q_proj", "k_proj"))
    assert given == pytest.approx(freed)
    assert after["q_proj"] / before["q_proj"] == pytest.approx(after["k_proj"] / before["k_proj"])


def test_d_rank_keeps_the_share_of_each_kind() -> None:
    """As published; pooled, the kind with fewer directions pays for the other."""
    spectra = {
        f"{kind}{number}": Spectrum((60, 60), [1.0] * (number + 2) * many, kind)
        for kind, many in (("up_proj", 3), ("down_proj", 12))
        for number in range(3)
    }

    def share(ranks: dict[str, int], kind: str) -> float:
        own = {key: one for key, one in spectra.items() if one.kind == kind}
        return stored(own, {key: ranks[key] for key in own}) / sum(one.size for one in own.values())

    each = scaled(spectra, d_rank(spectra, 0.5), 0.5)
    assert share(each, "up_proj") == pytest.approx(0.5, abs=0.02) == share(each, "down_proj")
    pooled = scaled(spectra, d_rank(spectra, 0.5, pooled=True), 0.5)
    assert share(pooled, "up_proj") < 0.4 < 0.6 < share(pooled, "down_proj")


@pytest.mark.parametrize("align", [1, 8, 64])
@pytest.mark.parametrize(("width", "values", "hidden"), [(576, 192, 1536), (4096, 1024, 14336)])
def test_uniform_is_uniform(width: int, values: int, hidden: int, align: int) -> None:
    """What rounding leaves goes round: matrices alike differ by a multiple at most, and none is dense."""
    shapes = {"q_proj": (width, width), "v_proj": (values, width), "o_proj": (width, width), "up_proj": (hidden, width)}
    spectra = {f"{layer} {kind}": Spectrum(shape, [], kind) for layer in range(30) for kind, shape in shapes.items()}
    ranks = scaled(spectra, uniform(spectra), 0.8, align)
    assert set(ranks) == set(spectra)
    for kind, (rows, columns) in shapes.items():
        own = [rank for key, rank in ranks.items() if key.endswith(kind)]
        assert max(own) - min(own) <= align
        assert max(abs(rank - 0.8 * rows * columns / (rows + columns)) for rank in own) <= align + 1


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
    with pytest.raises(BudgetTooSmall, match="too small"):
        scaled(spectra, {"a": math.inf, "b": math.inf, "c": math.inf, "d": 20.0}, 0.5)


def promised(
    spectra: dict[str, Spectrum],
    ranks: dict[str, int],
    divergences: dict[str, tuple[int, float]],
    depth: dict[str, float],
) -> float:
    """The error that LEMS predicts, from its formula: `D (1 - E(r)) / (1 - E(r_0))`, E the share of squares kept."""
    total = 0.0
    for key, rank in ranks.items():
        squares = numpy.square(spectra[key].values)
        kept = numpy.cumsum(squares) / squares.sum()
        small, measured = divergences[key]
        total += depth[key] * measured * (1 - kept[rank - 1]) / (1 - kept[small - 1])
    return total


def measured_alone(spectra: dict[str, Spectrum], seed: int) -> tuple[dict[str, tuple[int, float]], dict[str, float]]:
    draw = numpy.random.default_rng(seed)
    return {key: (1, float(draw.gamma(1.0))) for key in spectra}, {key: float(draw.uniform(1, 8)) for key in spectra}


@given(st.integers(0, 2**31), st.floats(0.35, 0.95))
@settings(deadline=None, max_examples=40)
def test_lems_against_all_choices(seed: int, share: float) -> None:
    """By trying everything: at most one step of one matrix is lost; and uniform ranks never promise less."""
    spectra = spectra_of(seed, count=3, largest=12)
    divergences, depth = measured_alone(spectra, seed)
    within = (0.1, 0.95)
    budget = share * sum(one.size for one in spectra.values())
    choices = [
        [None, *(r for r in range(1, min(one.shape)) if 0.1 * one.break_even <= r <= 0.95 * one.break_even)]
        for one in spectra.values()
    ]
    everything = [
        {key: rank for key, rank in zip(spectra, choice, strict=True) if rank is not None}
        for choice in itertools.product(*choices)
    ]
    fitting = [taken for taken in everything if stored(spectra, taken) <= budget]
    if not fitting:
        with pytest.raises(BudgetTooSmall, match="too small"):
            lems(spectra, divergences, depth, share, 1, within)
        return
    ranks = lems(spectra, divergences, depth, share, 1, within)
    assert stored(spectra, ranks) <= budget and ranks in fitting
    own = promised(spectra, ranks, divergences, depth)
    best = min(promised(spectra, taken, divergences, depth) for taken in fitting)
    # A step is the way of one matrix from dense to its smallest rank at the most.
    step = max(
        promised(spectra, {key: min(rank for rank in own_choices if rank)}, divergences, depth)
        for key, own_choices in zip(spectra, choices, strict=True)
        if len(own_choices) > 1
    )
    assert own <= best + step + 1e-9
    try:
        even = scaled(spectra, uniform(spectra), share)
    except BudgetTooSmall:
        return
    if even in fitting and len(even) == len(spectra):
        assert own <= promised(spectra, even, divergences, depth) + 1e-9


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 8]))
@settings(deadline=None, max_examples=30)
def test_lems_promises_less_error_for_a_larger_budget(seed: int, align: int) -> None:
    spectra = spectra_of(seed, largest=60)
    divergences, depth = measured_alone(spectra, seed)
    errors = []
    for share in (0.5, 0.7, 0.9, 1.0):
        try:
            ranks = lems(spectra, divergences, depth, share, align)
        except BudgetTooSmall:
            continue
        assert all(rank % align == 0 for rank in ranks.values())
        errors.append(promised(spectra, ranks, divergences, depth))
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0


def test_lems_leaves_dense_what_broke_the_model() -> None:
    spectra = {key: Spectrum((40, 40), [1.0] * 40) for key in "abc"}
    depth = dict.fromkeys(spectra, 1.0)
    ranks = lems(spectra, {"a": (2, math.inf), "b": (2, math.nan), "c": (2, 0.1)}, depth, 0.9, 1)
    assert set(ranks) == {"c"}
    with pytest.raises(BudgetTooSmall, match="allow smaller ranks"):
        lems(spectra, {"a": (2, math.inf), "b": (2, math.nan), "c": (2, 0.1)}, depth, 0.6, 1)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 3.0])
def test_the_weight_of_depth_falls_from_the_first_layer_to_the_last(exponent: float) -> None:
    weights = [depth_weight(layer, 6, exponent, 4.0) for layer in range(6)]
    assert weights[0] == pytest.approx(5) and weights[-1] == 1 and weights == sorted(weights, reverse=True)
    powers = numpy.arange(1, 7) ** -exponent
    tails = numpy.array([powers[layer:].sum() for layer in range(6)])
    assert weights == pytest.approx((1 + 4 * (tails - tails[-1]) / (tails[0] - tails[-1])).tolist())
    assert depth_weight(None, 6, exponent, 4.0) == depth_weight(0, 1, exponent, 4.0) == 1
    assert depth_weight(3, 6, exponent, 0.0) == 1


def planted(shape: tuple[int, int], signal: int, seed: int) -> list[float]:
    """The singular values of noise and of a few strong directions."""
    draw = numpy.random.default_rng(seed)
    noise = draw.normal(size=shape)
    left, right = (numpy.linalg.qr(draw.normal(size=(size, signal)))[0] for size in shape)
    return numpy.linalg.svd(noise + 5 * sum(map(math.sqrt, shape)) * left @ right.T, compute_uv=False).tolist()


@pytest.mark.parametrize("shape", [(60, 60), (40, 90), (90, 40)])
def test_the_edge_of_the_noise_finds_what_was_planted(shape: tuple[int, int]) -> None:
    spectra = {f"m{signal}": Spectrum(shape, planted(shape, signal, signal)) for signal in (1, 4, 9)}
    found = marchenko_pastur(spectra, 1.1)
    assert found == {"m1": 1, "m4": 4, "m9": 9}
    # without a budget these are the ranks; where one is lower, they keep their proportions
    assert at_most(spectra, found, 1.0) == found
    assert at_most(spectra, found, 1.0, align=4) == {"m1": 4, "m4": 4, "m9": 8}
    tight = 6 * sum(shape) / (3 * shape[0] * shape[1])
    ranks = at_most(spectra, found, tight)
    assert stored(spectra, ranks) <= tight * 3 * shape[0] * shape[1] and ranks["m1"] <= ranks["m4"] <= ranks["m9"] < 9
    assert all(rank <= found[key] for key, rank in ranks.items())


def test_noise_alone_keeps_one_component_and_signal_alone_stays_dense() -> None:
    noise = [*planted((50, 50), 1, 0)[1:], 0.0]
    assert marchenko_pastur({"noise": Spectrum((50, 50), noise)}, 2.0) == {"noise": 1}
    spectra = {"m": Spectrum((10, 10), [1.0] * 10)}
    assert marchenko_pastur(spectra, 0.1) == {"m": 10} and at_most(spectra, {"m": 10.0}, 1.0) == {}
