"""Judging beside the pages: done once, stored, and no harm where nothing can be stored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from leaderboard import ingest as ingest_module
from leaderboard import judging
from leaderboard.board import stored_verdicts
from leaderboard.errors import Busy
from leaderboard.ingest import ingest
from leaderboard.judging import keep_judged
from leaderboard.store.database import open_store


@pytest.fixture
def database(made: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of which nothing is judged."""
    before, after = kit.pair(400, 200, gained=60)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after})
    path: Path = made.root / "leaderboard.duckdb"
    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "judge_outdated", lambda *_: None)
        ingest([made.root], path)
    return path


def rounds(count: int) -> Any:
    left = iter([True] * count)
    return lambda: next(left, False)


def verdicts(database: Path) -> list[str]:
    with open_store(database) as store:
        return [
            row["verdict"] for row in store.rows("SELECT verdict FROM v_verdicts WHERE is_primary ORDER BY verdict")
        ]


@pytest.mark.slow
def test_what_is_outdated_is_judged_and_stored(database: Path) -> None:
    assert verdicts(database) == [None, None]
    keep_judged(database, rounds(2), 0.0)
    assert verdicts(database) == ["baseline", "better"]
    with open_store(database) as store:
        assert not stored_verdicts.outdated(store)


@pytest.mark.slow
def test_what_stands_is_not_looked_at_again(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    asked = judging._is_judged
    monkeypatch.setattr(judging, "_is_judged", lambda path: looks.append(path) or asked(path))
    keep_judged(database, rounds(8), 0.0)
    assert len(looks) == 2  # once to judge, once to find that all is judged
    os.utime(database)
    keep_judged(database, rounds(3), 0.0)
    assert len(looks) == 3


def test_what_cannot_be_stored_is_left_alone(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_judged(tmp_path / "absent.duckdb", rounds(2), 0.0)
    assert not (tmp_path / "absent.duckdb").exists()
    (tmp_path / "none.duckdb").write_text("no database")
    keep_judged(tmp_path / "none.duckdb", rounds(2), 0.0)
    assert (tmp_path / "none.duckdb").read_text() == "no database"
    monkeypatch.setattr(judging.os, "access", lambda *_: False)  # type: ignore[attr-defined]
    state = database.stat().st_mtime_ns
    keep_judged(database, rounds(3), 0.0)
    assert database.stat().st_mtime_ns == state and verdicts(database) == [None, None]


def test_a_store_of_an_earlier_schema_is_not_migrated(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging.migrations, "latest", lambda: 10**6)
    keep_judged(database, rounds(3), 0.0)
    monkeypatch.undo()
    assert verdicts(database) == [None, None]


@pytest.mark.slow
def test_a_busy_store_is_asked_again(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter([True, False])
    judge = judging.judge_outdated

    def busy_once(*arguments: Any) -> None:
        if next(tries, False):
            raise Busy("somebody writes")
        judge(*arguments)

    monkeypatch.setattr(judging, "judge_outdated", busy_once)
    keep_judged(database, rounds(4), 0.0)
    assert verdicts(database) == ["baseline", "better"]
