"""A task may hold one document several times, and two runs log the copies in any order: nothing is paired by it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from leaderboard.app import flip_queries
from leaderboard.app.flip_queries import FlippedDocuments, FlipQuestion
from leaderboard.board.board import board
from leaderboard.board.cell import Cell
from leaderboard.compare.choice_shift import compare_choices
from leaderboard.ingest import ingest
from leaderboard.store import noise_floor


def make_copies(path: Path, group: int, copied: int, order: int | None = None) -> None:
    """Make the first `copied` samples of a run copies of one document for each `group`, and shuffle the file by the
    seed `order`. The ids of documents go with the places, as a sharded run logs them.
    """
    (file,) = path.glob("samples_*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for place in range(copied):
        first = lines[place - place % group]
        lines[place] |= {name: first[name] for name in ("doc", "arguments", "doc_hash", "prompt_hash")}
    if order is not None:
        random.Random(order).shuffle(lines)
    file.write_text("".join(json.dumps(line | {"doc_id": place}) + "\n" for place, line in enumerate(lines)))


def cell_of(made: Any, recipe: str) -> Cell:
    (cell,) = [cell for cell in made.board() if cell.recipe == recipe]
    return cell


@pytest.mark.slow
@pytest.mark.parametrize("values", ["right or wrong", "partial credit", "unbounded"])
def test_the_order_of_copies_says_nothing(made: Any, kit: Any, values: str) -> None:
    draw = random.Random(1)
    count = 60
    scale = {"right or wrong": lambda: float(draw.random() < 0.5), "partial credit": draw.random}
    drawn = scale.get(values, lambda: draw.gauss(0, 3))
    before, after = ([drawn() for _ in range(count)] for _ in range(2))
    for recipe, scores, seed in (("baseline", before, 0), ("laser", after, 1), ("svd", after, 2)):
        task = kit.Task({"score": scores}, log_likelihoods=kit.likelihoods(count, seed))
        make_copies(made.run(recipe, {"sums": task}), 3, count, seed)
    cells = [cell_of(made, recipe) for recipe in ("laser", "svd")]
    first, second = [
        (cell.delta, cell.low, cell.high, cell.p_value, cell.lost, cell.gained, cell.verdict) for cell in cells
    ]
    assert first == pytest.approx(second) if values == "unbounded" else first == second
    assert "40 documents are copies of another, word for word" in " ".join(cells[0].notes)
    assert "count as one document" in " ".join(cells[0].notes)


@pytest.mark.slow
def test_copies_logged_in_another_order_are_no_change(made: Any, kit: Any) -> None:
    scores = [1.0, 0.0] * 20
    for recipe, seed in (("baseline", 0), ("laser", 1)):
        task = kit.Task({"acc": scores}, log_likelihoods=kit.likelihoods(40, seed))
        make_copies(made.run(recipe, {"sums": task}), 2, 40, seed)
    cell = cell_of(made, "laser")
    assert (cell.delta, cell.lost, cell.gained, cell.p_value) == (0, 0, 0, 1)
    report = ingest(made.root, None)
    store = report.store
    assert store is not None
    asked = FlipQuestion(cell.baseline_run, cell.run_id, "sums", "acc", "none")
    assert flip_queries.flips(store, asked) == FlippedDocuments([], 0)
    assert flip_queries.often_flipped(store, asked, (cell.run_id,)) == []
    assert compare_choices(store, cell.baseline_run, cell.run_id, "sums", "none") is not None
    store.connection.close()


def test_a_copy_that_changed_is_shown_with_its_own_answer(made: Any, kit: Any) -> None:
    for recipe, scores, seed in (("baseline", [1.0, 0.0, 1.0, 1.0], 0), ("laser", [0.0, 0.0, 1.0, 1.0], 1)):
        likelihoods = [-1.0 - score - seed / 8 for score in scores]
        task = kit.Task({"acc": scores}, log_likelihoods=likelihoods)
        make_copies(made.run(recipe, {"sums": task}), 2, 4, seed)
    report = ingest(made.root, None)
    assert report.store is not None
    (cell,) = [cell for cell in board(report.store) if cell.recipe == "laser"]
    asked = FlipQuestion(cell.baseline_run, cell.run_id, "sums", "acc", "none")
    (flip,) = flip_queries.flips(report.store, asked).shown
    assert (flip.before, flip.after, flip.answer_before, flip.answer_after) == (
        1.0,
        0.0,
        '[["-2.0","False"]]',
        '[["-1.125","False"]]',
    )
    report.store.connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["f1", "word_perplexity"])
def test_copies_of_scores_with_parts_or_weights(made: Any, kit: Any, metric: str) -> None:
    """Metrics of a whole corpus, and log-likelihoods of texts."""
    draw = random.Random(3)
    # Copies have one right answer.
    lines = [
        [[place // 2 % 2, draw.randrange(2)] if metric == "f1" else [-draw.random() * 9, 3] for place in range(40)]
        for _ in range(2)
    ]
    for recipe, values, seed in (("baseline", lines[0], 0), ("laser", lines[1], 1), ("svd", lines[1], 2)):
        if metric == "f1":
            hits = sum(gold and said for gold, said in values)
            score = 2 * hits / sum(gold + said for gold, said in values)
        else:
            score = math.exp(-sum(value for value, _ in values) / sum(weight for _, weight in values))
        task = kit.Task({metric: values}, scores={metric: score}, log_likelihoods=kit.likelihoods(40, seed))
        make_copies(made.run(recipe, {"sums": task}), 2, 40, seed)
    first, second = (cell_of(made, recipe) for recipe in ("laser", "svd"))
    assert first.low is not None
    assert (first.low, first.high, first.p_value) == pytest.approx((second.low, second.high, second.p_value))


@pytest.mark.slow
def test_few_copies_leave_the_exact_test(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 200, lost=30)
    make_copies(made.run("baseline", {"sums": before}), 2, 4)
    make_copies(made.run("laser", {"sums": after}), 2, 4, 1)
    few = cell_of(made, "laser")
    made.run("baseline", {"plain": before}, model="other")
    made.run("laser", {"plain": after}, model="other")
    (plain,) = [cell for cell in made.board() if (cell.recipe, cell.task) == ("laser", "plain")]
    assert (few.p_value, few.low, few.high, few.lost) == (plain.p_value, plain.low, plain.high, plain.lost)
    assert "2 documents are copies of another" in few.notes[0] and "count as one" not in few.notes[0]
    assert not any("copies" in note for note in plain.notes)


def test_many_copies_are_not_many_documents(made: Any, kit: Any) -> None:
    before, after = kit.pair(60, 60, lost=12)
    copied = [made.run(recipe, {"sums": task}) for recipe, task in (("baseline", before), ("laser", after))]
    for place in copied:
        make_copies(place, 6, 60)
    # Twelve losses are those of two documents.
    assert cell_of(made, "laser").verdict == "undecided"


def test_the_noise_floor_counts_copies_as_a_group(made: Any, kit: Any) -> None:
    for place, (scores, size) in enumerate((([1.0, 0.0] * 10, 1), ([1.0, 0.0] * 9 + [0.0, 0.0], 8))):
        task = kit.Task({"acc": scores}, log_likelihoods=kit.likelihoods(20, place))
        path = made.run(
            "baseline", {"sums": task}, folder=f"b{size}", config={"batch_size": size}, spec_id=kit.sha(str(size))
        )
        make_copies(path, 2, 20, place)
    report = ingest(made.root, None)
    assert report.store is not None and not report.rejected
    (floor,) = [floor for floors in noise_floor.floors(report.store).values() for floor in floors]
    assert (floor.documents, floor.flips) == (20, 1)
    report.store.connection.close()
