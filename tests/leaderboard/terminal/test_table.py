"""The table in the terminal, and how numbers and verdicts are written."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from leaderboard.board.cell import Cell
from leaderboard.compare.choice_shift import Choices
from leaderboard.compare.clipping import Clipping
from leaderboard.compare.run_diff import Unshared
from leaderboard.statistics import Estimate
from leaderboard.terminal import format
from leaderboard.terminal.table import render, render_unshared


class TestTable:
    """The terminal's table."""

    def cells(self, made: Any, kit: Any) -> list[Cell]:
        pairs = {
            "int_mult": kit.pair(400, 200, lost=60),
            "a_rather_long_name_of_a_task_with_many_words_in_it": kit.pair(30, 10, lost=1),
        }
        made.run("baseline", {name: pair[0] for name, pair in pairs.items()})
        made.run("laser", {name: pair[1] for name, pair in pairs.items()})
        made.failed("eigenprune:fraction=0.1,calibration.samples=160", {name: pair[1] for name, pair in pairs.items()})
        return made.board()

    @pytest.mark.parametrize("width", [80, 120])
    def test_fits_its_width_in_plain_ascii(self, made: Any, kit: Any, width: int) -> None:
        text = render(self.cells(made, kit), width=width, color=False)
        assert max(map(len, text.splitlines())) <= width and text.isascii() and "\x1b" not in text
        for words in (
            "Model tiny",
            "worse",
            "undecided",
            "failed",
            "3 weights are NaN",
            "-0.1500 [",
            "needs about",
            "99.2%",
        ):
            assert words in text

    def test_colour_adds_nothing_but_colour(self, made: Any, kit: Any) -> None:
        cells = self.cells(made, kit)
        assert (
            re.sub(r"\x1b\[[\d;]*m", "", render(cells, width=100, color=True)).split()
            == render(cells, width=100, color=False).split()
        )

    @pytest.mark.parametrize("width", [20, 80, 120])
    def test_long_names_stay_whole_and_columns_apart(self, made: Any, kit: Any, width: int) -> None:
        before, after = kit.pair(40, 20, lost=3)
        long = "eigenprune:fraction=0.1,calibration.samples=160"
        made.run("baseline", {"sums": before})
        made.run(
            "laser+random-subspace",
            {"sums": kit.Task(after.values, log_likelihoods=kit.likelihoods(40, 3), shots=2)},
            folder="control",
        )
        made.run(long, {"sums": after}, folder="long")
        lines = render(made.board(), width=width).splitlines()
        assert f"  {long}" in lines and any(line.startswith("  laser+random-subspace") for line in lines)
        assert any(line.rstrip().endswith("incomparable  99.2%") or "incomparable  99.2% " in line for line in lines)
        assert "(1 comparison)" in " ".join(lines)

    @pytest.mark.parametrize("width", [80, 120])
    def test_the_name_of_a_task_stays_whole(self, made: Any, kit: Any, width: int) -> None:
        name = "leaderboard_bbh_logical_deduction_three_multiple-choice_objects"
        made.run("baseline", {name: kit.pair(40, 20)[0]})
        text = render(made.board(), width=width)
        assert f"\n{name};" in text and "40 documents" in text and max(map(len, text.splitlines())) <= width

    def test_a_share_of_all_parameters_stands_apart_from_its_verdict(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(40, 20, lost=3)
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        (laser,) = [cell for cell in made.board() if cell.recipe == "laser"]
        cells = [replace(laser, verdict="incomparable", parameters_kept=1.0)]
        assert "incomparable 100.0%" in render(cells, width=80)

    def test_the_legend_counts_what_the_verdicts_were_corrected_for(self, made: Any, kit: Any) -> None:
        cells = [cell for cell in self.cells(made, kit) if cell.p_value is not None]
        assert [cell.comparisons for cell in cells] == [2, 2]
        assert "(2 comparisons)" in " ".join(render(cells).split())
        assert "(2 comparisons)" in " ".join(render(cells[:1]).split())

    def test_nothing(self) -> None:
        assert render([], width=80, color=False) == "No results to show yet."

    def test_names_cannot_move_the_cursor(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(9, 3)
        made.run("baseline", {"sums": before})
        made.run("evil\x1b[2J\nrecipe", {"sums": after}, folder="evil")
        text = render(made.board(), width=80, color=False)
        assert "\x1b" not in text and "evil [2J recipe" in text


def test_many_names_fit_the_terminal() -> None:
    lines = render_unshared([Unshared("A", tuple(f"a-task-with-a-name-{i}" for i in range(57)), ())], width=80)
    assert max(map(len, lines)) <= 80 and " ".join(lines).count("a-task-with-a-name") == 57


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "could have shown a difference of 0.061"),
        ({"detectable": 12.345}, "could have shown a difference of 12.35"),
        ({"detectable": None}, None),
        ({"detectable": 0.0}, None),
        ({"verdict": "same"}, None),
    ],
)
def test_what_could_have_been_shown(changes: dict[str, Any], said: str | None) -> None:
    cell = Cell("m", "r", "id", "t", "acc", "none", 100, 0.5, 0.5, "undecided", detectable=0.0612)
    assert format.undecided(replace(cell, **changes)) == said


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5000"), (-0.00001, "0.0000"), (103.7269, "103.73"), (1e6, "1.000e+06"), (None, "-"), (math.inf, "-")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert format.number(value) == text


