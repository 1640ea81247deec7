"""Taking runs off the board, and watching for new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leaderboard.errors import DeletedRun, LeaderboardError, UnknownRun
from leaderboard.ingest import IngestReport, ingest
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.store.deletions import delete, deletions, take_back
from leaderboard.store.lock import file_lock
from leaderboard.store.naming import find_run
from leaderboard.store.pins import choose, pin
from leaderboard.watch import Watch


@pytest.fixture
def two_runs(made: Any, kit: Any, database: Path) -> tuple[Path, Path]:
    """A baseline and a recipe, ingested."""
    base, edited = kit.pair(10, 5, lost=2)
    folders = made.run("baseline", {"sums": base}), made.run("laser", {"sums": edited})
    assert len(ingest([made.root], database).added) == 2
    return folders


def count(database: Path, table: str) -> int:
    with open_store(database) as store:
        return int(store.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"])


@pytest.mark.slow
def test_a_deleted_run_leaves_no_row_and_does_not_come_back(
    two_runs: tuple[Path, Path], made: Any, database: Path
) -> None:
    before = count(database, "docs")
    entry = delete(database, str(two_runs[1]), "wrong tokenizer")
    with open_store(database) as store:
        assert [row.recipe_label for row in queries.runs(store)] == ["baseline"]
        for table in ("run_tasks", "scores", "samples", "sample_scores", "receipts"):
            assert store.rows(f"SELECT count(*) AS n FROM {table} WHERE run_id = ?", [entry.run_id]) == [{"n": 0}]
    assert count(database, "variants") == 1 and count(database, "docs") == before
    for rebuild in (False, True):
        report = ingest([made.root], database, rebuild=rebuild)
        assert [path.name for path in report.deleted] == [two_runs[1].name]
    assert [(item.run_id, item.reason) for item in deletions(database)] == [(entry.run_id, "wrong tokenizer")]
    assert two_runs[1].is_dir()


@pytest.mark.slow
def test_whoever_names_a_deleted_run_is_told_of_the_deletion(two_runs: tuple[Path, Path], database: Path) -> None:
    run_id = delete(database, str(two_runs[1]), "wrong tokenizer").run_id
    told = rf"run {run_id} was taken off the board on .* UTC: wrong tokenizer\. .*runs restore {run_id[:12]}"
    with open_store(database, read_only=True) as store:
        with pytest.raises(DeletedRun, match=told):
            queries.run_details(store, run_id[:8])
        with pytest.raises(UnknownRun, match=told):
            find_run(store, run_id[:8])
        for place in (two_runs[1], next(two_runs[1].glob("results_*.json"))):
            with pytest.raises(UnknownRun, match=told):
                find_run(store, str(place))
        with pytest.raises(UnknownRun, match="no run feedface in the leaderboard"):
            queries.run_details(store, "feedface")


@pytest.mark.slow
def test_a_deletion_taken_back(two_runs: tuple[Path, Path], made: Any, database: Path) -> None:
    run_id = delete(database, str(two_runs[1]), "by mistake").run_id
    assert take_back(database, run_id[:8]).path == two_runs[1]
    assert deletions(database) == []
    assert ingest([made.root], database).added == [run_id]
    with pytest.raises(UnknownRun, match="no deleted runs"):
        take_back(database, run_id[:8])


@pytest.mark.slow
def test_what_cannot_be_deleted(two_runs: tuple[Path, Path], database: Path) -> None:
    with pytest.raises(LeaderboardError, match="needs a reason"):
        delete(database, str(two_runs[0]), " ")
    with pytest.raises(UnknownRun):
        delete(database, "no-such-run", "x")
    pin(database, str(two_runs[0]), "the first")
    with pytest.raises(LeaderboardError, match="pin another one first"):
        delete(database, str(two_runs[0]), "x")


@pytest.mark.slow
def test_watching_takes_what_is_whole_and_only_once(made: Any, kit: Any, database: Path) -> None:
    base, edited = kit.pair(10, 5, lost=2)
    made.run("baseline", {"sums": base})
    told: list[IngestReport] = []
    watch = Watch([made.root], database, told.append, timeout_s=0.2)
    watch.round()
    watch.round()
    assert [len(report.added) for report in told] == [1]
    made.run("laser", {"sums": edited})
    watch.round()
    assert [len(report.added) for report in told] == [1, 1]


def test_watching_lets_a_growing_file_settle_and_a_busy_database_pass(made: Any, kit: Any, database: Path) -> None:
    base, _ = kit.pair(10, 5, lost=2)
    made.plain({"sums": base})
    told: list[IngestReport] = []
    watch = Watch([made.root], database, told.append, timeout_s=0.05)
    watch.round()
    assert told == []
    import time

    with file_lock(database, time.monotonic() + 1, "a test"):
        watch.round()
    assert told == []
    watch.round()
    assert [len(report.added) for report in told] == [1]


def test_who_is_waited_for_is_said(
    made: Any, kit: Any, database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import time

    monkeypatch.setattr("leaderboard.store.lock.SAID_AFTER_SECONDS", 0.0)
    made.run("baseline", {"sums": kit.pair(5, 2)[0]})
    with file_lock(database, time.monotonic() + 1, "a long rebuild"), pytest.raises(LeaderboardError):
        ingest([made.root], database, timeout_s=0.1)
    assert "a long rebuild by process" in caplog.text


@pytest.mark.slow
def test_a_blessed_run_must_be_replaced_first_and_noise_goes_with_its_run(
    two_runs: tuple[Path, Path], made: Any, kit: Any, database: Path
) -> None:
    choose(database, str(two_runs[1]), "the release")
    with pytest.raises(LeaderboardError, match="is the blessed run of its recipe"):
        delete(database, str(two_runs[1]), "x")
    task = kit.pair(10, 5, lost=1)[1]
    task.log_likelihoods = kit.likelihoods(10, 2)
    again = made.run("baseline", {"sums": task}, folder="size", spec_id="size", config={"batch_size": 16})
    ingest([again], database)
    assert count(database, "noise_floors") == 1
    run_id = delete(database, str(again), "x").run_id
    assert count(database, "noise_floors") == 0
    take_back(database, run_id)
    ingest([again], database)
    assert count(database, "noise_floors") == 1
