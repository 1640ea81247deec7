"""What chance gets, and what is said of scores that do not beat it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from leaderboard.board.cell import Cell
from leaderboard.compare.chance import AgainstChance, of_metric
from leaderboard.ingest import ingest
from leaderboard.store.answer_samples import RightAnswers
from leaderboard.store.database import open_store
from leaderboard.terminal.board_notes import facts
from leaderboard.terminal.table import render
from tests.leaderboard.board.judging import judged

COUNT = 300
GOLDS = [int(i < 186) for i in range(COUNT)]
"""Like BoolQ's: 62 % are "yes"."""
YES = [1] * COUNT
SAME_CHOICE = "always taking the same choice (0.620)"


def picked(
    kit: Any, picks: Sequence[int], golds: Sequence[int] = GOLDS, choices: int = 2, labels: Sequence[str] = "0123"
) -> Any:
    """A task of which a model took these places `[n]`. labels: what the right answer in each place is told by."""

    class Picked(kit.Task):  # type: ignore[misc, name-defined]
        def _line(self, name: str, i: int) -> dict[str, Any]:
            pairs = [[str(-1.0 if place == picks[i] else -2.0 - place), "False"] for place in range(choices)]
            answers = {"filtered_resps": pairs, "resps": [[pair] for pair in pairs]}
            return super()._line(name, i) | {"target": labels[golds[i]]} | answers

    return Picked({"acc": [float(pick == gold) for pick, gold in zip(picks, golds)]})


def right(share: float, golds: Sequence[int] = GOLDS) -> list[int]:
    """Picks of which so many are right, spread evenly."""
    return [gold if int((i + 1) * share) > int(i * share) else 1 - gold for i, gold in enumerate(golds)]


def about_chance(cell: Cell) -> list[str]:
    return [note for note in cell.notes if "shown to beat" in note]


def test_a_gain_from_saying_one_thing(made: Any, kit: Any) -> None:
    cell = judged(made, picked(kit, right(0.48)), picked(kit, YES))
    assert cell.verdict == "better" and cell.chance == pytest.approx(0.62) and cell.beats_chance is False
    assert about_chance(cell) == [f"acc is not shown to beat {SAME_CHOICE}, nor is the baseline's"]


def test_an_edit_that_falls_to_it(made: Any, kit: Any) -> None:
    cell = judged(made, picked(kit, right(0.71)), picked(kit, right(0.66)))
    assert cell.verdict == "undecided"
    assert about_chance(cell) == [f"acc is not shown to beat {SAME_CHOICE}"]


def test_a_collapse_says_so_itself(made: Any, kit: Any) -> None:
    cell = judged(made, picked(kit, right(0.9)), picked(kit, YES))
    assert cell.verdict == "collapsed" and not about_chance(cell) and "no better than chance (62.0 %)" in cell.notes[0]


def test_nothing_is_said_above_it(made: Any, kit: Any) -> None:
    cell = judged(made, picked(kit, right(0.6)), picked(kit, right(0.8)))
    assert cell.verdict == "better" and cell.beats_chance and not about_chance(cell)


def test_guessing_where_places_are_even(made: Any, kit: Any) -> None:
    golds = [i % 4 for i in range(COUNT)]
    wrong = picked(kit, [(gold + (i % 5 > 0)) % 4 for i, gold in enumerate(golds)], golds, 4)
    cell = judged(made, wrong, picked(kit, [0] * COUNT, golds, 4))
    assert about_chance(cell) == ["acc is not shown to beat guessing (0.250), nor is the baseline's"]


@pytest.mark.parametrize("labels", [("no", "yes"), "BA", ("[1]", "[2]")])
def test_places_may_be_told_by_words_and_letters(made: Any, kit: Any, labels: Sequence[str]) -> None:
    cell = judged(made, picked(kit, right(0.48), labels=labels), picked(kit, YES, labels=labels))
    assert cell.chance == pytest.approx(0.62) and cell.beats_chance is False


def test_answers_that_are_texts_have_no_places(made: Any, kit: Any) -> None:
    golds = list(range(COUNT))
    texts = [f"text {min(i, 200)}" for i in range(COUNT)]
    runs = [picked(kit, [gold % (3 + more) for gold in golds], golds, 4, texts) for more in (0, 1)]
    assert judged(made, *runs).chance == pytest.approx(0.25)


def test_the_note_is_the_last_and_is_one_for_all_rows_of_a_task(made: Any, kit: Any) -> None:
    made.run("baseline", {"sums": picked(kit, right(0.48))})
    for recipe, share in (("laser", 0.5), ("svd", 0.52)):
        made.run(recipe, {"sums": picked(kit, right(share))})
    lasts = {cell.notes[-1] for cell in made.board() if cell.recipe != "baseline"}
    assert lasts == {f"acc is not shown to beat {SAME_CHOICE}, nor is the baseline's"}


def test_an_open_answer_has_none(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(100, 2, lost=1, output_type="generate_until"))
    assert cell.chance is cell.beats_chance is None and not about_chance(cell)


def test_where_a_task_is_named(made: Any, kit: Any) -> None:
    cell = judged(made, picked(kit, right(0.48)), picked(kit, YES))
    (told,) = facts([cell])
    assert told == "Tasks: acc, 300 documents: sums (chance 0.620)."
    head = next(line for line in render([cell], width=120).splitlines() if line.startswith("sums;"))
    assert head.endswith("chance 0.620")


def test_sql_has_it(made: Any, kit: Any, database: Path) -> None:
    made.run("baseline", {"sums": picked(kit, right(0.48))})
    for recipe, picks in (("laser", YES), ("svd", right(0.8))):
        made.run(recipe, {"sums": picked(kit, picks)})
    ingest(made.root, database)
    with open_store(database) as store:
        rows = store.rows("SELECT recipe, chance, beats_chance FROM v_verdicts WHERE is_primary ORDER BY recipe")
    assert [row["recipe"] for row in rows] == ["baseline", "laser", "svd"]
    assert [row["chance"] for row in rows] == [None, pytest.approx(0.62), pytest.approx(0.62)]
    assert [row["beats_chance"] for row in rows] == [None, False, True]


@pytest.mark.parametrize("level", [0.25, 0.5, 0.622])
@pytest.mark.parametrize("count", [1, 12, 80, 300])
def test_above_is_an_exact_binomial_test(level: float, count: int) -> None:
    counts = RightAnswers("task", "acc", "none", "multiple_choice", count, count, 0, 0, 0, 0)
    answers = AgainstChance(counts, level)
    for hits in range(count + 1):
        assert answers.is_above(hits) == (binomtest(hits, count, level, alternative="greater").pvalue <= 0.05)


def test_documents_that_depend_on_each_other_count_as_one() -> None:
    counts = RightAnswers("task", "acc", "none", "multiple_choice", 300, 10, 0, 0, 0, 0)
    assert AgainstChance(counts._replace(independent=300), 0.5).is_above(180) and not AgainstChance(
        counts, 0.5
    ).is_above(180)


def test_a_metric_that_chance_cannot_tell_of() -> None:
    counts = RightAnswers("task", "acc", "none", "multiple_choice", 10, 10, 5, 5, 0, 0)
    assert of_metric([AgainstChance(counts, 1.0)], "acc", "none") is None
    assert of_metric([AgainstChance(counts, 0.0)], "acc", "none") is None
    assert of_metric([AgainstChance(counts, 0.5)], "acc_norm", "none") is None
    assert of_metric([AgainstChance(counts, 0.5)], "acc", "none") == AgainstChance(counts, 0.5)
