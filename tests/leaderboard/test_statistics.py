"""The formulas against scipy, statsmodels and hand-made numbers, and their error rates by simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats as scipy_stats

from leaderboard import statistics as stats


def test_mid_p_is_the_exact_test_less_half_the_observed_point() -> None:
    exact = scipy_stats.binomtest(3, 15, 0.5, alternative="less").pvalue
    tails = stats.mid_p_mcnemar(lost=12, gained=3)
    assert tails.less == pytest.approx(exact - scipy_stats.binom.pmf(3, 15, 0.5) / 2)
    assert tails.less + tails.greater == pytest.approx(1)
    assert tails.two_sided == pytest.approx(2 * tails.less)


def test_mid_p_lies_between_the_exact_and_the_asymptotic_mcnemar_of_statsmodels() -> None:
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    table = [[40, 25], [10, 45]]
    exact = contingency.mcnemar(table, exact=True).pvalue
    loose = contingency.mcnemar(table, exact=False, correction=False).pvalue
    assert loose < stats.mid_p_mcnemar(25, 10).two_sided < exact


def test_no_flips_is_no_evidence_but_still_has_a_width() -> None:
    assert stats.mid_p_mcnemar(0, 0).two_sided == 1
    estimate = stats.bonett_price(0, 0, 50)
    assert estimate.value == 0 and -0.06 < estimate.low < -0.04 < 0.04 < estimate.high < 0.06


def test_bonett_price_by_hand() -> None:
    estimate = stats.bonett_price(lost=9, gained=4, count=98)
    up, down = 5 / 100, 10 / 100
    error = math.sqrt((up + down - (up - down) ** 2) / 100)
    assert estimate.value == pytest.approx(-5 / 98)
    assert (estimate.low, estimate.high) == pytest.approx((up - down - 1.959964 * error, up - down + 1.959964 * error))


def test_paired_interval_is_that_of_the_one_sample_t_test(generator: np.random.Generator) -> None:
    differences = generator.normal(0.1, 1, 40)
    expected = scipy_stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    estimate = stats.paired_interval(differences)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_clustered_error_is_that_of_statsmodels(generator: np.random.Generator) -> None:
    linear_model = pytest.importorskip("statsmodels.regression.linear_model")
    clusters = np.repeat(np.arange(20), generator.integers(1, 9, 20))
    differences = generator.normal(0, 1, 20)[clusters] + generator.normal(0, 1, len(clusters))
    fit = linear_model.OLS(differences, np.ones(len(differences))).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    assert stats.standard_error(differences, clusters)[0] == pytest.approx(fit.bse[0] * math.sqrt(20 / 19))


def test_clusters_of_one_change_nothing(generator: np.random.Generator) -> None:
    differences = generator.normal(0, 1, 50)
    assert stats.paired_interval(differences, np.arange(50)) == pytest.approx(stats.paired_interval(differences))


def test_sign_flip_is_exact_for_few_and_matches_scipy(generator: np.random.Generator) -> None:
    differences = generator.normal(0.5, 1, 9)
    expected = scipy_stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    tails = stats.sign_flip_test(differences)
    assert tails.two_sided == pytest.approx(expected)
    assert tails.less + tails.greater == pytest.approx(1 + 2**-9)


def test_sign_flip_by_draws_agrees_with_the_t_test_and_with_itself(generator: np.random.Generator) -> None:
    differences = generator.normal(0.1, 1, 200)
    drawn = stats.sign_flip_test(differences)
    assert drawn == stats.sign_flip_test(differences)
    assert drawn.two_sided == pytest.approx(scipy_stats.ttest_1samp(differences, 0).pvalue, rel=0.25)
    many = np.tile(differences, 20)
    assert stats.sign_flip_test(many).two_sided == pytest.approx(scipy_stats.ttest_1samp(many, 0).pvalue, rel=0.2)


def test_sign_flip_counts_ties() -> None:
    halves = np.array([0.1] * 30 + [-0.1] * 20)
    exact = scipy_stats.binomtest(30, 50).pvalue
    assert stats.sign_flip_test(halves).two_sided == pytest.approx(exact, abs=0.01)


def test_no_difference_gives_p_of_one() -> None:
    assert stats.sign_flip_test(np.zeros(5)).two_sided == 1


def test_benjamini_hochberg_is_scipys(generator: np.random.Generator) -> None:
    p_values = generator.uniform(0, 1, 30) ** 2
    assert stats.benjamini_hochberg(p_values) == pytest.approx(scipy_stats.false_discovery_control(p_values))
    assert len(stats.benjamini_hochberg(np.array([]))) == 0


def test_equivalence_is_two_one_sided_tests(generator: np.random.Generator) -> None:
    differences = generator.normal(0.02, 0.5, 100)
    lower = scipy_stats.ttest_1samp(differences, -0.15, alternative="greater").pvalue
    upper = scipy_stats.ttest_1samp(differences, 0.15, alternative="less").pvalue
    assert stats.equivalence_p(stats.paired_interval(differences), 0.15) == pytest.approx(max(lower, upper))


def test_binary_equivalence_agrees_with_the_interval_in_large_samples() -> None:
    by_interval = stats.equivalence_p(stats.bonett_price(60, 55, 2000), 0.02)
    assert stats.binary_equivalence_p(60, 55, 2000, 0.02) == pytest.approx(by_interval, abs=0.002)
    assert stats.binary_equivalence_p(55, 60, 2000, 0.02) == stats.binary_equivalence_p(60, 55, 2000, 0.02)
    assert stats.binary_equivalence_p(0, 0, 100, 0.02) == pytest.approx(scipy_stats.norm.sf(2 / math.sqrt(100 * 0.02 * 0.98)))


def test_equivalence_needs_a_variance_and_a_margin() -> None:
    assert stats.equivalence_p(stats.paired_interval(np.array([0.0])), 0.1) == 1
    assert stats.equivalence_p(stats.paired_interval(np.zeros(3)), 0.0) == 1
    assert stats.equivalence_p(stats.paired_interval(np.zeros(3)), 0.1) == 0


def test_documents_needed_follows_the_flip_rate() -> None:
    assert stats.documents_needed(0.08, 0.01) == 4944


def test_log_ratio_of_perplexities(generator: np.random.Generator) -> None:
    weights = generator.integers(5, 50, 60).astype(float)
    baseline = -3.0 * weights + generator.normal(0, 1, 60)
    ratio = stats.log_ratio(baseline, baseline - 0.1 * weights, weights)
    assert ratio.value == pytest.approx(0.1) and ratio.low == pytest.approx(0.1) and ratio.high == pytest.approx(0.1)
    noisy = stats.log_ratio(baseline, baseline + generator.normal(0, 1, 60), weights)
    assert noisy.low < 0 < noisy.high


class TestMiddle:
    """Metrics whose best value lies in the middle."""

    def test_nearer_is_better_from_either_side(self, generator: np.random.Generator) -> None:
        noise = generator.normal(0, 0.2, 100)
        for side in (1.0, -1.0):
            result = stats.middle_best_test(side + noise, 0.5 * side + noise, 0.0)
            assert result.improvement == pytest.approx(0.5, abs=0.05) and result.p_value < 0.001

    def test_a_mirrored_score_is_no_improvement(self, generator: np.random.Generator) -> None:
        baseline = 1 + generator.normal(0, 0.2, 100)
        result = stats.middle_best_test(baseline, baseline - 2, 0.0)
        assert abs(result.improvement) < 0.1 and result.p_value > 0.01

    def test_moving_away_is_worse(self, generator: np.random.Generator) -> None:
        baseline = 0.5 + generator.normal(0, 0.1, 100)
        result = stats.middle_best_test(baseline, baseline + 0.3, 0.5)
        assert result.improvement < 0 and result.p_value < 0.001

    def test_shares_of_choices(self) -> None:
        baseline = np.array([1.0] * 80 + [0.0] * 20)
        recipe = np.array([1.0] * 55 + [0.0] * 45)
        result = stats.middle_best_test(baseline, recipe, 0.5)
        assert result.improvement == pytest.approx(0.25) and result.p_value < 0.001


def test_bootstrap_of_counts_finds_a_difference_of_means(generator: np.random.Generator) -> None:
    counts = np.array([60, 10, 25, 5])  # (before, after): 00, 01, 10, 11
    estimate, tails = stats.bootstrap_counts(counts, lambda c: (c[:, 1] - c[:, 2]) / c.sum(axis=1))
    assert estimate.value == pytest.approx(-0.15)
    price = stats.bonett_price(25, 10, 100)
    assert (estimate.low, estimate.high) == pytest.approx((price.low, price.high), abs=0.02)
    assert tails.two_sided == pytest.approx(stats.mid_p_mcnemar(25, 10).two_sided, abs=0.02)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(20260102)


# Simulated error rates. Each cell: documents, flip rate (no true difference).
SMALL_GRID = [(50, 0.1), (300, 0.04)]
LARGE_GRID = [(count, rate) for count in (20, 50, 100, 300, 1000, 3000) for rate in (0.02, 0.08, 0.2, 0.5)]


def flips(generator: np.random.Generator, count: int, rate: float, draws: int) -> Iterator[tuple[int, int]]:
    """Lost and gained documents of `draws` pairs without a true difference."""
    for lost, gained, _ in generator.multinomial(count, [rate / 2, rate / 2, 1 - rate], size=draws):
        yield int(lost), int(gained)


def binary_rates(generator: np.random.Generator, count: int, rate: float, draws: int) -> tuple[float, float]:
    """(false alarms of the test, coverage of the interval) at nominal 5 % and 95 %."""
    alarms = covered = 0
    cache: dict[tuple[int, int], tuple[bool, bool]] = {}
    for pair in flips(generator, count, rate, draws):
        if pair not in cache:
            estimate = stats.bonett_price(*pair, count)
            cache[pair] = stats.mid_p_mcnemar(*pair).two_sided <= 0.05, estimate.low <= 0 <= estimate.high
        alarms, covered = alarms + cache[pair][0], covered + cache[pair][1]
    return alarms / draws, covered / draws


@pytest.mark.parametrize(("count", "rate"), SMALL_GRID)
def test_binary_error_rates(generator: np.random.Generator, count: int, rate: float) -> None:
    alarms, covered = binary_rates(generator, count, rate, 8_000)
    assert alarms <= 0.055 and covered >= 0.935


@pytest.mark.slow
@pytest.mark.parametrize(("count", "rate"), LARGE_GRID)
def test_binary_error_rates_on_a_large_grid(generator: np.random.Generator, count: int, rate: float) -> None:
    alarms, covered = binary_rates(generator, count, rate, 40_000)
    print(f"n={count} flips={rate}: false alarms {alarms:.4f}, coverage {covered:.4f}")
    assert alarms <= 0.055 and covered >= 0.935


def other_rates(generator: np.random.Generator, kind: str, count: int, draws: int) -> tuple[float, float]:
    """The same for scores that are not binary; `kind` names their distribution."""
    alarms = covered = 0
    for _ in range(draws):
        clusters = None
        if kind == "normal":
            differences = generator.normal(0, 1, count)
        elif kind == "heavy":
            differences = generator.standard_t(3, count)
        elif kind == "mostly zero":
            differences = generator.normal(0, 1, count) * (generator.uniform(size=count) < 0.2)
        else:
            clusters = np.repeat(np.arange(count // 5), 5)
            differences = generator.normal(0, 1, count // 5)[clusters] + generator.normal(0, 1, len(clusters))
        estimate = stats.paired_interval(differences, clusters)
        alarms += stats.sign_flip_test(differences, clusters, draws=999).two_sided <= 0.05
        covered += estimate.low <= 0 <= estimate.high
    return alarms / draws, covered / draws


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "heavy", "mostly zero", "clustered"])
@pytest.mark.parametrize("count", [40, 160])
def test_other_error_rates(generator: np.random.Generator, kind: str, count: int) -> None:
    draws = 4_000
    alarms, covered = other_rates(generator, kind, count, draws)
    print(f"{kind} n={count}: false alarms {alarms:.4f}, coverage {covered:.4f}")
    noise = 2.5 * math.sqrt(0.05 * 0.95 / draws)
    assert alarms <= 0.05 + noise and covered >= 0.935


def middle_alarms(generator: np.random.Generator, before: float, after: float, count: int, draws: int) -> float:
    """How often the middle test rejects although both means are equally far from 0."""
    rejected = 0
    for _ in range(draws):
        shared = generator.normal(0, 1, count)
        baseline, recipe = before + shared + generator.normal(0, 0.5, count), after + shared + generator.normal(0, 0.5, count)
        moved, sides = recipe - baseline, baseline + recipe
        p_values = [scipy_stats.ttest_1samp(x, 0).pvalue for x in (moved, sides)]  # as sign flips, but fast
        rejected += max(p_values) <= 0.05
    return rejected / draws


@pytest.mark.parametrize(("before", "after"), [(1.0, 1.0), (0.0, 0.0), (0.4, -0.4), (0.1, 0.1)])
def test_middle_test_keeps_its_level(generator: np.random.Generator, before: float, after: float) -> None:
    assert middle_alarms(generator, before, after, 60, 1_200) <= 0.055 + 0.01  # 0.01: noise of 1,200 draws


@pytest.mark.slow
@pytest.mark.parametrize("count", [30, 160])
@pytest.mark.parametrize(("before", "after"), [(1.0, 1.0), (0.0, 0.0), (0.4, -0.4), (0.1, 0.1), (0.1, -0.1)])
def test_middle_test_keeps_its_level_on_a_large_grid(generator: np.random.Generator, count: int, before: float, after: float) -> None:
    rate = middle_alarms(generator, before, after, count, 10_000)
    print(f"middle n={count} {before}/{after}: false alarms {rate:.4f}")
    assert rate <= 0.055


def false_sames(generator: np.random.Generator, count: int, rate: float, margin: float, draws: int) -> float:
    """How often a true drop as large as the margin passes as equivalent at 5 %."""
    shares = [(rate + margin) / 2, (rate - margin) / 2, 1 - rate]
    passed = sum(
        stats.binary_equivalence_p(int(lost), int(gained), count, margin) <= 0.05
        for lost, gained, _ in generator.multinomial(count, shares, size=draws)
    )
    return passed / draws


@pytest.mark.parametrize(("count", "rate"), [(200, 0.05), (1000, 0.1)])
def test_false_equivalence(generator: np.random.Generator, count: int, rate: float) -> None:
    assert false_sames(generator, count, rate, 0.02, 4_000) <= 0.055


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, 300, 1000, 3000])
@pytest.mark.parametrize("rate", [0.02, 0.03, 0.08, 0.3])
def test_false_equivalence_on_a_large_grid(generator: np.random.Generator, count: int, rate: float) -> None:
    found = false_sames(generator, count, rate, 0.02, 40_000)
    print(f"same n={count} flips={rate}: {found:.4f}")
    assert found <= 0.062  # .061 in the one extreme where every flip is a loss and 300 documents allow only coarse steps
