"""The rule for clipped means against its formula, written out once more with scipy's solvers, and what must hold of it.
Its error rates are in `test_clipped_error_rates`.
"""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from leaderboard import statistics as stats
from leaderboard.statistics.clipped import FEW_VALUES


def reference(z: np.ndarray, worst: float, step: float) -> float:
    """`max(p_t, p_e, p_s)` of distances `[n]`, none below `-worst`, by general solvers."""
    count, mean, top = len(z), float(np.mean(z)), (1 - 1e-12) / worst
    seen = mean - step / (2 * count)
    if seen <= 0:
        return 1.0
    p_t = float(scipy_stats.ttest_1samp(z, 0, alternative="greater").pvalue)

    def slope(stake: float) -> float:
        return float(np.sum(z / (1 + stake * z)))

    if slope(top) >= 0:
        stake, p_e = top, math.exp(-float(np.sum(np.log1p(z * top))))
    else:
        stake, p_e = optimize.brentq(slope, 0, top, xtol=1e-14, rtol=1e-14), 0.0
    weights = 1 / (count * (1 + stake * z))
    values, weights = np.append(z, -worst), np.append(weights, max(0.0, 1 - weights.sum()))

    def generating(tilt: float) -> float:
        return float(np.logaddexp.reduce(np.log(np.maximum(weights, 1e-300)) + tilt * values))

    def moments(tilt: float) -> tuple[float, float]:
        tilted = weights * np.exp(tilt * values - generating(tilt))
        first = float(tilted @ values)
        return first, float(tilted @ (values - first) ** 2)

    most = 1.0 / worst
    while moments(most)[0] < seen:
        most *= 2
    tilt = optimize.brentq(lambda t: moments(t)[0] - seen, 0, most, xtol=1e-14, rtol=1e-14)
    root = math.sqrt(max(0.0, 2 * count * (tilt * seen - generating(tilt))))
    if root < 0.05:
        return max(p_t, p_e, 0.5)
    spread = tilt * math.sqrt(count * moments(tilt)[1])
    p_s = scipy_stats.norm.sf(root) + scipy_stats.norm.pdf(root) * (1 / spread - 1 / root)
    return max(p_t, p_e, float(p_s))


def largest(differences: np.ndarray, margin: float, step: float) -> float:
    """The reference at this margin and at larger ones, for a bound of one: only where the stake gets to its bound may
    it be larger there.
    """
    clipped = np.clip(differences, -1, 1)

    def slope(at: float) -> float:
        """Of the sum of log(1 + a z) at the largest stake."""
        return float(np.sum((clipped + at) / (1 + clipped + 1e-12)))

    found = reference(clipped + margin, 1 - margin, step)
    if slope(margin) >= 0 or slope(1 - 1e-9) < 0:
        return found
    turn = optimize.brentq(slope, margin, 1 - 1e-9, xtol=1e-14)
    return max(found, math.exp(-float(np.sum(np.log1p((clipped + turn) / (1 - turn))))))


def lattice_step(differences: np.ndarray) -> float:
    """The least distance of up to twelve distinct values."""
    distinct = np.unique(differences)
    return float(np.diff(distinct).min()) if 1 < len(distinct) <= FEW_VALUES else 0.0


