"""Commands that messages advise: complete, quoted, and no longer than needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from leaderboard.commands import DEFAULT_DATABASE, ingest_command, run_arguments


def test_the_default_database_needs_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ingest_command(DEFAULT_DATABASE, "PATH") == "lm_eval ingest PATH"
    assert ingest_command(DEFAULT_DATABASE.resolve(), "PATH") == "lm_eval ingest PATH"
    assert ingest_command(DEFAULT_DATABASE, rebuild=True) == "lm_eval ingest --rebuild results"
    assert run_arguments(DEFAULT_DATABASE) == []


def test_any_other_database_is_named() -> None:
    assert (
        ingest_command(Path("other/leaderboard.duckdb")) == "lm_eval ingest other --database other/leaderboard.duckdb"
    )
    assert ingest_command(Path("my runs/b.duckdb")) == "lm_eval ingest 'my runs' --database 'my runs/b.duckdb'"


def test_a_run_is_sent_to_the_folder_where_its_database_would_be() -> None:
    assert run_arguments(Path("other/leaderboard.duckdb")) == ["--output_path", "other"]
    assert run_arguments(Path("other/board.duckdb")) == []
