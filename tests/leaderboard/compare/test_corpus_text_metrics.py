"""BLEU, chrF and TER: the bootstrap's counts against sacrebleu on the texts themselves, and the words on the board."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from leaderboard import metrics
from leaderboard.compare import corpus_text_metrics
from leaderboard.compare.corpus_metrics import NoTest
from leaderboard.compare.effect import Comparison, Effect, Scored
from leaderboard.compare.judge import judge

sacrebleu = pytest.importorskip("sacrebleu")
METRICS = [name for name, metric in metrics.METRICS.items() if metric.kind is metrics.Kind.TEXT]
TEXT = "the a small old red house dog cat man saw ran to from under near and then it was not very quickly away"
WORDS = TEXT.split()


@pytest.fixture
def generator() -> np.random.Generator:
    """Seeded."""
    return np.random.default_rng(0)


def texts(generator: np.random.Generator, count: int, garbled: float) -> list[list[Any]]:
    """`[reference, answer]` pairs; each word of an answer is another than the reference's with probability
    `garbled`.
    """
    found = []
    for _ in range(count):
        words = list(generator.choice(WORDS, int(generator.integers(6, 18))))
        answer = [str(generator.choice(WORDS)) if generator.random() < garbled else word for word in words]
        found.append([" ".join(words), " ".join(answer)])
    return found


def corpus_score(metric: str, pairs: list[list[Any]]) -> float:
    """As lm-eval computes it: from the texts, all at once."""
    return float(
        getattr(sacrebleu, f"corpus_{metric}")(
            [answer for _, answer in pairs], [[reference for reference, _ in pairs]]
        ).score
    )


def scored(metric: str, pairs: list[list[Any]]) -> Scored:
    return Scored(corpus_score(metric, pairs), np.full(len(pairs), np.nan), None, [json.dumps(pair) for pair in pairs])


def judged(metric: str, before: list[list[Any]], after: list[list[Any]], **options: Any) -> Effect:
    return judge(
        Comparison(metric, scored(metric, before), scored(metric, after), higher_is_better=metric != "ter", **options)
    )


@pytest.mark.parametrize("metric", METRICS)
def test_sums_of_counts_give_the_score_of_any_resampled_corpus(metric: str, generator: np.random.Generator) -> None:
    pairs = texts(generator, 30, 0.3)
    parts = [json.dumps(pair) for pair in pairs]
    found = corpus_text_metrics.contributions(metric, parts, parts)
    for _ in range(10):
        drawn = generator.integers(0, 30, 30)
        score = found.score(found.before[drawn].sum(axis=0, keepdims=True))[0]
        assert score == pytest.approx(corpus_score(metric, [pairs[i] for i in drawn]), rel=1e-12)
    nothing = found.score(np.round(30 * found.wrong)[None])[0]
    assert nothing == pytest.approx(corpus_score(metric, [[reference, ""] for reference, _ in pairs]), abs=1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_a_garbled_answer_is_worse_whichever_way_the_metric_runs(metric: str, generator: np.random.Generator) -> None:
    before = texts(generator, 120, 0.2)
    after = [[reference, " ".join(answer.split()[: -len(answer.split()) // 3])] for reference, answer in before]
    effect = judged(metric, before, after, limits_at=0.05)
    assert (
        effect.improvement < 0
        and effect.p_value < 0.01
        and effect.p_worse < 0.01
        and effect.drop > effect.margin == 2.0
    )
    assert (
        effect.low < effect.delta < effect.high
        and not effect.low <= 0 <= effect.high
        and effect.drop_low < effect.drop < effect.drop_high
    )
    same = judged(metric, before, before)
    assert (same.delta, same.p_value) == (0.0, 1.0) and same.low < 0 < same.high


@pytest.mark.slow
def test_the_interval_is_that_of_a_bootstrap_over_texts(generator: np.random.Generator) -> None:
    before = texts(generator, 60, 0.2)
    after = [
        [reference, " ".join(reversed(answer.split())) if i % 4 == 0 else answer]
        for i, (reference, answer) in enumerate(before)
    ]
    effect = judged("bleu", before, after)
    draws = [generator.integers(0, 60, 60) for _ in range(400)]
    found = [
        corpus_score("bleu", [after[i] for i in drawn]) - corpus_score("bleu", [before[i] for i in drawn])
        for drawn in draws
    ]
    assert (effect.low, effect.high) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])), abs=1.5)


def test_clusters_are_drawn_whole(generator: np.random.Generator) -> None:
    before = texts(generator, 90, 0.2)
    after = [[reference, reference if i // 30 == 1 else answer] for i, (reference, answer) in enumerate(before)]
    wide, narrow = (judged("chrf", before, after, clusters=clusters) for clusters in (np.arange(90) // 30, None))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize("part", ["not JSON", "[1, 2]", '["a"]', '["a", ["b", "c"]]', '[[], "b"]', "{}"])
def test_samples_of_another_form_have_no_test(part: str) -> None:
    with pytest.raises(NoTest, match="no paired test of bleu"):
        corpus_text_metrics.contributions("bleu", ['["a", "b"]'] * 2, ['["a", "b"]', part])


def test_several_references() -> None:
    parts = [json.dumps([["the old red house", "a red house"], ["the red house was old"]])] * 3
    found = corpus_text_metrics.contributions("bleu", parts, parts)
    expected = sacrebleu.corpus_bleu(
        ["the red house was old"] * 3, [["the old red house"] * 3, ["a red house"] * 3]
    ).score
    assert found.score(found.before.sum(axis=0, keepdims=True))[0] == pytest.approx(expected)


def test_a_score_that_the_texts_do_not_give_and_a_missing_library_are_said(
    generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = texts(generator, 9, 0.1)
    run = scored("bleu", pairs)
    effect = judge(Comparison("bleu", run, replace(run, score=12.0), higher_is_better=True))
    assert effect.p_value is None and effect.notes == ("the reported score cannot be recomputed from its samples",)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert "where sacrebleu is installed" in judge(Comparison("bleu", run, run, higher_is_better=True)).notes[0]
