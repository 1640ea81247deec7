"""The rules of claims: their words, and how often they err on data made with a known effect."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard import statistics
from leaderboard.board.cell import Cell
from leaderboard.board.reported import Reported
from leaderboard.compare.effect import Comparison, Scored
from leaderboard.compare.judge_corpus import likelihood_effect
from leaderboard.report.claim_verdict import (
    CLAIM_WORDS,
    SLACK,
    ClaimEffect,
    claimed_effect,
    digits,
    in_units_of,
    measured_effect,
    rounding_of,
    state_of,
)
from leaderboard.report.claim_words import judged_claim, verdict_sentence

SIMULATED = 2000


@pytest.mark.parametrize(
    ("reported", "interval", "beats", "word"),
    [
        (0.80, (0.70, 0.90), True, "supported"),
        (0.80, (0.70, 0.90), False, "partly"),
        (0.80, (0.70, 0.90), None, "partly"),
        (0.80, (0.20, 0.40), True, "partly"),
        (0.80, (0.50, 1.00), True, "partly"),
        (0.20, (0.40, 0.60), True, "partly"),
        (0.80, (-0.05, 0.10), True, "contradicted"),
        (0.80, (-0.60, -0.40), False, "contradicted"),
        (0.05, (-0.02, 0.12), True, "undecided"),
        (-0.33, (-0.35, -0.31), True, "supported"),
        (-0.33, (-0.35, -0.31), False, "partly"),
        (-0.33, (-0.20, -0.10), True, "partly"),
        (-0.33, (-2.00, -1.00), True, "contradicted"),
        (-0.33, (-0.60, -0.10), True, "undecided"),
        # no loss is shown where a large one is reported
        (-0.33, (-0.05, 0.10), True, "contradicted"),
        (-0.33, (0.04, 0.06), False, "contradicted"),
        (0.00, (-0.01, 0.01), True, "supported"),
        (0.00, (-0.10, -0.05), True, "contradicted"),
    ],
)
def test_the_words(reported: float, interval: tuple[float, float], beats: bool | None, word: str) -> None:
    assert state_of(reported, ClaimEffect(sum(interval) / 2, *interval), beats).word == word


@given(
    st.just(0.0) | st.floats(0.001, 2) | st.floats(-2, -0.001),
    st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3)),
    st.sampled_from([True, False, None]),
)
def test_laws(reported: float, ends: tuple[float, float, float], beats: bool | None) -> None:
    low, point, high = sorted(ends)
    state = state_of(reported, ClaimEffect(point, low, high), beats)
    assert state.word in CLAIM_WORDS and state.why
    assert state.word != "supported" or beats
    # what holds the reported effect is never against it
    assert not (low <= reported <= high and state.word == "contradicted")
    # more documents around the reported effect support it in the end
    near = ClaimEffect(reported, reported - 1e-9, reported + 1e-9)
    assert state_of(reported, near, True).word == "supported"


def test_an_interval_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no interval"):
        state_of(0.1, ClaimEffect(0.3, 0.0, 0.2), True)


@pytest.mark.parametrize("documents", [80, 400, 2000])
def test_error_rates(documents: int) -> None:
    """Paired answers, a quarter right before. An effect at the edge of the slack is called supported in at most a
    fortieth of cases, the reported effect contradicted in at most as many; with many documents the truth is found.
    """
    reported = 0.4

    def rate(true_gain: float, word: str) -> float:
        draws = np.random.default_rng(0)
        found = 0
        for _ in range(SIMULATED):
            before = draws.random(documents) < 0.25
            after = np.where(
                before, draws.random(documents) > 0.05, draws.random(documents) < (true_gain + 0.0125) / 0.75
            )
            lost, gained = int((before & ~after).sum()), int((~before & after).sum())
            effect = ClaimEffect(*statistics.bonett_price(lost, gained, documents)[:3])
            found += state_of(reported, effect, True).word == word
        return found / SIMULATED

    assert rate(reported * (1 - SLACK), "supported") <= 0.035
    assert rate(reported, "contradicted") <= 0.025
    assert rate(0.0, "supported") == 0
    if documents == 2000:
        assert rate(reported, "supported") >= 0.95
        assert rate(0.0, "contradicted") >= 0.95


def entry(metric: str = "acc", before: float = 0.1375, after: float = 0.975) -> Reported:
    higher = metric == "acc"
    return Reported(
        "m", "Phi-2", "int_mult", metric, before, after, "s", "p", "src", "paper", higher, ("eigenprune",), ("phi-2",)
    )


CELL = Cell(
    "phi-2", "eigenprune", "run", "int_mult", "acc", "none", 80, 0.14, 0.95, "better",
    delta=0.81, low=0.70, high=0.89, improvement=0.81,
)  # fmt: skip


def test_perplexities_are_compared_as_factors() -> None:
    told = entry("token_perplexity", 5.68, 7.94)
    cell = replace(
        CELL, metric="token_perplexity", higher_is_better=False, baseline_score=20.0, score=28.0,
        delta=8.0, low=7.0, high=9.0, improvement=-8.0,
    )  # fmt: skip
    effect = measured_effect(cell)
    assert effect is not None
    assert effect == pytest.approx((math.log(20 / 28), math.log(20 / 29), math.log(20 / 27)))
    assert claimed_effect(told) == pytest.approx(math.log(5.68 / 7.94))
    assert in_units_of("token_perplexity", effect.point) == "perplexity x 1.4"


def corpus_cell(after: float, spread: float = 0.02, windows: int = 141) -> Cell:
    """A model of a perplexity of 5.68 and its edit on windows of 2,047 predictions, judged as the board judges."""
    made = np.random.default_rng(0)
    words = np.full(windows, 2047.0)
    before = -(math.log(5.68) + made.normal(0, 0.15, windows)) * words
    edited = before - (math.log(after / 5.68) + made.normal(0, spread, windows)) * words
    first, second = (math.exp(-values.sum() / words.sum()) for values in (before, edited))
    found = likelihood_effect(
        Comparison("token_perplexity", Scored(first, before, words), Scored(second, edited, words), False)
    )
    control = replace(CELL, control="random-subspace", metric="token_perplexity", verdict="better")
    return replace(
        CELL, metric="token_perplexity", higher_is_better=False, n=windows, baseline_score=first, score=second,
        delta=found.delta, low=found.low, high=found.high, improvement=found.improvement, clipping=found.clipping,
        verdict="worse", against_controls=(control,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reported", "after", "word"),
    [
        (7.94, 7.94, "supported"),
        (13.73, 13.73, "supported"),
        (20061.0, 20061.0, "supported"),
        (11.14, 11.14, "supported"),
        (7.94, 1e5, "contradicted"),
        (13.73, 1e5, "contradicted"),
        (20061.0, 7.94, "partly"),
        (20061.0, 5.68, "contradicted"),
    ],
)
def test_a_perplexity_is_judged_by_its_plain_mean_however_far_windows_move(
    reported: float, after: float, word: str
) -> None:
    """The board counts a window for half as much again at most, and no paper does."""
    told, cell = entry("token_perplexity", 5.68, reported)._replace(run=CELL.recipe), corpus_cell(after)
    effect = measured_effect(cell)
    assert effect is not None and cell.baseline_score is not None and cell.score is not None
    assert effect.point == pytest.approx(math.log(cell.baseline_score / cell.score))
    assert judged_claim(told, cell).word == word
    without = replace(cell, clipping=cell.clipping and cell.clipping._replace(plain_low=None, plain_high=None))
    assert judged_claim(told, without).word == "undecided"


def test_the_plain_interval_covers_the_factor_that_windows_were_drawn_with() -> None:
    made, inside = np.random.default_rng(1), 0
    for _ in range(400):
        words = made.integers(500, 2047, 40).astype(float)
        before = -2.0 * words
        edited = before - made.normal(1.5, 0.8, 40) * words
        first, second = (math.exp(-values.sum() / words.sum()) for values in (before, edited))
        found = likelihood_effect(
            Comparison("token_perplexity", Scored(first, before, words), Scored(second, edited, words), False)
        ).clipping
        assert found is not None and found.plain_low is not None and found.plain_high is not None
        inside += found.plain_low <= first - first * math.exp(1.5) <= found.plain_high
    assert 0.92 <= inside / 400 <= 0.98


def test_measured_scores_have_four_digits_and_no_exponent() -> None:
    scores = (52489.3, 1234.56, 471.834, 5.6781, 0.137512, 0.00001234, 2.2e8, 0.0)
    told = ("52489", "1235", "471.8", "5.678", "0.1375", "0.00001234", "220000000", "0")
    assert tuple(digits(score) for score in scores) == told
    assert in_units_of("token_perplexity", -math.log(52488 / 2)) == "perplexity x 26244"


def test_printed_scores_are_as_exact_as_their_places() -> None:
    assert rounding_of(entry("acc", 0.196, 0.195)) == pytest.approx(0.001)
    assert rounding_of(entry("acc", 0.1375, 0.975)) == pytest.approx(0.0001)
    assert rounding_of(entry("token_perplexity", 5.68, 7.9)) == pytest.approx(0.005 * (1 / 5.68 + 1 / 7.9))
    told = entry("acc", 0.196, 0.195)._replace(run=CELL.recipe)
    cell = replace(CELL, baseline_score=0.196, score=0.1961, delta=0.0, low=-0.0015, high=0.0005, improvement=-0.0005)
    assert judged_claim(told, cell).word != "contradicted"


@pytest.mark.parametrize(
    ("asked", "written", "same"),
    [
        ("svd:keep={param_fraction: 0.8}", "svd:keep.param_fraction=0.8", True),
        ("a:b=1,keep={rank: 3}", "a:keep.rank=3,b=1", True),
        ("a:layers=[1,2],b=1", "a:b=1,layers=[1,2]", True),
        ("a:keep={rank: 3}", "a:keep={rank: 4}", False),
    ],
)
def test_a_recipe_in_another_form_is_the_one_asked_for(asked: str, written: str, same: bool) -> None:
    told = entry()._replace(run=asked)
    assert (judged_claim(told, replace(CELL, recipe=written)).word != "incomparable") is same


def test_the_sentence() -> None:
    control = replace(
        CELL, control="random-subspace", baseline_score=0.15, delta=0.8, low=0.7, high=0.9, improvement=0.8
    )
    cell = replace(CELL, against_controls=(control,))
    assert verdict_sentence(entry(), cell) == (
        "eigenprune on 80 documents: reported 0.1375 -> 0.975, +0.8375; measured 0.14 -> 0.95, +0.8100 [+0.7000,"
        " +0.8900]; its random-subspace: +0.0100, and the edit against it +0.8000 (better); the claim is supported: as"
        " large as reported, and better than its control"
    )
    assert "as open as before" in verdict_sentence(entry(), cell, is_the_claim=False)
    assert "no control was run" in verdict_sentence(entry(), CELL)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"recipe": "eigenprune:seed=1,fraction=0.2"}, None),
        ({"recipe": "eigenprune:fraction=0.9,seed=1"}, "run as eigenprune:fraction=0.9,seed=1, where eigenprune:"),
        ({"recipe": "eigenprune"}, "run as eigenprune, where"),
        ({"subset": "first 12 of 80 documents"}, "only first 12 of 80 documents were asked"),
        ({"rephrased": "chat template"}, "run with a chat template"),
        ({"baseline_score": 0.45}, "the unedited model has 0.45 here and 0.1375 there"),
        # within a quarter of the reported change
        ({"baseline_score": 0.3}, None),
    ],
)
def test_a_run_that_says_nothing_of_a_claim_is_incomparable(changes: dict[str, object], why: str | None) -> None:
    asked = entry()._replace(run="eigenprune:fraction=0.2,seed=1")
    state = judged_claim(asked, replace(CELL, **({"recipe": asked.run} | changes)))
    assert state.why.startswith(why) if why else state.word != "incomparable"
    assert (state.word == "incomparable") is (why is not None)


@pytest.mark.parametrize(
    ("task", "changes", "why"),
    [
        ("arc_easy", {"shots": 0}, None),
        ("arc_easy", {"shots": 3}, "run 3-shot, not 0-shot"),
        ("mmlu_math", {"shots": 5}, None),
        ("mmlu_math", {"shots": 0}, "run 0-shot, not 5-shot"),
        ("mmlu_math", {"shots": 5, "rephrased": "chat template"}, "run with a chat template"),
    ],
)
def test_a_benchmarks_row_is_asked_as_its_protocol_says(task: str, changes: dict[str, object], why: str | None) -> None:
    row = entry(before=0.95, after=0.95)._replace(
        identity=f"lowrankarena-dense/llama-7b/{task}", task=task, method="dense", recipes=("baseline",), run="baseline"
    )
    state = judged_claim(row, replace(CELL, task=task, recipe="baseline", **changes))
    assert state.why == why if why else state.word != "incomparable"


@pytest.mark.parametrize(
    ("subset", "learned", "incomparable"),
    [
        ("60 of 80 documents", 20, False),
        ("60 of 80 documents", 0, True),
        ("60 of 80 documents", 21, True),
        ("40 of 80 documents", 20, True),
        ("first 60 of 80 documents", 20, True),
        # a fact that is asked twice
        ("65,590 of 65,757 documents", 160, False),
        ("60,000 of 65,757 documents", 160, True),
    ],
)
def test_what_a_recipe_was_chosen_on_is_no_missing_part(subset: str, learned: int, incomparable: bool) -> None:
    cell = replace(CELL, subset=subset, learned=learned)
    assert (judged_claim(entry(), cell).word == "incomparable") is incomparable
    said = f" on {subset}, without those that it learned from or was chosen on: reported "
    assert (said in verdict_sentence(entry(), cell)) is not incomparable


def test_documents_that_a_paper_chose_on_are_told_where_they_are_scored() -> None:
    chosen = entry()._replace(chosen_on="the first 20 % of the data")
    cell = replace(CELL, against_controls=(replace(CELL, control="random-subspace"),))
    state = judged_claim(chosen, cell)
    assert state.word == "supported"
    assert state.why == (
        "as large as reported, and better than its control; among the documents scored are those that the paper chose"
        " this setting on, the first 20 % of the data"
    )
    assert verdict_sentence(chosen, cell).endswith(state.why)


@pytest.mark.parametrize(("here", "incomparable"), [(5.68, False), (5.95, False), (6.1, True), (43.8, True)])
def test_a_claim_of_great_damage_asks_for_the_same_start_too(here: float, incomparable: bool) -> None:
    told = entry("token_perplexity", 5.68, 20061.0)._replace(run=CELL.recipe)
    cell = replace(
        CELL, metric="token_perplexity", higher_is_better=False, baseline_score=here, score=20061.0,
        delta=20000.0, low=19000.0, high=21000.0, improvement=-20000.0,
    )  # fmt: skip
    assert (judged_claim(told, cell).word == "incomparable") is incomparable


@pytest.mark.parametrize(
    ("reported", "changes", "said"),
    [
        # within a quarter of the reported gain, and beyond the interval of 24 right of 80
        (entry(), {"baseline_score": 0.3}, "the unedited model has 0.3 here and 0.1375 there; "),
        (entry(), {"baseline_score": 0.14}, ""),
        (entry(before=0.14), {"baseline_score": 0.1449, "n": 1_000_000}, "0.1449 here and 0.14 there"),
        # as far off as its printed places
        (entry(before=0.14, after=0.97), {"baseline_score": 0.1449, "n": 1_000_000}, ""),
        (entry("log_loss", 5.78, 5.05), {"metric": "log_loss", "baseline_score": 5.9}, "has 5.9 here and 5.78 there"),
        (entry("log_loss", 5.78, 5.05), {"metric": "log_loss", "baseline_score": 5.79}, ""),
        (
            entry("token_perplexity", 5.68, 7.94),
            {"metric": "token_perplexity", "baseline_score": 5.9},
            "the unedited model has 5.9 here and 5.68 there; ",
        ),
        (entry("token_perplexity", 5.68, 7.94), {"metric": "token_perplexity", "baseline_score": 5.684}, ""),
    ],
)
def test_an_unedited_model_that_differs_is_told(reported: Reported, changes: dict[str, object], said: str) -> None:
    higher = reported.higher_is_better
    cell = replace(CELL, higher_is_better=higher, improvement=CELL.delta if higher else -0.81, **changes)
    state = judged_claim(reported, cell)
    assert state.word != "incomparable"
    assert said in state.why and ("unedited" in state.why) is bool(said)
    assert verdict_sentence(reported, cell).endswith(state.why)


def test_no_claim_is_supported_without_a_word_where_the_unedited_model_differs() -> None:
    against = (replace(CELL, control="random-subspace"),)
    state = judged_claim(entry(), replace(CELL, baseline_score=0.3, against_controls=against))
    assert state == (
        "supported",
        "the unedited model has 0.3 here and 0.1375 there; as large as reported, and better than its control",
    )


def test_a_small_change_asks_for_the_same_start() -> None:
    few, many = (
        replace(
            CELL,
            recipe="eigenprune",
            n=n,
            baseline_score=0.5,
            score=0.52,
            delta=0.02,
            improvement=0.02,
            low=0,
            high=0.04,
        )
        for n in (40, 4000)
    )
    reported = entry(before=0.45, after=0.47)
    assert judged_claim(reported, many).word == "incomparable"
    # 0.45 is within the interval of 20 right of 40
    assert judged_claim(reported, few).word != "incomparable"
    doubled = replace(many, metric="token_perplexity", higher_is_better=False, baseline_score=11.4, score=12.0)
    assert judged_claim(entry("token_perplexity", 5.68, 7.94), doubled).word == "incomparable"


@pytest.mark.parametrize(
    ("metric", "reported", "score", "n", "word"),
    [
        ("acc", 0.737, 0.735, 10_000, "supported"),
        ("acc", 0.737, 0.735, 100, "undecided"),
        ("acc", 0.737, 0.60, 10_000, "contradicted"),
        ("acc", 0.737, 0.60, 10, "undecided"),
        ("token_perplexity", 5.67, 5.68, 141, "supported"),
        ("token_perplexity", 5.67, 7.0, 141, "contradicted"),
        ("brier", 1.7, 1.7, 141, "undecided"),
    ],
)
def test_an_unedited_model_claims_a_level(metric: str, reported: float, score: float, n: int, word: str) -> None:
    dense = entry(metric, reported, reported)._replace(recipes=("baseline",))
    cell = replace(CELL, recipe="baseline", metric=metric, baseline_score=None, score=score, n=n, verdict="baseline")
    assert judged_claim(dense, cell).word == word
    assert verdict_sentence(dense, cell).startswith(f"baseline on {n:,} documents: reported {reported:.4g}; measured ")


def test_an_edit_that_is_worse_than_its_control_is_told_by_the_plain_scores() -> None:
    cell = replace(
        CELL, metric="token_perplexity", higher_is_better=False, baseline_score=100.0, score=4000.0,
        delta=3900.0, low=3000.0, high=5000.0, improvement=-3900.0,
    )  # fmt: skip
    control = replace(cell, control="noise", baseline_score=200.0, improvement=30.0, verdict="worse")
    told = verdict_sentence(entry("token_perplexity", 5.68, 7.94), replace(cell, against_controls=(control,)))
    assert "; its noise: perplexity x 2, and the edit against it perplexity x 20 (worse); " in told
