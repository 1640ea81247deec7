"""Whether the promised number of documents decides as often as promised, by simulation.

The promise: with that many documents the verdict is reached in 80 % of cases. The tables are printed (`pytest -s`, or
`-rP`). A number that is too small breaks the promise; one that is too large only costs documents, which happens where
very few flips decide, because they come in whole ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from leaderboard import statistics as stats
from leaderboard.compare import needs

MARGIN = 0.02
LEAST, MOST = 0.765, 0.875
MOST_OF_FEW = 0.975
"""Where fewer than about 30 flips decide."""
FLIPS = (0.01, 0.02, 0.05, 0.1, 0.2)
SIZES = (5, 20, 50)

Rejected = Callable[[int, int], bool]


class Promise(NamedTuple):
    """What was promised, with how many documents, and the share of draws that kept it; `expected`: the promised one."""

    claim: str
    flips: float
    documents: int
    share: float
    expected: float = stats.POWER


def show(title: str, found: list[Promise]) -> list[Promise]:
    """Print a table."""
    print(f"\n{title}\n{'':46} {'flips':>6} {'documents':>10} {'decided':>9} {'promised':>9}")
    for row in found:
        print(f"{row.claim:46} {row.flips:6.0%} {row.documents:10,} {row.share:9.3f} {row.expected:9.3f}")
    return found


def holds(found: list[Promise], noise: float) -> None:
    """Every promise kept, and none by far too many documents."""
    for row in found:
        few = row.flips * row.documents < 40
        low, high = (LEAST, MOST_OF_FEW if few else MOST) if row.expected == stats.POWER else (row.expected - 0.02, 1.0)
        assert low - noise <= row.share <= high + noise, row


def decided(lost: float, gained: float, count: int, draws: int, rejected: Rejected) -> float:
    """The share of `draws` samples of `count` documents in which `rejected(lost, gained)`."""
    generator = np.random.default_rng(20260704)
    drawn = generator.multinomial(count, [lost, gained, 1 - lost - gained], size=draws)[:, :2]
    outcomes, times = np.unique(drawn, axis=0, return_counts=True)
    answers = np.array([rejected(int(down), int(up)) for down, up in outcomes], dtype=float)
    return float(times @ answers) / draws


def families(
    flips: float, count: int, comparisons: int, draws: int, p_value: Callable[[int, int], float]
) -> np.ndarray:
    """p-values `[draws, comparisons]` of samples in which nothing changed on average."""
    generator = np.random.default_rng(20260705)
    drawn = generator.multinomial(count, [flips / 2, flips / 2, 1 - flips], size=draws * comparisons)[:, :2]
    outcomes, places = np.unique(drawn, axis=0, return_inverse=True)
    values = np.array([p_value(int(down), int(up)) for down, up in outcomes])
    return values[places.ravel()].reshape(draws, comparisons)


def same_p(count: int) -> Callable[[int, int], float]:
    """The p-value of *same*."""
    return lambda lost, gained: stats.binary_equivalence_p(lost, gained, count, MARGIN)


def needed(flips: float, level: float, sides: int, share: float = stats.POWER) -> int:
    """The promised number, where nothing changes on average."""
    found = stats.documents_for((stats.flip_side(flips / 2, flips / 2, MARGIN),) * sides, level, share)
    assert found is not None
    return found


def alone(flips: float, draws: int) -> list[Promise]:
    """PASS of one row, *same* of one comparison, *same* of the only one that is, among many."""
    rows = [Promise("PASS, one row", flips, (n := needed(flips, 0.05, 1)), _passes(flips, n, draws))]
    for claim, level in (("same, alone", 0.05), *((f"same, only one of {k}", 0.05 / k) for k in SIZES)):
        count = needed(flips, level, 2)
        p_value = same_p(count)
        share = decided(flips / 2, flips / 2, count, draws, lambda down, up: p_value(down, up) <= level)  # noqa: B023
        rows.append(Promise(claim, flips, count, share))
    return rows


def _passes(flips: float, count: int, draws: int) -> float:
    return decided(
        flips / 2, flips / 2, count, draws, lambda down, up: stats.binary_within_p(down, up, count, MARGIN) <= 0.05
    )


def boards(flips: float, families_drawn: int) -> list[Promise]:
    """*Same* on a board of comparisons that are all alike: the share of cells."""
    rows = []
    for comparisons in SIZES:
        count = needed(flips, 0.05 * stats.POWER, 2)
        p_values = families(flips, count, comparisons, families_drawn, same_p(count))
        share = float(np.mean([stats.benjamini_hochberg(family) <= 0.05 for family in p_values]))
        rows.append(Promise(f"same, board of {comparisons} alike", flips, count, share))
    return rows


def gates(flips: float, draws: int) -> list[Promise]:
    """A gate of rows that all pass: the share of gates."""
    rows = []
    for comparisons in SIZES:
        count = needed(flips, 0.05, 1, stats.POWER ** (1 / comparisons))
        share = _passes(flips, count, draws) ** comparisons  # rows are independent
        rows.append(Promise(f"gate of {comparisons}, all pass", flips, count, share))
    return rows


def differences(flips: float, part: float, draws: int) -> list[Promise]:
    """*Better* by `part` of the flips, alone and as the only one of many: the test and the interval, as the board has
    it. Then harm at a gate, after Holm.
    """
    drop = part * flips
    lost, gained = (flips - drop) / 2, (flips + drop) / 2
    side = stats.changed_side(lost, gained)
    rows = []
    for words, level in (
        ("better, alone", 0.025),
        *((f"better, only one of {k}", 0.025 / k) for k in SIZES),
        *((f"harm, gate of {k}", 0.05 / k) for k in SIZES),
    ):
        count = stats.documents_for((side,), level)
        assert count is not None
        by_interval = words.startswith("better")

        def rejected(down: int, up: int) -> bool:
            low = stats.bonett_price(down, up, count).low if by_interval else 1.0  # noqa: B023
            return stats.mid_p_mcnemar(down, up).greater <= level and low > 0  # noqa: B023

        rows.append(
            Promise(
                f"{words}, {part:.0%} of flips one way", flips, count, decided(lost, gained, count, draws, rejected)
            )
        )
    return rows


@pytest.mark.slow
def test_the_documents_promised_decide() -> None:
    found = [*alone(0.05, 4_000)[:2], *differences(0.05, 0.5, 4_000)[:1], *boards(0.1, 60)[:1], *gates(0.05, 4_000)[:1]]
    holds(show("documents promised", found), 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("flips", FLIPS)
def test_the_documents_promised_for_same_and_pass_decide(flips: float) -> None:
    found = [*alone(flips, 20_000), *boards(flips, 400), *gates(flips, 20_000)]
    holds(show("same and PASS, if nothing changed", found), 0.015)


@pytest.mark.slow
@pytest.mark.parametrize("flips", FLIPS)
def test_the_documents_promised_for_a_difference_decide(flips: float) -> None:
    found = [row for part in (0.2, 0.5, 0.9) for row in differences(flips, part, 20_000)]
    holds(show("better and harm", found), 0.01)


def skewed(kind: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """Differences `[count]` within [-1, 1], of mean about 0."""
    if kind == "heavy tails":
        return np.clip(generator.standard_t(2.5, count) * 0.15, -1, 1)
    if kind == "5 % collapse":
        return np.where(
            generator.random(count) < 0.05, -generator.uniform(0.2, 1, count), generator.normal(0, 0.05, count)
        )
    if kind == "thirds":
        steps = generator.choice([-1, -2 / 3, -1 / 3, 1 / 3, 2 / 3, 1], count)
        return np.where(generator.random(count) < 0.1, steps, 0.0)
    return np.clip(-generator.lognormal(0, 1, count) * 0.08, -1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heavy tails", "5 % collapse", "thirds", "log-normal"])
def test_the_documents_promised_by_the_clipped_rule_decide(kind: str) -> None:
    clipped = pytest.importorskip("leaderboard.statistics.clipped")
    generator = np.random.default_rng(20260706)
    mean, found = float(np.mean(skewed(kind, 400_000, generator))), []
    for margin in (0.05, 0.02):
        pilot = skewed(kind, 4_000, generator) - mean
        kept = needs.of_clipped(clipped.standardised, pilot, margin, 1.0)
        for claim, sides, level in (
            ("PASS, one row", kept.within[:1], 0.05),
            ("same, alone", kept.within, 0.05),
            ("same, only one of 20", kept.within, 0.05 / 20),
        ):
            count = stats.documents_for(sides, level)
            assert count is not None
            times = 0
            for _ in range(400):
                drawn = skewed(kind, count, generator) - mean
                samples = (clipped.clipped_sample(side, 1.0) for side in (drawn, -drawn)[: len(sides)])
                times += max(clipped.clipped_within_p(sample, margin) for sample in samples) <= level
            found.append(Promise(f"{claim}, {kind}, margin {margin}", 0.0, count, times / 400))
    for row in show("the clipped rule", found):
        assert 0.7 <= row.share <= 0.91, row  # of 400: their noise is two points
