"""Intervals of two scores by themselves: they cover what they promise, and stay within what is possible."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from leaderboard.statistics.unpaired import Aggregate, is_share, own_limits, unpaired_interval, unpaired_p_worse

SHARES = (0.002, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.998)


def share(hits: float, count: int, error: float | None = None) -> Aggregate:
    return Aggregate(hits / count, error, count, 0.0, 1.0)


def errors(count: int, before: float, after: float, confidence: float) -> tuple[float, float]:
    """How often the true difference of two shares lies below, and above, the interval: exact."""
    limits = [own_limits(share(hits, count), confidence) for hits in range(count + 1)]
    assert all(limits)
    score = np.arange(count + 1) / count
    low = np.array([one.low for one in limits if one])
    high = np.array([one.high for one in limits if one])
    difference = score[None] - score[:, None]
    lower = difference - np.hypot((score - low)[None], (high - score)[:, None])
    upper = difference + np.hypot((high - score)[None], (score - low)[:, None])
    chance = binom.pmf(np.arange(count + 1), count, before)[:, None] * binom.pmf(np.arange(count + 1), count, after)
    truth = after - before
    return float(chance[truth < lower - 1e-12].sum()), float(chance[truth > upper + 1e-12].sum())


@pytest.mark.parametrize("count", [10, 11, 20, 47, 100, 300])
def test_shares_are_covered(count: int) -> None:
    """At least 95 % of the time; and by a gate's one-sided limits, at differences that a margin may have."""
    pairs = list(itertools.combinations_with_replacement(SHARES, 2))
    both = [sum(errors(count, *pair, 0.95)) for pair in pairs]
    near = [max(errors(count, *pair, 0.90)) for pair in pairs if pair[1] - pair[0] <= 0.5]
    assert max(both) <= 0.05 and max(near) <= 0.05


def test_the_formula_is_the_one_of_the_exact_test() -> None:
    """`errors` above combines limits by itself: the same numbers."""
    before, after = share(13, 40), share(29, 40)
    own = own_limits(before), own_limits(after)
    span = unpaired_interval(before, after)
    assert own[0] and own[1] and span
    assert span.low == pytest.approx(0.4 - math.hypot(0.725 - own[1].low, own[0].high - 0.325))
    assert span.high == pytest.approx(0.4 + math.hypot(own[1].high - 0.725, 0.325 - own[0].low))


Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
PARTIAL: dict[str, Draw] = {
    "spread": lambda g, size: g.beta(0.1, 0.1, size),
    "mostly good": lambda g, size: g.beta(8, 2, size),
    "5 % collapse": lambda g, size: np.where(g.random(size) < 0.05, 0.0, g.uniform(0.85, 0.95, size)),
    "1 % lose most": lambda g, size: np.where(g.random(size) < 0.01, 0.3, 1.0),
}
HEAVY: dict[str, Draw] = {
    "log-normal": lambda g, size: np.exp(g.normal(0, 1, size)),
    "2 % collapse": lambda g, size: np.exp(g.normal(0, 0.5, size)) * np.where(g.random(size) < 0.02, 30, 1),
    "narrow": lambda g, size: g.normal(1, 0.05, size),
}


def coverage(draws: tuple[Draw, Draw], count: int, ends: tuple[float, float], seed: int) -> float:
    generator = np.random.default_rng(seed)
    truths = [float(draw(generator, (2_000, 1_000)).mean()) for draw in draws]
    runs = [draw(generator, (1_500, count)) for draw in draws]
    hits = 0
    for pair in zip(*runs):
        aggregates = [Aggregate(float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5), len(x), *ends) for x in pair]
        span = unpaired_interval(*aggregates)
        assert span is not None
        hits += span.low <= truths[1] - truths[0] <= span.high
    return hits / 1_500


@pytest.mark.slow
@pytest.mark.parametrize("count", [12, 100])
def test_partial_credit_is_covered(count: int) -> None:
    pairs = itertools.product(PARTIAL, repeat=2)
    found = {
        names: coverage((PARTIAL[names[0]], PARTIAL[names[1]]), count, (0.0, 1.0), seed)
        for seed, names in enumerate(pairs)
    }
    assert min(found.values()) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 1_500), found


