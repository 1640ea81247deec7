"""How often the verdicts err, by simulation: false alarms without a difference, false passes at the margin, coverage of
the intervals.

The promise: at a nominal 5 % at most 5.5 % false alarms and false passes, and intervals that cover at least 93.5 %. The
tables are printed (`pytest -s`, or `-rP`). The default grid is small; the marker `slow` runs sample sizes 50 to 5,000
and flip rates 1 to 30 % with 60,000 draws a cell where answers are right or wrong (a standard error of 0.09 points),
and thousands elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pytest

from leaderboard import statistics as stats

DRAWS = 60_000
MOST, LEAST = 0.055, 0.935
NOMINAL = 0.05


class Rates(NamedTuple):
    """Of one cell: what it is, and the shares of draws in which the test of harm, the two-sided test and the margin
    test reject, and the interval covers.
    """

    cell: str
    harm: float | None = None
    difference: float | None = None
    passed: float | None = None
    covered: float | None = None


def table(title: str, rows: Iterable[Rates]) -> list[Rates]:
    """Print the rows, and give them back."""
    found = list(rows)
    print(f"\n{title}\n{'':44} {'harm':>8} {'two-sided':>10} {'passes':>8} {'covers':>8}")
    for row in found:
        cells = " ".join(
            f"{'-' if value is None else f'{value:.4f}':>{width}}" for value, width in zip(row[1:], (8, 10, 8, 8))
        )
        print(f"{row.cell:44} {cells}")
    return found


def keep_the_promise(rows: Iterable[Rates], slack: float = 0.0) -> None:
    """Every rate of every row within its bound. `slack`: for the noise of fewer draws."""
    for row in rows:
        for value in (row.harm, row.difference, row.passed):
            assert value is None or value <= MOST + slack, row
        assert row.covered is None or row.covered >= LEAST - slack, row


def expected(
    lost: float, gained: float, count: int, generator: np.random.Generator, judge: Callable[[int, int], Iterable[bool]]
) -> np.ndarray:
    """The shares of draws in which each of `judge(lost, gained)`'s answers is true; every outcome is judged once."""
    drawn = generator.multinomial(count, [lost, gained, 1 - lost - gained], size=DRAWS)[:, :2]
    outcomes, times = np.unique(drawn, axis=0, return_counts=True)
    answers = np.array([list(judge(int(down), int(up))) for down, up in outcomes], dtype=float)
    return times @ answers / DRAWS


def right_or_wrong(generator: np.random.Generator, count: int, rate: float, margin: float) -> Rates:
    """A binary cell: no true drop for the tests and one coverage, a true drop of the margin for false passes and the
    other.
    """

    def no_drop(lost: int, gained: int) -> Iterable[bool]:
        tails, estimate = stats.mid_p_mcnemar(lost, gained), stats.bonett_price(lost, gained, count)
        return tails.less <= NOMINAL, tails.two_sided <= NOMINAL, estimate.low <= 0 <= estimate.high

    harm, difference, covered = expected(rate / 2, rate / 2, count, generator, no_drop)
    passed = None
    if rate >= margin:

        def at_margin(lost: int, gained: int) -> Iterable[bool]:
            estimate = stats.bonett_price(lost, gained, count)
            return (
                stats.binary_within_p(lost, gained, count, margin) <= NOMINAL,
                estimate.low <= -margin <= estimate.high,
            )

        passed, other = expected((rate + margin) / 2, (rate - margin) / 2, count, generator, at_margin)
        covered = min(covered, other)
    return Rates(f"right or wrong, n={count} flips={rate:.0%} margin={margin:.0%}", harm, difference, passed, covered)


COUNTS, RATES, MARGINS = (50, 100, 200, 300, 500, 1000, 2000, 5000), (0.01, 0.02, 0.05, 0.1, 0.2, 0.3), (0.01, 0.02)


@pytest.mark.slow
def test_right_or_wrong(generator: np.random.Generator) -> None:
    cells = [(50, 0.1, 0.02), (300, 0.02, 0.02), (100, 0.05, 0.01), (1000, 0.08, 0.01)]
    keep_the_promise(table("right or wrong answers", (right_or_wrong(generator, *cell) for cell in cells)))


@pytest.mark.long
def test_right_or_wrong_on_the_whole_grid(generator: np.random.Generator) -> None:
    keep_the_promise(
        table(
            "right or wrong answers",
            (right_or_wrong(generator, *cell) for cell in itertools.product(COUNTS, RATES, MARGINS)),
        )
    )


