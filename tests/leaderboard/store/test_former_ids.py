"""A store that knows runs by the ids of an earlier version goes on: nothing doubles, nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.board import board
from leaderboard.errors import UnknownRun
from leaderboard.ingest import ingest
from leaderboard.readers import reader
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.store.deletions import delete, deletions
from leaderboard.store.pins import choose, last_blessing, pin, pins
from tests.leaderboard.gate.gating import gated
from tests.leaderboard.store.earlier import with_former_id


@pytest.fixture
def siblings(made: Any, kit: Any) -> list[Path]:
    """Three pruned variants without samples that shared one id."""
    task, _ = kit.pair(50, 20)
    files = []
    for number in range(3):
        file = made.plain({"sums": task}, samples=False, folder=f"pruned{number}")
        file.write_text(json.dumps({**json.loads(file.read_text()), "num_experts_to_prune": number}))
        files.append(file)
    return files


@pytest.fixture
def old(siblings: list[Path], database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that kept the first of them; its id there."""
    with monkeypatch.context() as earlier:
        earlier.setattr(reader, "with_id", with_former_id)
        report = ingest(siblings, database)
    assert len(report.added) == 1 and report.duplicates == siblings[1:]
    return report.added[0]


def held(database: Path) -> dict[str, str]:
    """Folder -> id of every run in a store."""
    with open_store(database) as store:
        rows = store.rows("SELECT run_id, path FROM runs")
        orphans = store.rows(
            "SELECT run_id FROM scores UNION ALL SELECT run_id FROM run_tasks EXCEPT SELECT run_id FROM runs"
        )
    assert not orphans
    found = {Path(row["path"]).parts[-3]: row["run_id"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_the_swallowed_come_back_and_the_known_one_stays_one(
    siblings: list[Path], database: Path, old: str, order: tuple[int, ...]
) -> None:
    report = ingest([siblings[number] for number in order], database)
    assert len(report.added) == 2 and report.duplicates == [siblings[0]] and not report.rejected
    found = held(database)
    assert set(found) == {"pruned0", "pruned1", "pruned2"} and old not in found.values()
    again = ingest(siblings, database)
    assert not again.added and len(again.duplicates) == 3 and held(database) == found
    with open_store(database) as store:
        with pytest.raises(UnknownRun, match=f"several runs had the id {old[:10]} in an earlier version"):
            queries.run_details(store, old[:10])
        assert {cell.n for cell in board(store)} == {50}


@pytest.mark.slow
def test_pins_and_blessings_follow(siblings: list[Path], database: Path, old: str) -> None:
    pin(database, old, "as agreed")
    with open_store(database, read_only=False) as store:
        store.connection.execute(
            "INSERT INTO blessings (model_name, model_key, recipe_label, run_id, blessed_at, reason)"
            " VALUES ('tiny', 'k', 'plain lm_eval', ?, TIMESTAMP '2026-01-01 00:00:00', 'good')",
            [old],
        )
    ingest(siblings, database)
    new = held(database)["pruned0"]
    assert {entry.run_id for entry in pins(database)} == {new}
    with open_store(database) as store:
        assert set(queries.pinned_baselines(store).values()) == {new}
        blessed = last_blessing(store, "tiny", "plain lm_eval")
        assert blessed and blessed.run_id == new
        assert {cell.run_id for cell in board(store) if cell.verdict == "baseline"} == {new}


@pytest.mark.slow
def test_a_deleted_run_stays_deleted_and_its_siblings_do_not(siblings: list[Path], database: Path, old: str) -> None:
    delete(database, old, "broken")
    report = ingest(siblings, database)
    assert report.deleted == [siblings[0]] and len(report.added) == 2
    assert set(held(database)) == {"pruned1", "pruned2"}
    assert [entry.path for entry in deletions(database)] == [siblings[0]]


@pytest.mark.slow
def test_a_recorded_gate_follows(siblings: list[Path], database: Path, old: str) -> None:
    report = gated(siblings[0], siblings[1], database=database)
    assert report.candidate != old
    with open_store(database, read_only=False) as store:
        store.connection.execute(
            "INSERT INTO gate_runs (gated_at, verdict, exit_code, model_name, recipe_label, candidate, candidate_path,"
            " policy, report) VALUES (TIMESTAMP '2026-01-01 00:00:00', 'PASS', 0, 'tiny', 'x', ?, 'p', '{}', '{}')",
            [old],
        )
    ingest(siblings, database)
    with open_store(database) as store:
        assert store.rows("SELECT candidate FROM gate_runs") == [{"candidate": held(database)["pruned0"]}]


@pytest.mark.slow
def test_a_results_folder_that_was_moved_is_known(
    siblings: list[Path], database: Path, old: str, made: Any, tmp_path: Path
) -> None:
    pin(database, old, "as agreed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in siblings:
        shutil.move(str(file.parents[1]), elsewhere / file.parts[-3])
    report = ingest(elsewhere / "pruned0", database)
    with open_store(database) as store:
        assert queries.run_details(store, old[:10])["run_id"] == held(database)["pruned0"]
    assert not report.added and len(report.duplicates) == 1
    assert {entry.run_id for entry in pins(database)} == set(held(database).values())


@pytest.mark.slow
def test_a_copy_of_a_sibling_is_not_taken_for_the_one_that_is_held(
    siblings: list[Path], database: Path, old: str
) -> None:
    report = ingest(siblings[1], database)
    assert len(report.added) == 1
    assert old in held(database).values()  # as long as its own file is not read again


@pytest.mark.slow
def test_a_rebuild_keeps_what_was_decided(siblings: list[Path], database: Path, old: str) -> None:
    choose(database, old, "as agreed")
    report = ingest(siblings, database, rebuild=True)
    assert len(report.added) == 3
    assert {entry.run_id for entry in pins(database)} == {held(database)["pruned0"]}


def test_samples_without_additions_keep_their_ids(
    made: Any, kit: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = kit.pair(40, 20, lost=3)
    made.plain({"sums": before})
    made.run("laser", {"sums": after})
    with monkeypatch.context() as earlier:
        earlier.setattr(reader, "with_id", with_former_id)
        first = ingest(made.root, database)
    assert len(first.added) == 2
    assert len(ingest(made.root, database).duplicates) == 2 and set(first.added) == set(held_ids(database))


def held_ids(database: Path) -> list[str]:
    """The ids of every run in a store."""
    with open_store(database) as store:
        return [row["run_id"] for row in store.rows("SELECT run_id FROM runs")]
