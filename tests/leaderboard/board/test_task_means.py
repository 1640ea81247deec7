"""Claims of means over tasks: of the run that has them all, with limits that hold, and held against the control."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.board.board import board
from leaderboard.board.cell import Cell, changed
from leaderboard.board.claims import claims, command_for, recipe_for
from leaderboard.board.reported import Reported, is_claimed, published
from leaderboard.board.task_means import run_means
from leaderboard.ingest import ingest
from leaderboard.report.claim_words import judged_claim, verdict_sentence
from leaderboard.statistics.binary import bonett_price
from leaderboard.store.database import open_store

ROW = next(entry for entry in published() if entry.members and (recipe_for(entry) or "").startswith("sfsd-released:"))
COUNTS = (400, 300, 500, 200, 350, 250)


def of_task(task: str, metric: str, count: int, delta: float, low: float, high: float, **more: Any) -> Cell:
    known: dict[str, Any] = {"delta": delta, "low": low, "high": high, "improvement": delta} | more
    return Cell("m", "sfsd", "run", task, metric, "none", count, 0.5, 0.5 + delta, "undecided", **known)


def test_limits_of_a_mean_follow_from_those_of_its_tasks() -> None:
    """By the formula of variance recovery, written anew; every task counts the same."""
    parts = [("a", "acc", 100, 0.1, 0.02, 0.15), ("b", "acc_norm", 900, -0.02, -0.05, 0.03), ("c", "acc", 50, 0, 0, 0)]
    members = [(task, metric) for task, metric, *_ in parts]
    (mean,) = run_means([of_task(*part) for part in parts], "all", "acc", members)
    deltas, lows, highs = (np.array([part[place] for part in parts]) for place in (3, 4, 5))
    below, above = math.sqrt(((deltas - lows) ** 2).sum()) / 3, math.sqrt(((highs - deltas) ** 2).sum()) / 3
    assert (mean.delta, mean.low, mean.high) == pytest.approx(
        (deltas.mean(), deltas.mean() - below, 0.0267 + above), abs=1e-4
    )
    assert mean.score == pytest.approx(0.5 + deltas.mean()) and mean.baseline_score == 0.5
    assert mean.n == int(9 / (1 / 100 + 1 / 900 + 1 / 50)) and (mean.task, mean.metric) == ("all", "acc")


def test_a_pooled_mean_is_that_of_all_documents() -> None:
    parts = [("a", "acc", 100, 0.1, 0.02, 0.15), ("b", "acc", 300, -0.02, -0.05, 0.03)]
    members = [(task, metric) for task, metric, *_ in parts]
    (mean,) = run_means([of_task(*part) for part in parts], "all", "acc", members, pooled=True)
    delta = (100 * 0.1 + 300 * -0.02) / 400
    above = math.sqrt((0.25 * 0.05) ** 2 + (0.75 * 0.05) ** 2)
    assert (mean.n, mean.delta, mean.score) == (400, pytest.approx(delta), pytest.approx(0.5 + delta))
    assert mean.high == pytest.approx(delta + above, abs=1e-4)
    # the weights are the counts: none without them
    uncounted = [of_task(*parts[0]), changed(of_task(*parts[1]), n=None)]
    assert not list(run_means(uncounted, "all", "acc", members, pooled=True))
    assert len(list(run_means(uncounted, "all", "acc", members))) == 1


def test_nine_of_ten_tasks_are_no_mean_of_ten() -> None:
    parts = [of_task("a", "acc", 10, 0, 0, 0), of_task("b", "acc", 10, 0, 0, 0)]
    assert not list(run_means(parts, "all", "acc", [("a", "acc"), ("b", "acc_norm")]))
    assert not list(
        run_means(
            [*parts[:1], of_task("b", "acc", 10, 0, 0, 0, control="c")], "all", "acc", [("a", "acc"), ("b", "acc")]
        )
    )


def test_a_part_without_an_interval_leaves_the_mean_without_one() -> None:
    whole, other = of_task("a", "acc", 10, 0.1, 0.05, 0.2), of_task("b", "acc", 10, 0.1, 0.0, 0.2)
    bare = changed(other, low=None, high=None)
    (mean,) = run_means([whole, bare], "all", "acc", [("a", "acc"), ("b", "acc")])
    assert (mean.low, mean.high, mean.verdict) == (None, None, "undecided") and mean.delta == pytest.approx(0.1)
    (partial,) = run_means(
        [whole, of_task("b", "acc", 10, 0, 0, 0, subset="first 10 of 60 documents")],
        "all",
        "acc",
        [("a", "acc"), ("b", "acc")],
    )
    assert partial.subset == "first 10 of 60 documents of b"


def test_the_reason_is_that_of_the_task_that_has_none() -> None:
    noted = changed(
        of_task("a", "acc", 100, 0.1, 0.02, 0.15), notes=("acc 0.250 is not shown to beat guessing (0.250)",)
    )
    broken = changed(of_task("b", "acc", 100, 0, 0, 0), verdict="incomparable", notes=("another prompt",))
    (mean,) = run_means([noted, broken], "all", "acc", [("a", "acc"), ("b", "acc")])
    assert (mean.verdict, mean.notes) == ("incomparable", ("b: another prompt",))
    bare = changed(broken, verdict="undecided", low=None, high=None, notes=("not every document bears this metric",))
    (mean,) = run_means([noted, bare], "all", "acc", [("a", "acc"), ("b", "acc")])
    assert mean.low is None and mean.notes == ("b: not every document bears this metric",)


def test_the_limits_hold_what_they_say() -> None:
    """Simulated: six tasks of unlike sizes and shares of flips, a mean that falls by 0.02."""
    random = np.random.default_rng(0)
    flips = [(0.10, 0.06), (0.03, 0.03), (0.15, 0.13), (0.04, 0.01), (0.06, 0.04), (0.05, 0.04)]
    truth = np.mean([gained - lost for lost, gained in flips])
    members, held, draws = [(str(place), "acc") for place in range(6)], 0, 2000
    for _ in range(draws):
        parts = []
        for place, ((lost, gained), count) in enumerate(zip(flips, COUNTS, strict=True)):
            fell, rose, _ = random.multinomial(count, [lost, gained, 1 - lost - gained])
            found = bonett_price(int(fell), int(rose), count)
            parts.append(of_task(str(place), "acc", count, (rose - fell) / count, found.low, found.high))
        (mean,) = run_means(parts, "all", "acc", members)
        assert mean.low is not None and mean.high is not None
        held += mean.low <= truth <= mean.high
    assert held / draws == pytest.approx(0.95, abs=0.015)


@pytest.fixture
def cells(made: Any, kit: Any, database: Path) -> list[Cell]:
    """LLaMA-7B unedited, with the paper's recipe, and its control, on the six tasks, each with both accuracies."""

    def write(label: str, of_control: bool, shift: int) -> None:
        tasks = {}
        for (task, metric), count in zip(ROW.members, COUNTS, strict=True):
            right = round(ROW.before * count) - shift * count // 100
            own = [1.0] * right + [0.0] * (count - right)
            values = {"acc": own} if metric == "acc" else {"acc": [0.0] * count, metric: own}
            tasks[task] = kit.Task(values, log_likelihoods=kit.likelihoods(count, shift))
        run = made.run(label, tasks, model="huggyllama/llama-7b")
        if of_control:
            receipt = json.loads((run / "receipt.json").read_text())
            receipt["recipe"] |= {"control": "random-subspace", "control_of": kit.sha(ROW.run)}
            (run / "receipt.json").write_text(json.dumps(receipt))

    write("baseline", False, 0)
    write(str(ROW.run), False, 5)
    write(f"{ROW.run}+random-subspace", True, 30)
    assert not ingest([made.root], database).rejected
    with open_store(database, read_only=True) as store:
        return board(store)


