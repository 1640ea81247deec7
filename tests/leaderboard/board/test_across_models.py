"""Recipes over models, from cells made by hand: counts, signs, blanks."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from scipy.stats import binom

from leaderboard.board.across_models import lines, models_of, sentence, tasks
from leaderboard.board.cell import Cell


def cell(
    model: str,
    verdict: str,
    improvement: float | None = None,
    *,
    recipe: str = "laser",
    task: str = "sums",
    **rest: Any,
) -> Cell:
    run_id = rest.pop("run_id", f"{model}-{recipe}-{task}")
    return Cell(
        model,
        recipe,
        run_id,
        task,
        "acc",
        "none",
        100,
        0.5,
        0.5 + (improvement or 0.0),
        verdict,
        improvement=improvement,
        **rest,
    )


def test_better_on_some_of_those_with_a_verdict() -> None:
    cells = [cell(f"m{i}", "better", 0.1) for i in range(7)] + [
        cell("m7", "worse", -0.1),
        cell("m8", "undecided", 0.01),
        cell("m9", "failed"),
        cell("a0", "incomparable"),
    ]
    (line,) = lines(cells, "sums")
    assert (line.count("better"), line.compared, line.up, line.down) == (7, 9, 8, 1) and len(line.cells) == 11
    assert (
        sentence(line)
        == "better on 7 of 9 models, worse on 1, undecided on 1; up on 8, down on 1 (besides, 1 incomparable and 1"
        " failed)"
    )
    assert models_of([line]) == sorted(line.cells)


def test_the_sign_test_is_the_binomial_with_half_of_the_point() -> None:
    (line,) = lines([cell(f"m{i}", "undecided", 0.1 if i < 6 else -0.1) for i in range(8)], "sums")
    assert line.p_value == pytest.approx(2 * (binom.cdf(2, 8, 0.5) - binom.pmf(2, 8, 0.5) / 2)) == line.q_value


def test_fewer_signs_than_can_ever_be_significant_are_not_tested() -> None:
    for count, expected in ((4, None), (5, 2 * 0.5**5 / 2)):
        (line,) = lines([cell(f"m{i}", "better", 0.1) for i in range(count)], "sums")
        assert (line.p_value, line.q_value) == (expected, expected)


def test_the_correction_is_over_the_recipes() -> None:
    ahead = [cell(f"m{i}", "better", 0.1) for i in range(6)]
    mixed = [cell(f"m{i}", "undecided", 0.1 if i % 2 else -0.1, recipe="svd") for i in range(6)]
    first, second = lines(ahead + mixed, "sums")
    assert (
        first.recipe == "laser"
        and first.p_value is not None
        and first.q_value == pytest.approx(2 * first.p_value)
        and second.q_value == second.p_value == 1.0
    )


def test_unedited_runs_other_tasks_and_unmoved_scores_do_not_count() -> None:
    cells = [
        cell("m0", "baseline", recipe="baseline"),
        cell("m1", "same", 0.0, recipe="baseline"),
        cell("m1", "incomparable", recipe="plain lm_eval"),
        cell("m0", "better", 0.1, task="else"),
    ]
    assert lines(cells, "sums") == [] and tasks(cells) == ["else"]
    (line,) = lines([cell("m0", "same", 0.0)], "sums")
    assert (line.up, line.down, line.p_value, line.q_value) == (0, 0, None, None) and sentence(
        line
    ) == "better on 0 of 1 model, same on 1"
    (alone,) = lines([cell("m0", "failed", task="(all)")], "sums")
    assert sentence(alone) == "no verdict on 1 model (besides, 1 failed)" and alone.compared == 0


def test_the_latest_run_speaks_for_a_model() -> None:
    cells = [
        cell("m", "better", 0.1, run_id="b", started=datetime(2026, 1, 2)),
        cell("m", "worse", -0.1, run_id="c", started=datetime(2026, 1, 1)),
        cell("m", "failed", run_id="z"),
    ]
    (line,) = lines(cells, "sums")
    assert line.cells["m"].run_id == "b"


def test_order_is_by_models_then_controls_last() -> None:
    cells = [
        cell("m0", "better", 0.1, recipe="few"),
        *(cell(f"m{i}", "same", 0.0, recipe="a control", control="noise") for i in range(2)),
        *(cell(f"m{i}", "worse", -0.1, recipe="wide") for i in range(2)),
    ]
    assert [line.recipe for line in lines(cells, "sums")] == ["wide", "a control", "few"]
    assert tasks([*cells, cell("m0", "same", task="fewer")]) == ["sums", "fewer"]
