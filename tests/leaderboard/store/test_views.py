"""The views for SQL: as documented, complete, equal to the board, and never stale."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.board.board import board
from leaderboard.compare import verdict_cache
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.store.deletions import delete
from leaderboard.store.pins import pin

SECTION = re.compile(r"^### (v_\w+)\n(.*?)(?=^##|\Z)", re.M | re.S)


@pytest.fixture
def filled(made: Any, kit: Any, database: Path) -> Path:
    """A database of a baseline, a clearly better and a clearly worse recipe, and a failed one."""
    before, better = kit.pair(200, 100, gained=60)
    _, worse = kit.pair(200, 100, lost=60)
    made.run("baseline", {"sums": before})
    made.run("svd", {"sums": better})
    made.run("laser", {"sums": worse})
    made.failed("asvd", {"sums": before})
    ingest(made.root, database)
    return database


def query(database: Path, sql: str) -> list[tuple[Any, ...]]:
    """As a user asks: DuckDB alone."""
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def verdicts(database: Path) -> dict[str, str | None]:
    return dict(query(database, "SELECT recipe, verdict FROM v_verdicts"))


def test_documented_columns_and_examples(filled: Path, repository: Path) -> None:
    sections = dict(SECTION.findall((repository / "leaderboard" / "README.md").read_text(encoding="utf-8")))
    assert set(sections) == {"v_scores", "v_verdicts", "v_matrices"}
    for view, text in sections.items():
        columns = {row[0] for row in query(filled, f"DESCRIBE {view}")}
        documented = {name for row in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(\w+)`", row)}
        assert documented == columns, view
        (example,) = re.findall(r"```sql\n(.*?)```", text, re.S)
        assert query(filled, example), view


def test_verdicts_are_the_boards(filled: Path) -> None:
    names = ("run_id", "task", "verdict", "n", "baseline_score", "score", "delta", "low", "high", "improvement", "lost")
    stored = query(filled, f"SELECT {', '.join(names)}, p, q FROM v_verdicts")
    with open_store(filled) as store:
        cells = board(store)
    fields = (*names, "p_value", "q_value")
    assert sorted(stored) == sorted(tuple(getattr(cell, name) for name in fields) for cell in cells)
    assert verdicts(filled) == {"baseline": "baseline", "svd": "better", "laser": "worse", "asvd": "failed"}


def test_scores_and_matrices(filled: Path) -> None:
    assert query(filled, "SELECT recipe, score, status FROM v_scores ORDER BY ALL") == [
        ("baseline", 0.5, "complete"),
        ("laser", 0.2, "complete"),
        ("svd", 0.8, "complete"),
    ]
    assert query(filled, "SELECT shape, rank_after, method FROM v_matrices WHERE recipe = 'svd'") == [
        ("8 x 4", 2, "truncate_svd")
    ]


def test_stale_verdicts_are_not_shown_and_the_next_ingest_judges_anew(filled: Path, made: Any) -> None:
    runs = dict(query(filled, "SELECT recipe, run_id FROM v_verdicts"))
    pin(filled, runs["svd"], "try")
    assert verdicts(filled) == dict.fromkeys(runs)
    ingest(made.root, filled)
    assert verdicts(filled) == {"baseline": "worse", "svd": "baseline", "laser": "worse", "asvd": "failed"}
    delete(filled, runs["laser"], "gone")
    assert verdicts(filled) == {"baseline": None, "svd": None, "asvd": None}
    ingest(made.root, filled)
    assert verdicts(filled) == {"baseline": "worse", "svd": "baseline", "asvd": "failed"}


def test_other_code_judges_anew(filled: Path, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = query(filled, "SELECT judged_at FROM v_verdicts")
    ingest(made.root, filled)
    assert query(filled, "SELECT judged_at FROM v_verdicts") == before
    monkeypatch.setattr(verdict_cache, "code", lambda: "another version")
    ingest(made.root, filled)
    assert query(filled, "SELECT DISTINCT code FROM verdict_states") == [("another version",)]
    assert query(filled, "SELECT judged_at FROM v_verdicts") > before


def test_a_rebuild_fills_the_view(filled: Path, made: Any) -> None:
    before = verdicts(filled)
    ingest(made.root, filled, rebuild=True)
    assert verdicts(filled) == before


def test_a_store_without_the_views_is_read_as_before(made: Any, kit: Any, database: Path) -> None:
    before, after = kit.pair(20, 10, lost=1)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after})
    ingest(made.root, database)
    with duckdb.connect(str(database)) as connection:
        for view in ("v_scores", "v_verdicts", "v_matrices", "model_states"):
            connection.execute(f"DROP VIEW {view}")
        for table in ("verdicts", "verdict_states"):
            connection.execute(f"DROP TABLE {table}")
    with open_store(database) as store:
        assert [cell.recipe for cell in board(store)] == ["baseline", "laser"]