@pytest.mark.slow
def test_scores_without_bounds_are_covered_from_300_documents_on() -> None:
    pairs = itertools.product(HEAVY, repeat=2)
    found = {
        names: coverage((HEAVY[names[0]], HEAVY[names[1]]), 300, (-math.inf, math.inf), seed)
        for seed, names in enumerate(pairs)
    }
    assert min(found.values()) >= 0.95, found
    assert unpaired_interval(Aggregate(2.0, 0.1, 299), Aggregate(3.0, 0.1, 299)) is None


def test_documents_in_common_only_make_it_safer() -> None:
    """Paired answers that agree 80 % of the time: covered more often than 95 %, never less."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2_000):
        before = generator.random(60) < 0.7
        after = np.where(generator.random(60) < 0.8, before, generator.random(60) < 0.7)
        span = unpaired_interval(share(before.sum(), 60), share(after.sum(), 60))
        hits += span is not None and span.low <= 0 <= span.high
    assert hits / 2_000 >= 0.99


@pytest.mark.parametrize("hits", list(itertools.product([0, 1, 25, 49, 50], repeat=2)))
def test_it_has_a_width_stays_possible_and_mirrors(hits: tuple[int, int]) -> None:
    before, after = (share(one, 50) for one in hits)
    span, mirrored = unpaired_interval(before, after), unpaired_interval(after, before)
    assert span and mirrored
    assert -1 <= span.low <= after.score - before.score <= span.high <= 1 and span.high - span.low > 0.05
    assert mirrored == pytest.approx((-span.high, -span.low))


def test_a_reported_error_of_a_share_changes_nothing_and_another_does() -> None:
    exact = math.sqrt(0.3 * 0.7 / 39)
    alone, with_error, clustered = (own_limits(share(12, 40, error)) for error in (None, exact, 2 * exact))
    assert alone == with_error == own_limits(share(12, 40, 0.0)) and alone and clustered
    assert clustered.high - clustered.low > 1.5 * (alone.high - alone.low)
    assert is_share(share(12, 40, exact)) and not is_share(share(12, 40, 1.001 * exact))


@pytest.mark.parametrize(
    "run",
    [
        Aggregate(0.5, 0.05, None, 0.0, 1.0),
        Aggregate(0.5, 0.1, 9, 0.0, 1.0),
        Aggregate(30.0, None, 5_000, 1.0),
        Aggregate(30.0, 0.0, 5_000, 1.0),
        Aggregate(30.0, math.nan, 5_000, 1.0),
        Aggregate(0.5, None, 500, 0.0, 1.0, is_mean=False),
        Aggregate(math.nan, 0.1, 500),
    ],
)
def test_what_carries_no_interval_has_none(run: Aggregate) -> None:
    other = Aggregate(0.4, 0.03, 500, 0.0, 1.0)
    assert unpaired_interval(other, run) is None and unpaired_interval(run, other) is None
    assert unpaired_p_worse(other, run, 1.0) is None


def test_limits_of_a_perplexity_stay_above_one() -> None:
    limits = own_limits(Aggregate(1.05, 0.2, 400, 1.0, math.inf, is_mean=False))
    assert limits and limits.low == 1.0 and limits.high > 1.3


@pytest.mark.parametrize(("hits", "sign"), [((80, 60), 1.0), ((60, 80), -1.0)])
def test_the_p_value_is_the_level_at_which_the_interval_ends_at_zero(hits: tuple[int, int], sign: float) -> None:
    before, after = (share(one, 100) for one in hits)
    p_worse = unpaired_p_worse(before, after, sign)
    assert p_worse is not None and 1e-4 < p_worse < 0.02
    span = unpaired_interval(before, after, 1 - 2 * p_worse)
    assert span and (span.high if sign > 0 else span.low) == pytest.approx(0, abs=1e-4)
    assert unpaired_p_worse(before, after, -sign) == 1.0
