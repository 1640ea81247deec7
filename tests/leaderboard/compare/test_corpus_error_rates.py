"""How often verdicts on metrics of a whole corpus err, by simulation: F1 and MCC over sizes and flip rates, BLEU on
made-up texts. The promise and the tables are those of `test_error_rates`.
"""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from leaderboard import metrics
from leaderboard import statistics as stats
from leaderboard.compare import corpus_metrics
from leaderboard.compare.judge_corpus import _corpora
from tests.leaderboard.compare.test_corpus_text_metrics import WORDS, judged, texts
from tests.leaderboard.statistics.test_error_rates import NOMINAL, Rates, keep_the_promise, noise, table

ANSWERS = [json.dumps([gold, prediction]) for gold in (0, 1) for prediction in (0, 1)]
RIGHT = 0.75


def chances(rate: float, positives: float, down: float) -> np.ndarray:
    """`[8]` by (gold, before, after): a share `rate` of answers flips, a share `down` of the flips from right to wrong;
    both classes alike.
    """
    lost, gained = rate * down, rate * (1 - down)
    found = np.zeros((2, 2, 2))
    for gold, share in ((0, 1 - positives), (1, positives)):
        found[gold, gold, 1 - gold], found[gold, 1 - gold, gold] = share * lost, share * gained
        found[gold, gold, gold], found[gold, 1 - gold, 1 - gold] = share * (RIGHT - lost), share * (1 - RIGHT - gained)
    return found.ravel()


def drawn(generator: np.random.Generator, metric: str, count: int, shares: np.ndarray) -> stats.Corpora:
    """A sample of documents."""
    kinds, cells = np.repeat(np.arange(8), generator.multinomial(count, shares)), np.eye(4)
    before, after = (cells[2 * (kinds // 4) + which] for which in (kinds // 2 % 2, kinds % 2))
    return _corpora(
        corpus_metrics.contributions(metric, ANSWERS, ANSWERS)._replace(before=before, after=after), 1.0, None
    )


def drop(metric: str, shares: np.ndarray) -> float:
    """The true one."""
    cube = shares.reshape(2, 2, 2)
    before, after = (getattr(metrics, metric)(cube.sum(axis=axis)[None])[0] for axis in (2, 1))
    return float(before - after)


def with_drop(metric: str, rate: float, positives: float, margin: float) -> np.ndarray | None:
    """The chances with a true drop of the margin; None where so few flips cannot make it."""
    least, most = 0.5, 1.0
    for _ in range(40):
        down = (least + most) / 2
        least, most = (down, most) if drop(metric, chances(rate, positives, down)) < margin else (least, down)
    return chances(rate, positives, most) if most < 1 else None


def cell(
    generator: np.random.Generator, metric: str, count: int, rate: float, positives: float, margin: float, draws: int
) -> Rates | None:
    """No true drop for the tests and one coverage, a true drop of the margin for false passes and the other. None where
    so few flips cannot make it.
    """
    harm = alarms = covered = passed = covered_at = 0
    equal, worse = chances(rate, positives, 0.5), with_drop(metric, rate, positives, margin)
    if worse is None:
        return None
    for seed in range(draws):
        pair = drawn(generator, metric, count, equal)
        tails, estimate = (
            stats.corpus_test(pair, seed=seed, draws=499),
            stats.corpus_interval(pair, seed=seed, draws=299),
        )
        harm, alarms, covered = (
            harm + (tails.less <= NOMINAL),
            alarms + (tails.two_sided <= NOMINAL),
            covered + (estimate.low <= 0 <= estimate.high),
        )
        estimate = stats.corpus_interval(drawn(generator, metric, count, worse), seed=seed, draws=299)
        passed, covered_at = (
            passed + (stats.within_p(estimate, margin) <= NOMINAL),
            covered_at + (estimate.low <= -margin <= estimate.high),
        )
    return Rates(
        f"{metric}, n={count} flips={rate:.0%} positive={positives:.0%} margin={margin:.0%}",
        harm / draws,
        alarms / draws,
        passed / draws,
        min(covered, covered_at) / draws,
    )


@pytest.mark.slow
def test_f1_and_mcc(generator: np.random.Generator) -> None:
    cells = [("f1", 100, 0.1, 0.4, 0.02), ("mcc", 50, 0.3, 0.4, 0.05)]
    keep_the_promise(
        table("F1 and MCC", filter(None, (cell(generator, *options, draws=600) for options in cells))), noise(600)
    )


@pytest.mark.long
@pytest.mark.parametrize("metric", ["f1", "mcc"])
def test_f1_and_mcc_on_the_whole_grid(metric: str, generator: np.random.Generator) -> None:
    cells = [
        *itertools.product((50, 200, 1000), (0.02, 0.05, 0.2, 0.3), (0.1, 0.5), (0.02, 0.05)),
        (5000, 0.05, 0.5, 0.02),
    ]
    keep_the_promise(
        table(metric, filter(None, (cell(generator, metric, *options, draws=400) for options in cells))), noise(400)
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 200])
def test_bleu(count: int, generator: np.random.Generator) -> None:
    """Three answers of ten are garbled anew, as much as they were: other answers, and no true difference."""
    harm = alarms = covered = 0
    for _ in range(300):
        before = texts(generator, count, 0.25)
        again = [
            [
                reference,
                " ".join(
                    str(generator.choice(WORDS)) if generator.random() < 0.25 else word for word in reference.split()
                ),
            ]
            for reference, _ in before
        ]
        effect = judged("bleu", before, [new if generator.random() < 0.3 else old for old, new in zip(before, again)])
        harm, alarms, covered = (
            harm + (effect.p_worse <= NOMINAL),
            alarms + (effect.p_value <= NOMINAL),
            covered + (effect.low <= 0 <= effect.high),
        )
    keep_the_promise(
        table("BLEU", [Rates(f"BLEU, n={count}", harm / 300, alarms / 300, None, covered / 300)]), noise(300)
    )


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(20260103)
