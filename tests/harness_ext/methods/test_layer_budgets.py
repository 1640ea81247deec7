"""Shares of units over layers, against the formulas in float64 numpy and what they are optima of."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness_ext.methods.layer_budgets import by_angle, by_influence, by_variance

INFLUENCES = st.lists(st.floats(0, 2), min_size=1, max_size=12)
SHARES = st.floats(0.01, 0.7)


def entropy(phi: numpy.ndarray) -> float:
    return float(-(phi * numpy.log(phi)).sum())


@settings(deadline=None)
@given(INFLUENCES, SHARES, st.floats(0.05, 2), st.integers(0, 2**31))
def test_shares_are_the_softmax_and_its_optimum(
    influences: list[float], removed: float, epsilon: float, seed: int
) -> None:
    found = by_influence(dict(enumerate(influences)), removed, epsilon, 0.8)
    phi, s = numpy.array(list(found.removed.values())), numpy.array(influences)
    assert found.epsilon is not None and found.epsilon >= epsilon
    powers = numpy.exp(-(s - s.min()) / found.epsilon)
    numpy.testing.assert_allclose(phi, len(s) * removed * powers / powers.sum(), rtol=1e-9)
    assert phi.mean() == pytest.approx(removed) and phi.max() <= 0.8 + 1e-12
    if (phi > 1e-300).all():
        other = numpy.random.default_rng(seed).dirichlet(numpy.ones(len(s))) * phi.sum()
        other = 0.5 * other + 0.5 * phi

        def objective(share: numpy.ndarray) -> float:
            return float((s * (1 - share)).sum()) + found.epsilon * entropy(share)

        assert objective(phi) >= objective(other) - 1e-9


def test_epsilon_is_raised_to_the_least_that_keeps_the_cap() -> None:
    influences = {0: 0.05, 1: 0.4, 2: 0.5, 3: 0.9}
    found = by_influence(influences, 0.3, 0.02, 0.8)
    assert max(found.removed.values()) == pytest.approx(0.8, abs=1e-9) and found.epsilon is not None
    assert 0.02 < found.epsilon < 10
    s = numpy.array(list(influences.values()))
    powers = numpy.exp(-s / (found.epsilon * 0.999))
    assert (4 * 0.3 * powers / powers.sum()).max() > 0.8
    # Where the cap is met anyway, epsilon is the one that was asked for.
    assert by_influence(influences, 0.3, 5.0, 0.8).epsilon == 5.0


def test_layers_alike_lose_alike_and_the_more_a_layer_does_the_less_it_loses() -> None:
    assert set(by_influence({3: 0.2, 7: 0.2}, 0.25, 0.1, 0.8).removed.values()) == {0.25}
    shares = by_influence({0: 0.6, 1: 0.1, 2: 0.3}, 0.2, 0.15, 0.8).removed
    assert shares[1] > shares[2] > shares[0] > 0


def test_more_than_the_cap_cannot_be_taken_from_every_layer() -> None:
    with pytest.raises(ValueError, match=r"a share of 0\.85 is to go, and no layer is to lose more than 0\.8"):
        by_influence({0: 0.1, 1: 0.2}, 0.85, 0.15, 0.8)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), SHARES)
def test_by_angle_layers_keep_in_proportion_and_never_more_than_all(angles: list[float], removed: float) -> None:
    kept = 1 - numpy.array(list(by_angle(dict(enumerate(angles)), removed).removed.values()))
    assert kept.mean() == pytest.approx(1 - removed) and kept.max() <= 1 and kept.min() >= 0
    below = [(angle, share) for angle, share in zip(angles, kept, strict=True) if share < 1 - 1e-9]
    for angle, share in below:
        for other, beside in below:
            assert share * other == pytest.approx(beside * angle, abs=1e-9) or max(angles) == 0


VARIANCES = st.lists(st.lists(st.floats(1e-6, 10), min_size=2, max_size=9), min_size=1, max_size=5)


def fewest(variances: numpy.ndarray, tau: float) -> int:
    """By trial: the least k whose first k variances are tau of all."""
    return next(k for k in range(1, len(variances) + 1) if variances[:k].sum() >= tau * variances.sum() * (1 - 1e-12))


@settings(deadline=None)
@given(VARIANCES, st.floats(0.01, 0.9))
@example([[1.0, 1.0, 1.0], [1e-6, 1e-6, 1e-6]], 0.5)
def test_by_variance_every_layer_keeps_the_fewest_units_of_one_tau_within_the_budget(
    variances: list[list[float]], removed: float
) -> None:
    found = by_variance(dict(enumerate(variances)), removed)
    kept = 1 - numpy.array(list(found.removed.values()))
    assert found.tau is not None and 0 <= found.tau <= 1
    own = [numpy.array(one) for one in variances]
    numpy.testing.assert_allclose(kept, [fewest(one, found.tau) / len(one) for one in own], atol=1e-12)
    least = numpy.mean([1 / len(one) for one in own])
    assert kept.mean() <= max(1 - removed, least) + 1e-9
    # The next tau at which a layer would keep another unit is beyond the budget.
    ends = [one[:k].sum() / one.sum() for one in own for k in range(1, len(one))]
    beyond = [end for end in ends if end > found.tau + 1e-9]
    if beyond and found.tau > 0:
        after = min(beyond) + 1e-9
        assert numpy.mean([fewest(one, min(1.0, after)) / len(one) for one in own]) > 1 - removed - 1e-9


def test_by_variance_layers_alike_lose_alike_and_those_of_few_strong_units_more() -> None:
    assert len(set(by_variance({0: [1.0] * 3, 1: [1e-6] * 3}, 0.5).removed.values())) == 1
    assert by_variance({3: [2.0, 1.0, 1.0, 0.5], 7: [4.0, 2.0, 2.0, 1.0]}, 0.5).removed == {3: 0.5, 7: 0.5}
    found = by_variance({0: [100.0, 1, 1, 1], 1: [1.0, 1, 1, 1]}, 0.375)
    assert found.removed == {0: 0.75, 1: 0.0}
    shares = [by_variance({0: [8.0, 4, 2, 1], 1: [5.0, 4, 3, 2]}, removed) for removed in (0.1, 0.3, 0.5, 0.7)]
    taus = [one.tau or 0 for one in shares]
    assert taus == sorted(taus, reverse=True)
    for layer in (0, 1):
        lost = [one.removed[layer] for one in shares]
        assert lost == sorted(lost)


def test_by_variance_a_layer_without_any_keeps_one_unit() -> None:
    assert by_variance({0: [0.0] * 4, 1: [2.0, 1.0, 1.0, 1.0]}, 0.25).removed == {0: 0.75, 1: 0.0}
