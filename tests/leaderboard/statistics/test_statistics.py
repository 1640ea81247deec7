"""The formulas against scipy, statsmodels and hand-made numbers. Their error rates are in `test_error_rates`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from leaderboard import statistics as stats

BOUNDS = stats.MiddleBounds(2.5, 4.0)
"""Of scores about one from their best value."""


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
    assert (estimate.low, estimate.high) == pytest.approx(
        (up - down - 1.02 * 1.959964 * error, up - down + 1.02 * 1.959964 * error)
    )


def test_the_score_interval_is_that_of_scipy() -> None:
    counts = np.repeat([1, 2, 9, 100, 5000], 6)
    hits = np.round(counts * np.tile([0.0, 0.01, 0.3, 0.5, 0.99, 1.0], 5)).astype(int)
    for confidence in (0.9, 0.95):
        limits = stats.wilson(hits, counts, confidence)
        expected = [
            scipy_stats.binomtest(int(hit), int(count)).proportion_ci(confidence, method="wilson")
            for hit, count in zip(hits, counts)
        ]
        np.testing.assert_allclose(limits.low, [each.low for each in expected], atol=1e-12)
        np.testing.assert_allclose(limits.high, [each.high for each in expected], atol=1e-12)
        assert (limits.low >= 0).all() and (limits.high <= 1).all() and (limits.high > limits.low).all()


def test_paired_interval_is_that_of_the_one_sample_t_test(generator: np.random.Generator) -> None:
    differences = generator.normal(0.1, 1, 40)
    expected = scipy_stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    estimate = stats.paired_interval(differences)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_clustered_error_is_that_of_statsmodels(generator: np.random.Generator) -> None:
    linear_model = pytest.importorskip("statsmodels.regression.linear_model")
    clusters = np.repeat(np.arange(20), generator.integers(1, 9, 20))
    differences = generator.normal(0, 1, 20)[clusters] + generator.normal(0, 1, len(clusters))
    fit = linear_model.OLS(differences, np.ones(len(differences))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    assert stats.standard_error(differences, clusters)[0] == pytest.approx(fit.bse[0] * math.sqrt(20 / 19))


def test_clusters_of_one_change_nothing(generator: np.random.Generator) -> None:
    differences = generator.normal(0, 1, 50)
    assert stats.paired_interval(differences, np.arange(50)) == pytest.approx(stats.paired_interval(differences))


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
    assert stats.binary_equivalence_p(0, 0, 100, 0.02) == pytest.approx(0.98**100)


def test_equivalence_needs_a_variance_and_a_margin() -> None:
    assert stats.equivalence_p(stats.paired_interval(np.array([0.0])), 0.1) == 1
    assert stats.equivalence_p(stats.paired_interval(np.zeros(3)), 0.0) == 1
    assert stats.equivalence_p(stats.paired_interval(np.zeros(3)), 0.1) == 0


class TestMiddle:
    """Metrics whose best value lies in the middle."""

    def test_nearer_is_better_from_either_side(self, generator: np.random.Generator) -> None:
        noise = generator.normal(0, 0.2, 100)
        for side in (1.0, -1.0):
            result = stats.middle_best_test(side + noise, 0.5 * side + noise, 0.0, None, BOUNDS)
            assert result.improvement == pytest.approx(0.5, abs=0.05) and result.p_value < 0.001

    def test_a_mirrored_score_is_no_improvement(self, generator: np.random.Generator) -> None:
        baseline = 1 + generator.normal(0, 0.2, 100)
        result = stats.middle_best_test(baseline, baseline - 2, 0.0, None, BOUNDS)
        assert abs(result.improvement) < 0.1 and result.p_value > 0.01

    def test_moving_away_is_worse(self, generator: np.random.Generator) -> None:
        baseline = 0.5 + generator.normal(0, 0.1, 100)
        result = stats.middle_best_test(baseline, baseline + 0.3, 0.5, None, stats.MiddleBounds(1, 1))
        assert result.improvement < 0 and result.p_value < 0.001

    def test_shares_of_choices(self) -> None:
        baseline = np.array([1.0] * 80 + [0.0] * 20)
        recipe = np.array([1.0] * 55 + [0.0] * 45)
        result = stats.middle_best_test(baseline, recipe, 0.5, None, stats.MiddleBounds(1, 1))
        assert result.improvement == pytest.approx(0.25) and result.p_value < 0.001

    def test_limits_are_those_of_the_difference_where_the_sides_are_certain(self) -> None:
        baseline = np.array([1.0] * 800 + [0.0] * 200)
        recipe = np.array([1.0] * 750 + [0.0] * 250)
        moved = stats.bonett_price(*stats.count_flips(recipe - baseline))
        for first, second, best in ((baseline, recipe, 0.5), (1 - baseline, 1 - recipe, 0.5)):
            own = stats.bonett_price(*stats.count_flips(second - first))
            limits = stats.middle_limits((own.low, own.high), first, second, best, None, stats.MiddleBounds(1, 1))
            assert limits == pytest.approx((-moved.high, -moved.low))

    def test_a_recipe_beyond_the_best_value_gains_no_more_than_it_is_nearer(self) -> None:
        """From 80 to 22 %: nearer to one half by 2 points, not by 58."""
        baseline = np.array([1.0] * 800 + [0.0] * 200)
        recipe = np.array([1.0] * 220 + [0.0] * 780)
        moved = stats.bonett_price(*stats.count_flips(recipe - baseline))
        low, high = stats.middle_limits((moved.low, moved.high), baseline, recipe, 0.5, None, stats.MiddleBounds(1, 1))
        assert -0.05 < low < 0.02 < high < 0.08

    def test_limits_cover_the_improvement_wherever_the_baseline_stands(self, generator: np.random.Generator) -> None:
        """At the best value, near it, and where the recipe crosses it; taking the baseline's own score for the truth
        covered 52 % of such, and no less than the 93.5 % of Bonett-Price is promised.
        """
        draws = 2_000
        for share, lost, gained, count in (
            (0.5, 0.2, 0.05, 200), (0.52, 0.1, 0.1, 40), (0.55, 0.2, 0.05, 200), (0.6, 0.2, 0.05, 200),
            (0.6, 0.4, 0.1, 40), (0.7, 0.4, 0.1, 200), (0.5, 0.4, 0.02, 60),
        ):  # fmt: skip
            after = share * (1 - lost) + (1 - share) * gained
            improvement = abs(share - 0.5) - abs(after - 0.5)
            held = 0
            for _ in range(draws):
                baseline = (generator.random(count) < share).astype(float)
                chance = generator.random(count)
                recipe = np.where(baseline == 1, chance >= lost, chance < gained).astype(float)
                moved = stats.bonett_price(*stats.count_flips(recipe - baseline))
                low, high = stats.middle_limits(
                    (moved.low, moved.high), baseline, recipe, 0.5, None, stats.MiddleBounds(1, 1)
                )
                held += low <= improvement <= high
            assert held / draws > 0.935 - 3 * (0.935 * 0.065 / draws) ** 0.5, (share, lost, gained, count, held / draws)


def corpora(before: np.ndarray, after: np.ndarray, added: float = 1.0) -> stats.Corpora:
    """A corpus metric that is the mean of `[n]` scores: counts are (score, 1)."""
    ones, two = np.ones(len(before)), np.array([[added, 1.0], [0.0, 1.0]])
    return stats.Corpora(
        np.column_stack([before, ones]),
        np.column_stack([after, ones]),
        lambda sums: sums[:, 0] / sums[:, 1],
        two,
        two[::-1],
    )


def test_of_a_mean_the_corpus_interval_is_bonett_prices() -> None:
    before, after = np.repeat([0.0, 0.0, 1.0, 1.0], [60, 10, 25, 5]), np.repeat([0.0, 1.0, 0.0, 1.0], [60, 10, 25, 5])
    estimate, tails, price = (
        stats.corpus_interval(corpora(before, after), draws=20_000),
        stats.corpus_test(corpora(before, after)),
        stats.bonett_price(25, 10, 100),
    )
    assert estimate.value == price.value and estimate.degrees == 37
    assert (estimate.low + estimate.high) / 2 == pytest.approx(
        (price.low + price.high) / 2
    ) and estimate.standard_error == pytest.approx(price.standard_error, rel=0.03)
    exact = scipy_stats.binomtest(10, 35).pvalue
    assert (
        tails.two_sided == pytest.approx(exact, rel=0.2)
        and tails.less == pytest.approx(exact / 2, rel=0.2)
        and tails.greater > 0.99
    )


def test_the_corpus_test_is_scipys_permutation_test(generator: np.random.Generator) -> None:
    before, after = generator.normal(0, 1, 40), generator.normal(0.2, 1, 40)
    tails = stats.corpus_test(corpora(before, after))
    for side, found in (("less", tails.less), ("greater", tails.greater), ("two-sided", tails.two_sided)):
        expected = scipy_stats.permutation_test(
            (after, before),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            alternative=side,
            vectorized=True,
            n_resamples=9_999,
            rng=generator,
        )
        assert found == pytest.approx(expected.pvalue, abs=0.02)


def test_the_error_of_the_corpus_interval_is_scipys_bootstrap(generator: np.random.Generator) -> None:
    before, after = generator.normal(0, 1, 300), generator.normal(0.2, 1, 300)
    expected = scipy_stats.bootstrap((after - before,), np.mean, method="percentile", rng=generator).standard_error
    assert stats.corpus_interval(corpora(before, after)).standard_error == pytest.approx(expected, rel=0.05)


def test_a_corpus_in_which_nothing_changed_still_has_an_interval() -> None:
    same = corpora(np.ones(50), np.ones(50))
    estimate, tails = stats.corpus_interval(same), stats.corpus_test(same)
    assert (
        estimate.low < -0.02
        and estimate.high > 0.02
        and tails == (1.0, 1.0, 1.0)
        and stats.equivalence_p(estimate, 0.02) > 0.05
    )


def test_holm_is_that_of_statsmodels(generator: np.random.Generator) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = generator.uniform(0, 1, 25) ** 3
    assert stats.holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])
    assert stats.benjamini_hochberg(p_values) == pytest.approx(multitest.multipletests(p_values, method="fdr_bh")[1])
    assert len(stats.holm(np.array([]))) == 0 and stats.holm(np.array([0.01, 0.04])) == pytest.approx([0.02, 0.04])


def on_margin(lost: int, gained: int, count: int, margin: float) -> tuple[float, float]:
    """(the likeliest share of gained documents where the drop is `margin`, the score statistic there), the likelihood
    maximised on a grid.
    """
    shares = np.linspace(0, (1 - margin) / 2, 200_001)[1:-1]
    likelihood = (
        lost * np.log(shares + margin)
        + gained * np.log(shares)
        + (count - lost - gained) * np.log(1 - 2 * shares - margin)
    )
    share = float(shares[np.argmax(likelihood)])
    return share, (lost - gained - count * margin) / math.sqrt(count * (2 * share + margin - margin**2))


def by_enumeration(lost: int, gained: int, count: int, margin: float) -> float:
    """The E p-value from its definition: over every possible outcome."""
    (share, observed), total = on_margin(lost, gained, count, margin), 0.0
    for down in range(count + 1):
        for up in range(count + 1 - down):
            if on_margin(down, up, count, margin)[1] <= observed + 1e-3:
                total += scipy_stats.multinomial.pmf(
                    [down, up, count - down - up], count, [share + margin, share, 1 - 2 * share - margin]
                )
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (2, 1), (1, 4)])
def test_the_margin_test_is_its_definition(lost: int, gained: int) -> None:
    assert stats.binary_within_p(lost, gained, 14, 0.2) == pytest.approx(
        by_enumeration(lost, gained, 14, 0.2), abs=2e-3
    )


def test_the_margin_test_without_gains_is_binomial() -> None:
    for lost, count, margin in ((0, 50, 0.02), (2, 300, 0.02), (1, 150, 0.05)):
        assert stats.binary_within_p(lost, 0, count, margin) == pytest.approx(
            scipy_stats.binom.cdf(lost, count, margin)
        )


def test_the_margin_test_is_normal_where_there_are_many_flips() -> None:
    assert stats.binary_within_p(900, 900, 9000, 0.02) == pytest.approx(
        scipy_stats.norm.cdf(on_margin(900, 900, 9000, 0.02)[1]), rel=1e-3
    )
    just_under, just_over = stats.binary_within_p(70, 60, 3000, 0.02), stats.binary_within_p(73, 63, 3000, 0.02)
    assert just_under == pytest.approx(just_over, rel=0.35)  # no jump where the exact sum gives way to the normal limit


def test_drop_limits_are_what_the_margin_test_excludes() -> None:
    for lost, gained, count in ((0, 0, 100), (9, 4, 300), (4, 30, 500), (40, 2, 200), (300, 280, 5000)):
        high, low = (
            stats.binary_drop_limit(lost, gained, count, 0.05),
            -stats.binary_drop_limit(gained, lost, count, 0.05),
        )
        assert low < (lost - gained) / count < high
        if high > 0:
            assert (
                stats.binary_within_p(lost, gained, count, high)
                <= 0.05
                < stats.binary_within_p(lost, gained, count, high - 2e-6)
            )
    # the rule of three
    assert stats.binary_drop_limit(0, 0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100), abs=2e-6)
    assert stats.binary_drop_limit(4, 30, 500, 0.05) < 0


def test_choice_divergence_is_scipys_entropy(generator: np.random.Generator) -> None:
    baseline, recipe = generator.normal(-20, 3, 4), generator.normal(-20, 3, 4)
    softmax = [np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (baseline, recipe)]
    assert stats.choice_divergence(baseline, recipe) == pytest.approx(scipy_stats.entropy(*softmax))
    assert stats.choice_divergence(baseline, baseline + 3) == pytest.approx(0, abs=1e-12)
    assert stats.choice_divergence(np.array([0.0, 0.0]), np.array([0.0, -np.inf])) == math.inf
    assert stats.choice_divergence(np.array([0.0, -np.inf]), np.array([0.0, -1.0])) == pytest.approx(
        math.log(1 + math.exp(-1))
    )


def test_suite_by_hand() -> None:
    parts = [stats.SuitePart(2, 0.03, 0.01, 0.05, 0.012, math.inf), stats.SuitePart(1, -0.01, -0.04, 0.03, 0.017, 30)]
    found = stats.suite(parts)
    assert found.drop == pytest.approx((2 * 0.03 - 0.01) / 3)
    assert found.standard_error == pytest.approx(math.hypot(2 * 0.012, 0.017) / 3)
    assert found.high - found.drop == pytest.approx(
        math.hypot(2 * 0.02, 0.04) / 3
    ) and found.drop - found.low == pytest.approx(math.hypot(2 * 0.02, 0.03) / 3)
    assert stats.suite(parts, 0.001).drop - stats.suite(parts, 0.001).low == pytest.approx(
        found.standard_error * scipy_stats.t.isf(0.001, found.degrees)
    )
    assert (
        found.p_worse == pytest.approx(scipy_stats.t.sf(found.drop / found.standard_error, found.degrees))
        and found.degrees > 30
    )
    with pytest.raises(ValueError, match="weight above zero"):
        stats.suite([])


def test_suite_of_two_t_intervals_is_welchs(generator: np.random.Generator) -> None:
    first, second = generator.normal(0, 1, 20), generator.normal(0, 2, 30)
    expected = scipy_stats.ttest_ind(first, second, equal_var=False, alternative="greater")
    parts = [
        stats.SuitePart(1, e.value, 0, 0, e.standard_error, e.degrees)
        for e in (stats.paired_interval(first), stats.paired_interval(-second))
    ]
    found = stats.suite(parts)
    assert (found.degrees, found.p_worse) == pytest.approx((expected.df, expected.pvalue))


class TestMiddleOneSided:
    """Whether a distance to the best value grew, and by less than a margin."""

    def test_growth_is_worse_and_shrinking_is_not(self, generator: np.random.Generator) -> None:
        noise, other = generator.normal(0, 0.2, 200), generator.normal(0, 0.2, 200)
        for side in (1.0, -1.0):
            grew = stats.middle_best_test(0.5 * side + noise, 0.8 * side + other, 0.0, None, BOUNDS)
            shrank = stats.middle_best_test(0.8 * side + noise, 0.5 * side + other, 0.0, None, BOUNDS)
            assert grew.p_worse < 0.001 < 0.5 < shrank.p_worse

    def test_within_a_margin(self, generator: np.random.Generator) -> None:
        noise, other = generator.normal(0, 0.2, 400), generator.normal(0, 0.2, 400)
        assert stats.MiddleMargin(1 + noise, 1.02 + other, 0.0, None, BOUNDS).within_p(0.1) < 0.01
        assert stats.MiddleMargin(1 + noise, 1.2 + other, 0.0, None, BOUNDS).within_p(0.1) > 0.5
        # crossed, and as far away as before: the distance did not grow
        assert stats.MiddleMargin(1 + noise, -1.02 + other, 0.0, None, BOUNDS).within_p(0.1) < 0.01
        assert stats.MiddleMargin(noise, 0.3 + other, 0.0, None, BOUNDS).within_p(0.1) > 0.5


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(20260102)


@pytest.mark.parametrize("flips", [(0, 60), (60, 0), (1, 80), (0, 300)])
def test_the_tail_of_a_clear_win_is_a_probability(flips: tuple[int, int]) -> None:
    from scipy.stats import binom

    lost, gained = flips
    tails = stats.mid_p_mcnemar(lost, gained)
    small = min(lost, gained)
    expected = binom.cdf(small, lost + gained, 0.5) - binom.pmf(small, lost + gained, 0.5) / 2
    assert min(tails.less, tails.greater) == pytest.approx(expected, rel=1e-9) and min(tails.less, tails.greater) > 0
