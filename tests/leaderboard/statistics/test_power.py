"""Numbers of documents: by formulas whose answers are known here, by simulated verdicts in `test_needs_error_rates`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard import statistics as stats
from leaderboard.statistics.power import _best_stake


def test_one_variance_gives_the_textbook_constants() -> None:
    side = stats.normal_side(0.01, 0.08)
    for level, share, constant in ((0.05, 0.8, 6.1826), (0.025, 0.8, 7.8489), (0.05 / 20, 0.8, 13.312)):
        assert stats.documents_for((side,), level, share) == pytest.approx(constant * 0.08 / 0.01**2, rel=1e-3)
    assert stats.documents_for((side, side), 0.05) == pytest.approx(8.5638 * 0.08 / 0.01**2, rel=1e-3)
    for rows, constant in ((5, 11.3), (20, 15.5), (50, 18.2)):
        assert stats.documents_for((side,), 0.05, 0.8 ** (1 / rows)) == pytest.approx(constant * 800, rel=5e-3)


def test_the_power_of_a_normal_mean_is_that_of_statsmodels() -> None:
    reference = pytest.importorskip("statsmodels.stats.power").NormalIndPower(ddof=0)
    for distance, level in ((0.1, 0.05), (0.2, 0.01)):
        expected = reference.power(distance, 400, level, ratio=0, alternative="larger")
        assert stats.power_of((stats.normal_side(distance, 1.0),), 400, level) == pytest.approx(expected, abs=1e-9)


def test_few_flips_need_more_than_their_variance_says() -> None:
    for flips, excess in ((0.01, 1.5), (0.02, 1.25), (0.1, 1.0), (0.3, 1.0)):
        side = stats.flip_side(flips / 2, flips / 2, 0.02)
        by_variance = 6.1826 * flips / 0.02**2
        found = stats.documents_for((side,), 0.05)
        assert found is not None and excess * by_variance < found < (excess + 0.5) * by_variance


def test_a_margin_is_never_excluded_below_the_floor() -> None:
    side = stats.flip_side(0.0, 0.0, 0.02)
    assert stats.documents_for((side,), 0.05) == math.ceil(math.log(0.05) / math.log(0.98)) == 149
    assert stats.binary_within_p(0, 0, 149, 0.02) <= 0.05 < stats.binary_within_p(0, 0, 148, 0.02)
    assert stats.power_of((side,), 148, 0.05) == 0
    still = stats.clipped_side(np.full(50, 0.05), 0.95)
    assert stats.documents_for((still,), 0.05) == math.ceil(math.log(1 / 0.05) / math.log(1 / 0.95)) == 59
    clusters = stats.clipped_side(np.full(50, 0.05 * 4), 0.95 * 4, size=4)
    assert stats.documents_for((clusters,), 0.05) == math.ceil(4 * math.log(0.05) / math.log(0.95))


def test_the_stake_is_the_one_that_gains_most() -> None:
    z = np.random.default_rng(3).normal(0.05, 0.3, 400)
    worst = 1.5
    stake = _best_stake(z, worst)
    gains = [float(np.sum(np.log1p(other * z))) for other in np.linspace(0, 0.999 / worst, 500)]
    assert float(np.sum(np.log1p(stake * z))) >= max(gains) - 1e-6 and 0 < stake < 1 / worst


def test_nothing_is_promised_where_no_number_decides() -> None:
    nowhere = stats.flip_side(0.05, 0.02, 0.02)  # truly worse by more than the margin
    assert nowhere.distance < 0 and stats.documents_for((nowhere,), 0.05) is None
    assert stats.documents_for((), 0.05) is None and stats.power_of((), 100, 0.05) == 0
    assert stats.documents_for((stats.clipped_side(np.full(9, -0.1), 1.0),), 0.05) is None
    assert stats.documents_for((stats.normal_side(1e-9, 1.0),), 0.05) is None


def test_detectable_differences() -> None:
    assert stats.detectable_difference(0.08, 1000, 0.025) == pytest.approx(2.8016 * math.sqrt(0.08 / 1000), rel=1e-4)
    assert stats.detectable_difference(0.08, 1000, 0.025, flips=True) == stats.detectable_difference(0.08, 1000, 0.025)
    rare = stats.detectable_difference(0.01, 100, 0.025, flips=True)
    assert rare == pytest.approx(2.8016**2 / 100, rel=1e-4) and rare > 2.8016 * math.sqrt(0.01 / 100)
    assert stats.detectable_difference(0.1, 3, 0.001, flips=True) == 1.0
    assert stats.detectable_difference(0.1, 0, 0.05) == math.inf


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.0, 0.3),
    st.floats(0.0, 0.3),
    st.floats(0.005, 0.2),
    st.sampled_from([0.05, 0.04, 0.01, 0.001]),
    st.sampled_from([0.5, 0.8, 0.99]),
)
def test_documents_are_the_smallest_number_with_that_power(
    lost: float, gained: float, margin: float, level: float, share: float
) -> None:
    sides = (stats.flip_side(lost, gained, margin), stats.flip_side(gained, lost, margin))
    found = stats.documents_for(sides, level, share)
    if found is None:
        assert abs(lost - gained) >= margin - 1e-6
    else:
        assert stats.power_of(sides, found, level) >= share > stats.power_of(sides, found - 1, level)
        assert stats.documents_for(sides, level / 2, share) >= found  # type: ignore[operator]
