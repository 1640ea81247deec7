"""Addresses where a path is meant are refused before the disk is touched, and no password of theirs is told."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

import leaderboard
from leaderboard.errors import LeaderboardError
from leaderboard.terminal.path_flags import database_or_postgres, database_path, local_path

ADDRESSES = (
    "postgres://team:invented9@127.0.0.1:5432/board",
    "postgresql://team:inv/ented9@host/board",
    "POSTGRES://team:invented9@host/board",
    "postgres:/team:invented9@host/board",
    "s3://key:inv/ented9@bucket/board",
)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("read", [local_path, database_path])
def test_a_path_is_no_address(read: Callable[[str], Path], address: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        read(address)
    assert "ented9" not in str(caught.value) and "on this machine, not" in str(caught.value)
    if "postgres" in address.lower():
        for way_out in ("`lm_eval leaderboard --database`", "`lm_eval publish --to`"):
            assert way_out in str(caught.value)


def test_paths_stay_paths() -> None:
    for text in ("results/leaderboard.duckdb", "/a/b", "C:\\a", "a:b", "./postgres", "postgres.duckdb"):
        assert local_path(text) == database_path(text) == database_or_postgres(text) == Path(text)


def test_the_page_takes_a_postgresql_as_it_is() -> None:
    assert database_or_postgres(ADDRESSES[0]) == ADDRESSES[0]
    for address in ADDRESSES[2:]:
        with pytest.raises(argparse.ArgumentTypeError, match="must be like postgres://USER|not an address") as caught:
            database_or_postgres(address)
        assert "ented9" not in str(caught.value)


@pytest.mark.parametrize("address", ADDRESSES)
def test_functions_refuse_them_too(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = Path(address) if address.startswith("post") else address
    for use in (
        lambda: leaderboard.ingest([tmp_path], database),
        lambda: leaderboard.ingest([tmp_path], database, rebuild=True),
        lambda: leaderboard.board(database),
        lambda: leaderboard.open_store(database, read_only=False).__enter__(),
    ):
        with pytest.raises(LeaderboardError, match="takes a file on this machine, not") as caught:
            use()
        assert "ented9" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