def test_a_mean_is_judged_with_its_control(cells: list[Cell]) -> None:
    (claim,) = [claim for claim in claims(cells, [ROW]) if claim.cell is not None]
    cell = claim.cell
    assert cell is not None and cell.task == ROW.task and cell.verdict == "worse" and cell.beats_controls
    assert judged_claim(ROW, cell).word == "supported"
    said = verdict_sentence(ROW, cell)
    few = changed(cell, verdict="undecided", says_nothing=True, notes=("acc is not shown to beat guessing (0.250)",))
    assert judged_claim(ROW, few).why.endswith("the run has no interval: too few documents")
    in_place = changed(cell, task="audit_commonsense", n=48)
    assert " on 48 documents: reported" in verdict_sentence(ROW, in_place, is_the_claim=False)
    assert " on 6 tasks: reported 0.6961 -> 0.6468" in said and "(better); the claim is supported" in said


def test_what_a_paper_reports_by_another_metric_is_held_against_the_control_too(cells: list[Cell]) -> None:
    """HellaSwag's normalised accuracy is not its task's first metric."""
    rows = [entry for entry in published() if entry.task == "hellaswag" and recipe_for(entry) == ROW.run]
    (claim,) = [claim for claim in claims(cells, rows) if claim.cell is not None]
    assert claim.cell is not None and claim.cell.metric == "acc_norm" and not claim.cell.is_primary
    assert claim.cell.beats_controls and "no control was run" not in verdict_sentence(claim.reported, claim.cell)
    plain = next(cell for cell in cells if cell.task == "arc_easy" and cell.recipe == ROW.run)
    assert not is_claimed("huggyllama/llama-7b", "arc_easy", "sfsd", "acc") and plain.against_controls


def test_every_mean_names_tasks_that_are_asked_one_by_one(cells: list[Cell]) -> None:
    means: list[Reported] = [entry for entry in published() if entry.members]
    assert {entry.task for entry in means} == {"sfsd_suite", "mean_of_seven", "mmlu_math"}
    command = command_for(ROW)
    assert command is not None and f"--tasks {' '.join(task for task, _ in ROW.members)} --recipe" in command
    for entry in means:
        parts = tuple(task for task, _ in entry.members)
        assert entry.tasks == (("mmlu_math",) if entry.pooled else parts) and entry.asked


def test_a_level_of_a_pooled_mean_is_judged_by_all_documents() -> None:
    row = next(entry for entry in published() if entry.pooled)
    counts = (100, 100, 378, 270, 216)
    parts = [
        Cell("huggyllama/llama-7b", "baseline", "run", task, "acc", "none", count, None, row.after, "baseline")
        for (task, _), count in zip(row.members, counts, strict=True)
    ]
    (claim,) = claims(parts, [row])
    assert claim.cell is not None and (claim.cell.n, claim.cell.score) == (sum(counts), pytest.approx(row.after))
    assert judged_claim(row, claim.cell).word == "undecided", "1,064 documents tell a score to 0.027"
    off = [changed(part, score=0.5) for part in parts]
    (claim,) = claims(off, [row])
    assert claim.cell is not None and judged_claim(row, claim.cell).word == "contradicted"
