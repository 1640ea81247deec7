"""What is said where there are too few documents for any test, or for any difference."""

from __future__ import annotations

from typing import Any

import pytest

from leaderboard.board.cell import Cell
from leaderboard.terminal.format import TOO_FEW, could_show, interval, undecided
from leaderboard.terminal.table import render
from tests.leaderboard.board.judging import judged
from tests.leaderboard.compare.test_collapse import texts
from tests.leaderboard.gate.gating import gated, row, two


def said(cell: Cell) -> str:
    """What an undecided cell says of its documents."""
    assert cell.verdict == "undecided"
    return undecided(cell) or ""


class TestPerplexity:
    """Texts that became a million times less likely, of which there are few."""

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_no_test_reaches_the_level(self, made: Any, kit: Any, count: int) -> None:
        cell = judged(made, *texts(kit, [14.0 + 0.3 * (i % 3) for i in range(count)]))
        text = said(cell)
        assert text.startswith(
            f"too few documents: whatever they answer, no test of {count} documents reaches 5 %, which takes at least"
            " 6; seen all the same: 20."
        )
        assert text.endswith(f"{count} documents worse and 0 better") and "could have shown" not in text
        assert cell.notes[0].startswith(f"looks collapsed, which {count} documents do not make certain: perplexity 20.")
        assert interval(cell).endswith("too few documents") and could_show(cell) == TOO_FEW

    def test_one_document_says_nothing_of_others(self, made: Any, kit: Any) -> None:
        assert "a single independent document or group says nothing of others" in said(
            judged(made, *texts(kit, [14.0]))
        )

    @pytest.mark.parametrize("metric", ["word_perplexity", "bits_per_byte"])
    def test_other_likelihoods(self, made: Any, kit: Any, metric: str) -> None:
        changes = [50 * (2.6 + 0.02 * (i % 5)) for i in range(4)]
        cell = judged(made, *texts(kit, changes, start=-150.0, words=50.0, metric=metric))
        assert said(cell).startswith("too few documents: whatever they answer, no test of 4 documents")

    def test_enough_documents_say_how_small_a_difference(self, made: Any, kit: Any) -> None:
        cell = judged(made, *texts(kit, [0.1 * (i % 3 - 1) for i in range(40)]))
        assert "could have shown a difference of" in said(cell) and "too few" not in said(cell)
        assert "too few" not in interval(cell)


class TestRightAndWrong:
    """Scores between 0 and 1."""

    @pytest.mark.parametrize(("count", "least"), [(1, 5), (2, 5), (4, 5)])
    def test_all_lost(self, made: Any, kit: Any, count: int, least: int) -> None:
        cell = judged(made, *kit.pair(count, count, lost=count))
        worse = f"{count} document{'s' if count > 1 else ''} worse"
        assert f"which takes at least {least}; seen all the same: 1.0000 -> 0.0000, {worse}" in said(cell)
        assert interval(cell) == "-1.0000 too few documents"

    def test_a_difference_as_large_as_the_range(self, made: Any, kit: Any) -> None:
        cell = judged(made, *kit.pair(8, 4, lost=2, gained=2))
        why = "show, by the normal approximation, no difference less than about all that the score can change by"
        assert f"8 documents {why}" in said(cell)
        assert "needs about" in said(cell)

    def test_two_passages_are_two_documents(self, made: Any, kit: Any) -> None:
        pair = kit.pair(
            20,
            20,
            lost=20,
            fields={"passage": ["one"] * 10 + ["two"] * 10},
            metadata={"cluster_by": "passage"},
        )
        assert "no test of 20 documents reaches 5 %, which takes at least 60" in said(judged(made, *pair))

    def test_more_comparisons_take_more(self, made: Any, kit: Any) -> None:
        tasks = {f"t{i}": kit.pair(6, 6, lost=i % 3) for i in range(20)}
        made.run("baseline", {name: pair[0] for name, pair in tasks.items()})
        made.run("laser", {name: pair[1] for name, pair in tasks.items()})
        cell = next(cell for cell in made.board() if cell.recipe == "laser")
        assert "no test of 6 documents reaches 5 % on a board of 20 comparisons, which takes at least 9" in said(cell)

    def test_the_terminal_has_room(self, made: Any, kit: Any) -> None:
        cells = [judged(made, *kit.pair(2, 2, lost=2))]
        for width in (80, 120):
            lines = render(cells, width=width).splitlines()
            assert any("too few documents" in line for line in lines) and all(len(line) <= width for line in lines)


def test_the_gate_says_so(made: Any, kit: Any) -> None:
    base, laser = two(made, *kit.pair(3, 3, lost=1))
    reasons = row(gated(laser, base)).reasons
    assert reasons[0] == "too few documents: whatever they answer, no test of 3 documents reaches 5 %"
