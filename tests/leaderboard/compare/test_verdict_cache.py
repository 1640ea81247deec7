"""Remembered comparisons: the same board as without them, asked for anew where the question changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leaderboard.board import board as board_module
from leaderboard.board import run_cells
from leaderboard.board.board import board
from leaderboard.compare import verdict_cache
from leaderboard.ingest import ingest
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.store.deletions import delete


@pytest.fixture
def filled(made: Any, kit: Any, database: Path) -> Path:
    """A database of two unedited runs, two recipes and a task that cannot be compared, with its comparisons stored."""
    for k, recipe in enumerate(["baseline", "baseline", "laser", "svd"]):
        task = kit.Task(
            {"acc": [float((i * (k + 2)) % 7 < 3) for i in range(60)]}, log_likelihoods=kit.likelihoods(60, k)
        )
        other = kit.Task({"acc": [1.0] * 9}, log_likelihoods=kit.likelihoods(9, k), shots=k)
        made.run(
            recipe,
            {"sums": task, "shots": other},
            folder=f"{recipe}-{k}",
            started=f"2026-01-02T03:04:0{k}+00:00",
            settings_id=f"s{k}",
            spec_id=f"spec{k}",
        )
    ingest([made.root], database)
    return database


def stored(database: Path) -> int:
    with open_store(database) as store:
        return int(store.rows("SELECT count(*) AS n FROM comparisons")[0]["n"])


def judged_anew(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are judged from now on."""
    asked: list[str] = []
    real = run_cells.pair_up
    monkeypatch.setattr(
        run_cells,
        "pair_up",
        lambda store, contents, subject, *rest: (
            asked.append(subject.run.run_id) or real(store, contents, subject, *rest)
        ),
    )
    return asked


def test_a_board_is_the_same_with_and_without(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored(filled) == 5
    asked = judged_anew(monkeypatch)
    with open_store(filled) as store:
        cells = board(store)
        assert asked == []
        monkeypatch.setattr(verdict_cache, "code", lambda: "another version")
        assert board(store) == cells and len(asked) == 5


@pytest.mark.slow
def test_a_new_pin_asks_for_other_rows_and_a_deleted_run_takes_its_own_along(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(filled, read_only=False) as store:
        runs = {run.recipe_label: run.run_id for run in queries.runs(store)}
        queries.pin_baseline(store, runs["svd"], "try")
        asked = judged_anew(monkeypatch)
        cells = board(store)
        assert len(asked) == 4 and {cell.baseline_run for cell in cells if cell.task == "sums"} == {runs["svd"]}
        own = {cell.run_id for cell in cells if cell.task == "shots" and cell.baseline_run == cell.run_id}
        assert len(own) == 3 and runs["svd"] in own and runs["laser"] not in own  # of other shots than the pinned one
    delete(filled, runs["laser"], "gone")
    assert stored(filled) == 3


@pytest.mark.slow
def test_other_margins_are_judged_every_time(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = judged_anew(monkeypatch)
    with open_store(filled) as store:
        board(store, margin=0.5)
    assert len(asked) == 5


@pytest.mark.slow
def test_a_rebuild_and_a_later_ingest_fill_the_table(filled: Path, made: Any) -> None:
    ingest([made.root], filled, rebuild=True)
    assert stored(filled) == 5


@pytest.mark.slow
def test_judging_ahead_in_turns_gets_to_the_end(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "_AT_ONCE", 1)
    with open_store(filled, read_only=False) as store:
        store.connection.execute("DELETE FROM comparisons")
        (model,) = {run.model_key for run in queries.runs(store)}
        turns = 0
        while not (ahead := board_module.judge_ahead(store, [model], 0.0)).done:
            assert ahead.new and not ahead.boards
            verdict_cache.write(store, ahead.new)
            turns += 1
        assert turns == 2 and ahead.boards[model] == sorted(board(store), key=ahead.boards[model].index)
