"""Commands that read a database, where there is none: one sentence, and nothing is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboard.app import serve


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The databases whose page would have been served."""
    databases: list[Path] = []
    monkeypatch.setattr(serve, "serve", lambda database, **_: databases.append(database))
    return databases


@pytest.mark.parametrize(
    "words",
    [
        ("leaderboard",),
        ("report", "--out", "board.html"),
        ("runs",),
        ("runs", "list", "--deleted"),
        ("runs", "delete", "abc", "--reason", "typo"),
        ("runs", "restore", "abc"),
        ("baseline", "list"),
        ("baseline", "set", "abc", "--reason", "typo"),
        ("claims",),
        ("show", "abc"),
    ],
)
def test_the_mistake_is_a_sentence_and_nothing_is_made(
    words: tuple[str, ...], lm_eval: Callable[..., Any], served: list[Path], tmp_path: Path
) -> None:
    ran = lm_eval(*words, "--database", "nowhere/leaderboard.duckdb")
    assert (ran.code, ran.out, served) == (2, "", [])
    assert ran.err.startswith("error: there is no leaderboard at nowhere/leaderboard.duckdb yet: run `lm_eval run")
    assert ran.err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_a_page_of_a_file_that_is_no_database_is_refused(
    lm_eval: Callable[..., Any], served: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no database")
    for name in ("notes.txt", "."):
        ran = lm_eval("leaderboard", "--database", name)
        assert (ran.code, served) == (2, []) and ran.err.startswith(f"error: {name} ")


def test_the_page_of_the_default_database_says_how_to_fill_it(lm_eval: Callable[..., Any], served: list[Path]) -> None:
    assert lm_eval("leaderboard").code == 0 and lm_eval("claims").code == 0
    assert served == [Path("results/leaderboard.duckdb")]
