"""What an undecided cell says: how many documents would decide, and what the present ones could have shown."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.app import tables
from leaderboard.board.board import board
from leaderboard.board.cell import with_verdicts
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.terminal import format
from leaderboard.terminal.table import render
from tests.leaderboard.board.judging import judged, recipe_cell, tasks_board


def test_undecided_says_how_many_documents(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(100, 50, lost=4, gained=4))
    assert cell.verdict == "undecided" and 1850 < cell.documents_needed < 2050  # both bounds: 8.56 x 9 % / 2 %^2
    assert (cell.comparisons, cell.needed_for, cell.documents_needed_together) == (1, "within", cell.documents_needed)
    assert cell.detectable == pytest.approx(2.8016 * math.sqrt(9 / 101 / 100), rel=1e-4)  # two-sided, as better is
    assert (
        format.undecided(cell)
        == f"needs about {cell.documents_needed:,} documents to show that it is within the margin, has 100, could have"
        f" shown a difference of {cell.detectable:.2g}"
    )
    assert format.undecided(cell) in " ".join(render([cell], width=80).split()) and tables.notes(cell).startswith(
        format.undecided(cell)
    )
    assert [
        row["Could show"] for row in tables.cell_rows([cell, replace(cell, verdict="worse")], with_model=False)
    ] == [f"{cell.detectable:.2g}", ""]
    assert "Could show" not in tables.cell_rows([replace(cell, verdict="worse")], with_model=False)[0]


def test_a_perplexity_says_in_its_own_units_what_could_have_been_shown(made: Any, kit: Any) -> None:
    generator = np.random.default_rng(0)
    values = [(-generator.uniform(20, 40, 30)).tolist(), (-generator.uniform(20, 40, 30)).tolist()]
    before, after = (
        kit.Task(
            {"word_perplexity": [[value, 10] for value in run]},
            scores={"word_perplexity": math.exp(-sum(run) / 300)},
            higher_is_better={"word_perplexity": False},
            output_type="loglikelihood_rolling",
            log_likelihoods=run,
        )
        for run in values
    )
    cell = judged(made, before, after)
    log_ratio = np.clip(np.array(values[1]) - np.array(values[0]), -10 * 20 * math.log(1.02), 10 * 20 * math.log(1.02))
    error = math.sqrt(30 / 29 * np.sum((-log_ratio + log_ratio.mean()) ** 2)) / 300
    assert cell.verdict == "undecided" and cell.detectable == pytest.approx(
        cell.baseline_score * math.expm1(2.8016 * error), rel=1e-3
    )


def test_a_large_difference_needs_documents_for_its_own_size(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(30, 20, lost=6, gained=2))
    flips, drop = 9 / 31, 4 / 30
    steps = 1.959964 * math.sqrt(flips) + 0.841621 * math.sqrt(flips - drop**2)
    assert cell.verdict == "undecided" and cell.documents_needed == math.ceil((steps / drop) ** 2) < 150
    assert format.undecided(cell).startswith(
        f"needs about {cell.documents_needed} documents to confirm a difference of this size, has 30"
    )


@pytest.mark.slow
def test_a_board_of_many_comparisons_needs_more_and_says_so(made: Any, kit: Any) -> None:
    cells = tasks_board(made, kit, 100, [(2, 2)] * 12)
    changed = 5 / 101
    for cell in cells:
        assert (cell.verdict, cell.comparisons, cell.needed_for) == ("undecided", 12, "within")
        assert 15.4 * changed / 0.02**2 < cell.documents_needed < 1.15 * 15.4 * changed / 0.02**2  # level .05 / 12
        assert 9.2 * changed / 0.02**2 < cell.documents_needed_together < 1.15 * 9.2 * changed / 0.02**2
        assert format.undecided(cell).startswith(
            f"needs about {cell.documents_needed:,} documents to show that it is within the margin on a board of 12"
            f" comparisons (about {cell.documents_needed_together:,} if all that are undecided get as many), has 100, "
        )
    assert cells[0].detectable == pytest.approx(min(1, (2.8653 + 0.8416) * math.sqrt(0.129 / 100)), rel=0.1)


def test_verdicts_that_are_there_ask_less_of_the_others(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(100, 50, lost=2, gained=2))
    same = replace(cell, p_same=1e-9)
    differs = replace(cell, p_value=1e-9, p_same=1.0, improvement=0.2, low=0.1, high=0.3)
    alone, four, after_three, beside_others = (
        with_verdicts([cell, *others])[0] for others in ([], [cell] * 3, [same] * 3, [differs] * 3)
    )
    assert alone.documents_needed == after_three.documents_needed < four.documents_needed
    assert beside_others.documents_needed == four.documents_needed == beside_others.documents_needed_together
    assert four.documents_needed_together < four.documents_needed and after_three.documents_needed_together is not None
    assert beside_others.detectable == alone.detectable < after_three.detectable == four.detectable


@pytest.mark.slow
def test_what_is_needed_is_worked_out_anew_for_another_board(made: Any, kit: Any, database: Path) -> None:
    """What a store remembers of a comparison doesn't depend on the number of others."""
    tasks = {f"t{i}": kit.pair(100, 50, lost=2, gained=2) for i in range(5)}
    made.run("baseline", {name: pair[0] for name, pair in tasks.items()})
    made.run("laser", {"t0": tasks["t0"][1]})
    ingest([made.root], database)
    with open_store(database) as store:
        alone = recipe_cell(board(store), task="t0")
    made.run("svd", {name: pair[1] for name, pair in tasks.items()}, folder="svd", spec_id="svd")
    ingest([made.root], database)
    with open_store(database) as store:
        among = recipe_cell(board(store), task="t0")
        fresh = recipe_cell(board(store, margin=0.0200000001), task="t0")
    assert (alone.comparisons, among.comparisons) == (1, 6)
    assert among.documents_needed > 1.3 * alone.documents_needed and among.detectable > alone.detectable
    assert fresh.documents_needed == pytest.approx(among.documents_needed, abs=2)


@pytest.mark.slow
def test_documents_that_are_there_already_are_not_asked_for(made: Any, kit: Any) -> None:
    cell = tasks_board(made, kit, 200, [(20, 8), *[(6, 6)] * 11])[0]
    assert cell.verdict == "undecided" and 400 < cell.documents_needed < 600
    assert (
        format.undecided(replace(cell, documents_needed=150, detectable=None))
        == "close to a verdict: needs somewhat more than the 200 documents it has"
    )