@pytest.mark.slow
def test_false_passes_where_every_flip_is_a_loss(generator: np.random.Generator) -> None:
    """The hardest case for a score statistic: few, coarse steps."""
    cells = [
        (count, margin) for count in (60, 75, 120, 150, 220, 300, 450, 600, 1200, 3000) for margin in (0.01, 0.02, 0.05)
    ]
    keep_the_promise(
        table("every flip a loss", (right_or_wrong(generator, count, margin, margin) for count, margin in cells))
    )


def coverage(count: int, lost: float, gained: float) -> float:
    """The exact coverage of the Bonett-Price interval: a sum over all outcomes that have a chance."""
    from scipy.special import gammaln, xlogy

    def likely(share: float) -> np.ndarray:
        spread = math.sqrt(count * share * (1 - share))
        return np.arange(
            max(0, int(count * share - 9 * spread - 9)), min(count, int(count * share + 9 * spread + 14)) + 1
        )

    down, up = np.meshgrid(likely(lost), likely(gained), indexing="ij")
    rest = np.maximum(count - down - up, 0)
    log_mass = (
        gammaln(count + 1)
        - gammaln(down + 1)
        - gammaln(up + 1)
        - gammaln(rest + 1)
        + xlogy(down, lost)
        + xlogy(up, gained)
        + xlogy(rest, 1 - lost - gained)
    )
    outcomes = [
        (int(a), int(b), float(mass))
        for a, b, mass in zip(down.ravel(), up.ravel(), np.exp(log_mass).ravel())
        if a + b <= count and mass > 1e-9
    ]
    intervals = [(stats.bonett_price(a, b, count), mass) for a, b, mass in outcomes]
    return sum(mass for interval, mass in intervals if interval.low <= gained - lost <= interval.high)


def test_coverage_where_it_is_worst() -> None:
    worst = {
        cell: coverage(*cell)
        for cell in ((57, 0.1, 0.0), (393, 0.015, 0.0), (218, 0.02, 0.0), (197, 0.03, 0.0), (600, 0.01, 0.0))
    }
    print("\nexact coverage of the interval, documents, share lost, share gained:", worst)
    assert min(worst.values()) >= LEAST


