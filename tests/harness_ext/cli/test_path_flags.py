"""No flag of any command makes a file's name of an address, and no password in one is printed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness_ext.cli import RecipesCLI

ADDRESS = "postgres://team:invented9@127.0.0.1:59432/board"


def actions(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.Action]]:
    """Every argument of a parser and of those inside it, after the command's words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from actions(inner, f"{name} {word}".strip())
        else:
            yield name, action


def read(action: argparse.Action, text: str) -> Any:
    """What an argument makes of a text; None where it refuses it."""
    try:
        return action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError):
        return None


def test_no_argument_makes_a_path_of_an_address() -> None:
    found = list(actions(RecipesCLI().parser))
    named = {name for name, action in found if "--database" in action.option_strings}
    assert {"ingest", "compare", "gate", "report", "runs list", "baseline", "leaderboard", "publish", "doctor"} <= named
    for name, action in found:
        for address in (ADDRESS, "s3://key:inv/ented9@bucket/x"):
            assert not isinstance(read(action, address), Path), (name, action.dest)
        if "--database" in action.option_strings and name != "leaderboard":
            assert read(action, ADDRESS) is None, name
            assert read(action, "a.duckdb") == Path("a.duckdb"), name


@pytest.mark.parametrize(
    "words",
    [
        ("ingest", "a.json", "--database", ADDRESS),
        ("runs", f"--database={ADDRESS}"),
        ("ingest", ADDRESS),
        ("report", "--out", ADDRESS.replace("postgres", "s3")),
        ("compare", ADDRESS, "postgres:/team:invented9@127.0.0.1"),
    ],
)
def test_the_mistake_is_a_sentence_without_the_password(
    words: tuple[str, ...], lm_eval: Callable[..., Any], tmp_path: Path
) -> None:
    ran = lm_eval(*words)
    assert ran.code == 2 and ran.out == "" and "invented9" not in ran.err
    assert "team" not in ran.err or words[0] == "compare"
    assert list(tmp_path.iterdir()) == []
