"""How often *collapsed* is said of models that did not collapse and of models that did, simulated and printed."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
import pytest

from leaderboard.compare.collapse import BOUND, collapse_signs
from leaderboard.store.answer_samples import AnswerSamples, ChanceLevels, Likelihoods, RightAnswers, TextLikelihoods


class Made(NamedTuple):
    """Samples of one task as `AnswerSamples` has them: log-likelihoods lost `[n]`, or right answers before and after
    `[n]` of so many choices."""

    drops: np.ndarray | None = None
    right: tuple[np.ndarray, np.ndarray] | None = None
    guessing: float = 0.25

    def likelihoods(self, *_: str) -> list[Likelihoods]:
        if self.drops is None:
            return []
        drop = float(np.mean(np.clip(self.drops, -BOUND, BOUND)))
        return [Likelihoods("sums", "perplexity", "none", len(self.drops), drop)]

    def texts(self, *_: object) -> TextLikelihoods:
        assert self.drops is not None
        return TextLikelihoods(np.full(len(self.drops), -4.0), -4.0 - self.drops, np.ones(len(self.drops)), None)

    def answers(self, *_: str) -> list[RightAnswers]:
        if self.right is None:
            return []
        before, after = self.right
        counts = before.sum(), after.sum(), (before & ~after).sum(), (~before & after).sum()
        sizes = len(before), len(before)
        return [RightAnswers("sums", "acc", "none", "multiple_choice", *sizes, *map(int, counts))]

    def choices(self, *_: str) -> ChanceLevels:
        return ChanceLevels(self.guessing, None)


def is_collapsed(made: Made) -> bool:
    return bool(collapse_signs(cast(AnswerSamples, made), "a", "b", "sums"))


def drops(generator: np.random.Generator, kind: str, times: float, count: int) -> np.ndarray:
    """Nats lost a document, on average the log of `times`: spread as in SmolLM2's edits (SD 1), with heavy tails, or
    with one document of twenty lost wholly besides."""
    found = math.log(times) + generator.normal(0, 1, count)
    if kind == "heavy tails":
        found = math.log(times) + generator.standard_t(2.5, count) / math.sqrt(5)
    if kind == "some lost":
        found += np.where(generator.random(count) < 0.05, 50.0, 0.0)
    return found


def share_of_texts(kind: str, times: float, count: int, repetitions: int) -> float:
    generator = np.random.default_rng(int(10 * times) + count)
    hits = [is_collapsed(Made(drops(generator, kind, times, count))) for _ in range(repetitions)]
    return float(np.mean(hits))


def share_of_answers(before: float, after: float, count: int, repetitions: int) -> float:
    """Four choices; a quarter of the answers at chance are right whatever the baseline answered."""
    generator = np.random.default_rng(int(100 * after) + count)
    hits = []
    for _ in range(repetitions):
        first = generator.random(count) < before
        kept = np.where(first, generator.random(count) < after / before, False)
        second = generator.random(count) < after if after <= 0.25 else kept
        hits.append(is_collapsed(Made(right=(first, second))))
    return float(np.mean(hits))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "some lost"])
def test_texts(kind: str) -> None:
    counts, ratios = (10, 20, 50, 100, 300), (1, 2, 3, 5, 8, 15, 30, 100, 1e4)
    table = {times: [share_of_texts(kind, times, count, 400) for count in counts] for times in ratios}
    print(f"\n{kind}: share called collapsed, by documents {counts}")
    for times, shares in table.items():
        print(f"{times:>8g} times worse: " + " ".join(f"{100 * share:5.1f} %" for share in shares))
    harmless = 3 if kind != "some lost" else 2
    assert all(share <= 0.005 for times in ratios if times <= harmless for share in table[times])
    assert all(share >= 0.99 for times in (30, 100, 1e4) for share in table[times][1:])
    assert table[1e4][0] >= 0.99


@pytest.mark.slow
def test_answers() -> None:
    counts, truths = (20, 50, 100, 300, 1000), (0.5, 0.45, 0.4, 0.25)
    table = {after: [share_of_answers(0.5, after, count, 1000) for count in counts] for after in truths}
    print(f"\nfrom 50 % right of four choices: share called collapsed, by documents {counts}")
    for after, shares in table.items():
        print(f"to {100 * after:.0f} %: " + " ".join(f"{100 * share:5.1f} %" for share in shares))
    assert all(share <= 0.01 for after in (0.5, 0.45, 0.4) for share in table[after])
    assert all(share >= 0.75 for share in table[0.25][2:])


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "some lost"])
def test_few_repetitions(kind: str) -> None:
    assert share_of_texts(kind, 2, 50, 30) == 0.0 and share_of_texts(kind, 100, 50, 30) >= 0.9
    assert share_of_answers(0.5, 0.45, 300, 30) == 0.0 and share_of_answers(0.5, 0.25, 300, 30) >= 0.8