@pytest.mark.long
def test_coverage_on_the_whole_grid() -> None:
    counts = [*range(50, 400, 14), 450, 600, 800, 1000, 1500]
    cells = [
        (n, f * (1 + k) / 2, f * (1 - k) / 2)
        for n in counts
        for f in (0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
        for k in (0, 0.6, 0.9, 1)
    ]
    found = sorted((coverage(*cell), *cell) for cell in cells)
    print("\nthe least exact coverages, with documents, share lost, share gained:", *found[:8], sep="\n")
    assert found[0][0] >= LEAST


def clustered(
    generator: np.random.Generator,
    groups: int,
    size: int,
    rate: float,
    drop: float,
    together: float,
    draws: int,
    *,
    unequal: bool = False,
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Differences and clusters: a cluster's documents flip all together with probability `together`, else each by
    itself.
    """
    shares = [(rate + drop) / 2, (rate - drop) / 2]
    for _ in range(draws):
        sizes = np.maximum(1, generator.geometric(1 / size, groups)) if unequal else np.full(groups, size)
        clusters = np.repeat(np.arange(groups), sizes)
        as_one, alone = (
            generator.choice([-1.0, 1.0, 0.0], size=n, p=[*shares, 1 - rate]) for n in (groups, len(clusters))
        )
        yield np.where((generator.random(groups) < together)[clusters], as_one[clusters], alone), clusters


def clusters_cell(
    generator: np.random.Generator,
    groups: int,
    size: int,
    rate: float,
    margin: float,
    together: float,
    unequal: bool,
    draws: int,
) -> Rates:
    """A cell of clustered right or wrong answers."""
    harm = covered = passed = covered_at = 0
    for differences, names in clustered(generator, groups, size, rate, 0.0, together, draws, unequal=unequal):
        sample = stats.clipped_sample(differences, 1.0, names)
        harm += stats.clipped_tails(sample).less <= NOMINAL
        estimate = stats.clipped_interval(sample)
        covered += estimate.low <= 0 <= estimate.high
    for differences, names in clustered(generator, groups, size, rate, margin, together, draws, unequal=unequal):
        sample = stats.clipped_sample(differences, 1.0, names)
        passed += stats.clipped_within_p(sample, margin) <= NOMINAL
        estimate = stats.clipped_interval(sample)
        covered_at += estimate.low <= -margin <= estimate.high
    cell = (
        f"{groups} clusters of {'about ' if unequal else ''}{size}, {together:.0%} as one, flips={rate:.0%}"
        f" margin={margin:.0%}"
    )
    return Rates(cell, harm / draws, None, passed / draws, min(covered, covered_at) / draws)


def noise(draws: int) -> float:
    """Three standard errors of a rate of 5.5 %."""
    return 3 * math.sqrt(0.055 * 0.945 / draws)


@pytest.mark.slow
def test_clusters(generator: np.random.Generator) -> None:
    cells = [(30, 5, 0.1, 0.05, 1.0, False), (60, 5, 0.05, 0.05, 0.5, True)]
    keep_the_promise(table("clusters", (clusters_cell(generator, *cell, draws=800) for cell in cells)), noise(800))


@pytest.mark.long
@pytest.mark.parametrize("groups", [10, 30, 100, 400])
def test_clusters_on_the_whole_grid(generator: np.random.Generator, groups: int) -> None:
    grid = itertools.product((5, 10), (0.02, 0.1, 0.3), (0.02, 0.05), (0.0, 0.5, 1.0), (False, True))
    cells = [(groups, *cell) for cell in grid if cell[1] >= cell[2]]
    draws = 2_000 if groups < 400 else 600
    keep_the_promise(table("clusters", (clusters_cell(generator, *cell, draws=draws) for cell in cells)), noise(draws))


def partial(generator: np.random.Generator, count: int, rate: float, drop: float) -> np.ndarray:
    """Differences of scores with partial credit: a share `rate` of documents changes, half of them wholly, with a mean
    of `-drop`.
    """
    size = generator.choice([1.0, 0.2], size=count)
    down = 0.5 + drop / (2 * rate * 0.6)
    return np.where(generator.random(count) < rate, np.where(generator.random(count) < down, -size, size), 0.0)


def partial_cell(generator: np.random.Generator, count: int, rate: float, margin: float, draws: int) -> Rates:
    """A cell of partial credit."""
    harm = passed = covered = covered_at = 0
    for _ in range(draws):
        sample = stats.clipped_sample(partial(generator, count, rate, 0.0), 1.0)
        harm += stats.clipped_tails(sample).less <= NOMINAL
        estimate = stats.clipped_interval(sample)
        covered += estimate.low <= 0 <= estimate.high
        sample = stats.clipped_sample(partial(generator, count, rate, margin), 1.0)
        passed += stats.clipped_within_p(sample, margin) <= NOMINAL
        estimate = stats.clipped_interval(sample)
        covered_at += estimate.low <= -margin <= estimate.high
    return Rates(
        f"partial credit, n={count} changed={rate:.0%} margin={margin:.0%}",
        harm / draws,
        None,
        passed / draws,
        min(covered, covered_at) / draws,
    )


@pytest.mark.slow
def test_partial_credit(generator: np.random.Generator) -> None:
    keep_the_promise(table("partial credit", [partial_cell(generator, 200, 0.05, 0.02, 800)]), noise(800))


@pytest.mark.long
def test_partial_credit_on_the_whole_grid(generator: np.random.Generator) -> None:
    cells = itertools.product((50, 200, 1000), (0.05, 0.1, 0.3), (0.01, 0.02))
    keep_the_promise(
        table("partial credit", (partial_cell(generator, *cell, draws=4_000) for cell in cells)), noise(4_000)
    )


def other_cell(generator: np.random.Generator, kind: str, count: int, draws: int) -> Rates:
    """Scores without bounds, clipped at 0.8 standard deviations of theirs; `kind` names the distribution."""
    alarms = harm = covered = 0
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
        sample = stats.clipped_sample(differences, 0.8, clusters)
        estimate, tails = stats.clipped_interval(sample), stats.clipped_tails(sample)
        alarms, harm = alarms + (tails.two_sided <= NOMINAL), harm + (tails.less <= NOMINAL)
        covered += estimate.low <= 0 <= estimate.high
    return Rates(f"{kind}, n={count}", harm / draws, alarms / draws, None, covered / draws)


@pytest.mark.slow
def test_other_scores(generator: np.random.Generator) -> None:
    cells = itertools.product(("normal", "heavy", "mostly zero", "clustered"), (50, 160))
    keep_the_promise(table("other scores", (other_cell(generator, *cell, draws=4_000) for cell in cells)), noise(4_000))


def middle_cell(generator: np.random.Generator, before: float, after: float, count: int, draws: int) -> Rates:
    """A metric best at 0: `before` and `after` equally far from it for the tests, 0.2 farther off for false passes of
    that margin.
    """
    differ = worse = passed = 0
    bounds = stats.MiddleBounds(4.0, 6.0)
    for _ in range(draws):
        shared = generator.normal(0, 1, count)
        baseline, recipe = (mean + shared + generator.normal(0, 0.5, count) for mean in (before, after))
        _, p_value, p_worse = stats.middle_best_test(baseline, recipe, 0.0, None, bounds)
        differ, worse = differ + (p_value <= NOMINAL), worse + (p_worse <= NOMINAL)
        farther = recipe + math.copysign(0.2, after)
        passed += stats.MiddleMargin(baseline, farther, 0.0, None, bounds).within_p(0.2) <= NOMINAL
    return Rates(f"best in the middle, {before} to {after}, n={count}", worse / draws, differ / draws, passed / draws)


@pytest.mark.slow
def test_best_in_the_middle(generator: np.random.Generator) -> None:
    cells = [(1.0, 1.0), (0.0, 0.0), (0.4, -0.4)]
    keep_the_promise(
        table("best in the middle", (middle_cell(generator, *cell, count=60, draws=1_000) for cell in cells)),
        noise(1_000),
    )


@pytest.mark.long
def test_best_in_the_middle_on_the_whole_grid(generator: np.random.Generator) -> None:
    cells = [
        (*means, count)
        for means in ((1.0, 1.0), (0.0, 0.0), (0.4, -0.4), (0.1, 0.1), (0.1, -0.1))
        for count in (50, 160)
    ]
    keep_the_promise(
        table("best in the middle", (middle_cell(generator, *cell, draws=10_000) for cell in cells)), noise(10_000)
    )


def suite_cell(generator: np.random.Generator, tasks: int, count: int, rate: float, margin: float, draws: int) -> Rates:
    """A suite of equal binary tasks."""
    parts: dict[tuple[int, int], stats.SuitePart] = {}

    def one(drop: float) -> stats.Suite:
        drawn = generator.multinomial(count, [(rate + drop) / 2, (rate - drop) / 2, 1 - rate], size=tasks)[:, :2]
        for lost, gained in (tuple(map(int, row)) for row in drawn):
            if (lost, gained) not in parts:
                low, high = (
                    -stats.binary_drop_limit(gained, lost, count, NOMINAL),
                    stats.binary_drop_limit(lost, gained, count, NOMINAL),
                )
                parts[lost, gained] = stats.SuitePart(
                    1,
                    (lost - gained) / count,
                    low,
                    high,
                    stats.bonett_price(lost, gained, count).standard_error,
                    math.inf,
                )
        return stats.suite([parts[tuple(map(int, row))] for row in drawn])

    at_zero, at_margin = [one(0.0) for _ in range(draws)], [one(margin) for _ in range(draws)]
    harm, passed = (
        sum(found) / draws for found in ([s.p_worse <= NOMINAL for s in at_zero], [s.high < margin for s in at_margin])
    )
    below, above = (
        sum(side) / draws for side in ([s.low > margin for s in at_margin], [s.high < margin for s in at_margin])
    )
    return Rates(
        f"suite of {tasks}, n={count} flips={rate:.0%} margin={margin:.0%}",
        harm,
        None,
        max(passed, below),
        1 - (below + above) / 2,
    )


@pytest.mark.slow
def test_suites(generator: np.random.Generator) -> None:
    keep_the_promise(table("suites", [suite_cell(generator, 3, 300, 0.05, 0.01, 1_500)]), noise(1_500))


@pytest.mark.long
def test_suites_on_the_whole_grid(generator: np.random.Generator) -> None:
    cells = [
        (tasks, count, rate, margin)
        for tasks, count, rate, margin in itertools.product((2, 5), (50, 300, 2000), (0.01, 0.05, 0.2), (0.01, 0.02))
        if rate >= margin
    ]
    keep_the_promise(table("suites", (suite_cell(generator, *cell, draws=5_000) for cell in cells)), noise(5_000))


def perplexity_cell(generator: np.random.Generator, count: int, draws: int) -> Rates:
    """Texts of unequal length: no true difference, and one of the margin."""
    harm = passed = covered = 0
    for _ in range(draws):
        words = generator.integers(5, 60, count).astype(float)
        change = generator.normal(0, 0.3, count) * np.sqrt(words)
        sample = stats.clipped_sample(change, 20 * 0.02, weights=words)
        estimate = stats.clipped_interval(sample)
        covered += estimate.low <= 0 <= estimate.high
        harm += stats.clipped_tails(sample).less <= NOMINAL
        sample = stats.clipped_sample(change - 0.02 * words, 20 * 0.02, weights=words)
        passed += stats.clipped_within_p(sample, 0.02) <= NOMINAL
    return Rates(f"perplexity, n={count}", harm / draws, None, passed / draws, covered / draws)


@pytest.mark.slow
def test_perplexities(generator: np.random.Generator) -> None:
    keep_the_promise(
        table("perplexities", (perplexity_cell(generator, count, 4_000) for count in (50, 300))), noise(4_000)
    )


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(20260102)
