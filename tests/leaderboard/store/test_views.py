"""The views for SQL: as documented, complete, equal to the board, and never stale."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.board.board import board
from leaderboard.compare import verdict_cache
from leaderboard.errors import OlderDatabase
from leaderboard.ingest import ingest
from leaderboard.store import migrations
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


@pytest.fixture
def filled_with_control(made: Any, kit: Any, filled: Path) -> Path:
    """The same with a control of the better recipe that is as good."""
    _, better = kit.pair(200, 100, gained=60)
    run = made.run("svd+random", {"sums": kit.Task(better.values, log_likelihoods=kit.likelihoods(200, 3))})
    receipt = json.loads((run / "receipt.json").read_text())
    receipt["recipe"] |= {"control": "random", "control_of": kit.sha("svd")}
    (run / "receipt.json").write_text(json.dumps(receipt))
    ingest(made.root, filled)
    return filled


def query(database: Path, sql: str) -> list[tuple[Any, ...]]:
    """As a user asks: DuckDB alone."""
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def verdicts(database: Path) -> dict[str, str | None]:
    return dict(query(database, "SELECT recipe, verdict FROM v_verdicts"))


@pytest.mark.slow
def test_documented_columns_and_examples(filled_with_control: Path, repository: Path) -> None:
    sections = dict(SECTION.findall((repository / "leaderboard" / "README.md").read_text(encoding="utf-8")))
    assert set(sections) == {"v_scores", "v_verdicts", "v_control_verdicts", "v_matrices"}
    for view, text in sections.items():
        columns = {row[0] for row in query(filled_with_control, f"DESCRIBE {view}")}
        documented = {name for row in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(\w+)`", row)}
        assert documented == columns, view
        (example,) = re.findall(r"```sql\n(.*?)```", text, re.S)
        assert query(filled_with_control, example), view


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_other_code_judges_anew(filled: Path, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = query(filled, "SELECT judged_at FROM v_verdicts")
    ingest(made.root, filled)
    assert query(filled, "SELECT judged_at FROM v_verdicts") == before
    monkeypatch.setattr(verdict_cache, "code", lambda: "another version")
    ingest(made.root, filled)
    assert query(filled, "SELECT DISTINCT code FROM verdict_states") == [("another version",)]
    assert query(filled, "SELECT judged_at FROM v_verdicts") > before


@pytest.mark.slow
def test_a_rebuild_fills_the_view(filled: Path, made: Any) -> None:
    before = verdicts(filled)
    ingest(made.root, filled, rebuild=True)
    assert verdicts(filled) == before


@pytest.mark.slow
def test_a_store_of_an_earlier_version_is_brought_up_to_date_by_a_writer(
    made: Any, kit: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = kit.pair(20, 10, lost=1)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after})
    ingest(made.root, database)
    full = database.rename(database.with_name("full.duckdb"))
    shipped = migrations.all_migrations()
    with monkeypatch.context() as earlier:
        earlier.setattr(migrations, "all_migrations", lambda: tuple(one for one in shipped if one.number < 6))
        with open_store(database, read_only=False):
            pass
    with duckdb.connect(str(database)) as connection:
        connection.execute(f"ATTACH '{full}' AS later (READ_ONLY)")
        for table in ("variants", "runs", "run_tasks", "scores", "docs", "samples", "sample_scores"):
            columns = ", ".join(row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall())
            connection.execute(f"INSERT INTO {table} SELECT {columns} FROM later.{table}")
        connection.execute("UPDATE runs SET settings = '{\"limit\":20.0}' WHERE started > '2026-01-02 03:05:00'")
    with pytest.raises(OlderDatabase, match="lm_eval ingest .* brings it up to date"), open_store(database):
        pass
    ingest(made.root, database)
    assert set(verdicts(database)) == {"baseline", "laser"}
    with open_store(database) as store:
        assert [cell.recipe for cell in board(store)] == ["baseline", "laser"]
        rows = store.rows("SELECT asked, subset FROM runs JOIN run_tasks USING (run_id) ORDER BY started")
        assert rows == [{"asked": None, "subset": None}, {"asked": '{"limit":"limit 20"}', "subset": "limit 20"}]