def kinds(generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Differences in units of the bound, some beyond it."""
    small = generator.normal(0, 0.05, count)
    return {
        "normal": generator.normal(0.02, 0.3, count),
        "collapses": small - np.where(generator.random(count) < 0.05, 2.0, 0.0),
        "log-normal": -0.1 * (generator.lognormal(0, 1.2, count) - 2),
        "heavy": 0.2 * generator.standard_t(2.5, count),
        "thirds": generator.integers(-3, 4, count) / 3 * (generator.random(count) < 0.3),
        "whole": generator.choice([-1.0, 0.0, 1.0], count, p=[0.05, 0.9, 0.05]),
    }


@pytest.mark.parametrize("count", [20, 62, 300])
def test_the_p_value_is_its_formula(generator: np.random.Generator, count: int) -> None:
    for kind, differences in kinds(generator, count).items():
        for margin in (0.05, 0.2, 0.0, -0.04):
            sample = stats.clipped_sample(differences, 1.0)
            expected = largest(differences, margin, lattice_step(np.clip(differences, -1, 1)))
            found = stats.clipped_within_p(sample, margin)
            assert found == pytest.approx(expected, rel=1e-4, abs=2e-4), (kind, margin)


def test_where_nothing_changed_it_is_the_chance_to_miss_the_collapses() -> None:
    """A share m/c of collapses has a mean of the margin, and is missed with probability `(1 - m/c)^n`."""
    sample = stats.clipped_sample(np.zeros(60), 1.0)
    assert stats.clipped_within_p(sample, 0.05) == pytest.approx(0.95**60)
    assert stats.clipped_drop_limit(sample, 0.05) == pytest.approx(1 - 0.05 ** (1 / 60), rel=1e-5)
    assert stats.clipped_tails(sample) == (1.0, 1.0, 1.0)


def test_it_falls_with_the_margin(generator: np.random.Generator) -> None:
    for kind, differences in kinds(generator, 150).items():
        sample = stats.clipped_sample(differences, 1.0)
        found = [stats.clipped_within_p(sample, margin) for margin in np.linspace(-1, 1, 300)]
        # near one half the saddlepoint formula is replaced by one half
        assert all(
            later <= earlier + (1e-9 if earlier < 0.4 else 0.02) for earlier, later in itertools.pairwise(found)
        ), kind
        assert found[0] == 1 and found[-1] == 0


def test_neither_order_nor_scale_nor_clusters_of_one_matter(generator: np.random.Generator) -> None:
    for differences in kinds(generator, 80).values():
        expected = stats.clipped_within_p(stats.clipped_sample(differences, 1.0), 0.1)
        for sample, margin in (
            (stats.clipped_sample(generator.permutation(differences), 1.0), 0.1),
            (stats.clipped_sample(1e3 * differences, 1e3), 100.0),
            (stats.clipped_sample(1e-3 * differences, 1e-3), 1e-4),
            (stats.clipped_sample(differences, 1.0, np.arange(80)), 0.1),
            (stats.clipped_sample(differences, 1.0, weights=np.ones(80)), 0.1),
        )[: 5 if lattice_step(np.clip(differences, -1, 1)) == 0 else 4]:
            assert stats.clipped_within_p(sample, margin) == pytest.approx(expected, rel=1e-7)


def test_signs_exchanged_exchange_the_sides(generator: np.random.Generator) -> None:
    for differences in kinds(generator, 120).values():
        here, there = (stats.clipped_sample(sign * differences, 1.0) for sign in (1, -1))
        assert stats.clipped_tails(here)[::-1][1:] == pytest.approx(stats.clipped_tails(there)[:2])
        assert stats.clipped_same_p(here, 0.2) == pytest.approx(stats.clipped_same_p(there, 0.2))
        one, other = stats.clipped_interval(here), stats.clipped_interval(there)
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-6)
        assert stats.clipped_within_p(here.mirrored, 0.1) == pytest.approx(stats.clipped_within_p(there, 0.1))


@pytest.mark.parametrize("level", [0.05, 0.025, 0.0025])
def test_limits_are_the_margins_that_the_test_excludes(generator: np.random.Generator, level: float) -> None:
    for count in (20, 200):
        for differences in kinds(generator, count).values():
            sample = stats.clipped_sample(differences, 1.0)
            limit = stats.clipped_drop_limit(sample, level)
            assert -sample.mean < limit <= 1
            assert stats.clipped_within_p(sample, limit) <= level < stats.clipped_within_p(sample, limit - 1e-4)


def test_intervals_stay_within_the_bound() -> None:
    two = stats.clipped_interval(stats.clipped_sample(np.array([0.0] * 18 + [1.0, -1.0]), 1.0, np.repeat([0, 1], 10)))
    assert -1 <= two.low < 0 < two.high <= 1 and two.degrees == 1
    lost = stats.clipped_interval(stats.clipped_sample(np.full(3, -1.0), 1.0))
    assert lost.low >= -1 and lost.value == -1
    one = stats.clipped_interval(stats.clipped_sample(np.zeros(5), 1.0, np.zeros(5)))
    assert math.isnan(one.low) and stats.clipped_within_p(stats.clipped_sample(np.zeros(1), 1.0), 0.1) == 1


def test_it_is_the_t_test_where_much_changed(generator: np.random.Generator) -> None:
    differences = generator.uniform(-0.5, 0.5, 20_000)
    found, expected = stats.clipped_interval(stats.clipped_sample(differences, 1.0)), stats.paired_interval(differences)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-4)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.02)


def test_equal_clusters_are_documents_of_their_size(generator: np.random.Generator) -> None:
    sums = generator.normal(0, 0.2, 60)
    sample = stats.clipped_sample(np.repeat(sums, 4), 1.0, np.repeat(np.arange(60), 4))
    assert stats.clipped_within_p(sample, 0.1) == pytest.approx(
        stats.clipped_within_p(stats.clipped_sample(sums, 1.0), 0.1)
    )
    assert sample.leaning == pytest.approx(1)


def test_texts_count_by_their_words(generator: np.random.Generator) -> None:
    """A text of twice the words with twice the change is in the mean what two texts are, and leans the bound."""
    words = generator.integers(5, 40, 50).astype(float)
    changes = words * generator.normal(-0.01, 0.05, 50)
    sample = stats.clipped_sample(changes, 0.4, weights=words)
    assert sample.mean == pytest.approx(changes.sum() / words.sum())
    found = stats.standardised(changes, 0.02, 0.4, weights=words)
    assert found.z == pytest.approx(words * 0.02 + changes)
    leaning = np.sum(words**3) / np.sum(words**2)
    assert found.worst == pytest.approx(leaning * 0.38) and found.leaning == pytest.approx(leaning / words.mean())


def test_distances_are_those_of_documents_and_clusters() -> None:
    differences = np.array([-3.0, 0.25, 0.0, 0.0])
    found = stats.standardised(differences, 0.1, 1.0)
    assert sorted(found.z) == pytest.approx([-0.9, 0.1, 0.1, 0.35]) and found.worst == pytest.approx(0.9)
    assert found.step == pytest.approx(0.25) and found.leaning == 1
    clustered = stats.standardised(differences, 0.1, 1.0, np.array([0, 0, 1, 2]))
    assert sorted(clustered.z) == pytest.approx([-0.55, 0.1, 0.1]) and clustered.step == 0
    # the leaning size is 10/6 documents, a cluster of the mean size 4/3 is 1.25 times smaller
    assert clustered.worst == pytest.approx(0.9 * 10 / 6) and clustered.leaning == pytest.approx(1.25)


def test_fewest_documents() -> None:
    assert stats.fewest_documents(1, 20) == 59 and stats.fewest_documents(1, 50) == 149
    assert stats.fewest_documents(0.02, 1.0, 0.025) == 183
    fewest = stats.fewest_documents(0.05, 1.0)
    assert stats.clipped_within_p(stats.clipped_sample(np.zeros(fewest), 1.0), 0.05) <= 0.05
    assert stats.clipped_within_p(stats.clipped_sample(np.zeros(fewest - 1), 1.0), 0.05) > 0.05


def test_collapses_are_bounded_exactly() -> None:
    for collapsed, count in ((0, 59), (1, 93), (2, 124), (7, 40)):
        expected = scipy_stats.binomtest(collapsed, count).proportion_ci(0.9, method="exact").high
        assert stats.share_limit(collapsed, count) == pytest.approx(expected)
    assert [stats.documents_without_collapse(seen) for seen in (0, 1, 2)] == [59, 93, 124]
    assert stats.share_limit(5, 5) == 1


def test_a_cell_is_judged_within_ten_milliseconds(generator: np.random.Generator) -> None:
    def judge(differences: np.ndarray) -> None:
        sample = stats.clipped_sample(differences, 1.0)
        stats.clipped_tails(sample)
        stats.clipped_same_p(sample, 0.05)
        stats.clipped_interval(sample)
        for side in (sample, sample.mirrored):
            stats.clipped_drop_limit(side, 0.05)

    times = []
    for differences in kinds(generator, 1000).values():
        start = time.process_time()
        judge(differences)
        times.append(time.process_time() - start)
    print("milliseconds a cell of 1,000 documents:", [round(1e3 * seconds, 1) for seconds in times])
    assert float(np.median(times)) < 0.02  # twice what is aimed at, for a busy machine


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(20260102)


def test_documents_for_few_collapses_are_enough_in_four_of_five_cases() -> None:
    assert stats.documents_for_few_collapses(0, 30) == 59
    for collapsed, count in ((1, 100), (2, 100), (3, 200)):
        share = (collapsed + 0.5) / (count + 1)
        documents = stats.documents_for_few_collapses(collapsed, count)
        assert documents is not None and documents > count
        drawn = np.random.default_rng(0).binomial(documents, share, 4000)
        reached = np.mean([stats.share_limit(int(seen), documents) < 0.05 for seen in drawn])
        assert 0.77 < reached < 0.9, (collapsed, count, documents)
    assert stats.documents_for_few_collapses(5, 100) is None and stats.documents_for_few_collapses(2, 30) is None