def gold_row(**changes: Any) -> Cell:
    """A row whose further metric is the right answer's log-likelihood, of which its choices tell the change too."""
    clipping = Clipping(1.0, 1, 0, 0.2, 5.8)
    gold = Cell(
        *("m", "r", "id", "t", "gold_logprob", "none", 24, -7.4, -1.6, "undecided", 5.8, 4.19, 6.51),
        improvement=5.8,
        clipping=clipping,
        notes=(clipping.doubt(24, 0.0) or "",),
        is_primary=False,
    )
    shifted = Choices(24, 0.5, None, Estimate(-5.8, -6.58, -5.02, 0.4, 23.0))
    return Cell(
        "m",
        "r",
        "id",
        "t",
        "acc",
        "none",
        24,
        0.5,
        0.7,
        "better",
        0.2,
        further=(replace(gold, **changes),),
        choices=shifted,
    )


def test_the_right_answers_log_likelihood_has_one_interval_in_a_row() -> None:
    text = render([gold_row()], width=200)
    assert "+5.8000 [+4.1900, +6.5100]" in text and "answers changed 50.0%" in text and "5.02" not in text
    for other in (replace(gold_row(), further=()), gold_row(metric="acc_norm")):
        assert "log-likelihood of the right answer changed by +5.8000 [+5.0200, +6.5800] nats" in render(
            [other], width=200
        )


def test_a_further_metric_says_why_it_is_undecided_where_its_interval_excludes_zero() -> None:
    assert "    . gold_logprob: 1 of 24 documents got far worse, so up to 20 % of all may" in render([gold_row()])
    close = gold_row(clipping=None, notes=(), documents_needed=20, needed_for="difference")
    assert "    . gold_logprob: close to a verdict: needs somewhat more than" in render([close], width=200)
    for told in (gold_row(low=-0.1), gold_row(verdict="worse"), gold_row(says_nothing=True)):
        assert ". gold_logprob" not in render([told])


def test_an_interval_that_does_not_hold_the_difference_before_it_is_marked() -> None:
    cell = Cell("m", "svd", "r", "t", "word_perplexity", "none", 23, 44.1, 185.8, "worse", 141.7, 7.8, 21.4, 0.01, 0.02)
    outside = replace(cell, clipping=Clipping(21.5, 23, 0, 1.0, -141.7))
    assert format.interval(cell) == "+141.70 [+7.8000, +21.40]"
    assert format.interval(outside) == f"{format.interval(cell)} clipped"
    assert format.interval(outside, short=True) == f"{format.interval(cell)}c"
    assert format.interval(replace(outside, high=150.0), short=True).endswith("]")
    assert "c: the interval is of the mean change with no document counted for more" in render([outside], width=200)
    assert "c: the interval" not in render([cell], width=200)


def test_a_pair_by_itself_is_not_said_to_be_a_board() -> None:
    row = replace(gold_row(), p_value=0.5, comparisons=2)
    assert "over these two runs alone (2 comparisons), not a board" in " ".join(render([row], of_pair=True).split())
    assert "over a model's board (2 comparisons)" in " ".join(render([row]).split())
