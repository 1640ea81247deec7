"""Lists in columns: as wide as the terminal, nothing left out."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest

from leaderboard.terminal.listing import ago, listed, with_tabs

NAMES = ["svd", "laser:layers=3,matrices=[up_proj,down_proj]+random-subspace", "x" * 70]
ROWS = [{"status": "failed", "recipe": name, "model": "google/gemma-2b", "id": "0123456789ab"} for name in NAMES]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_list_is_within_the_width_and_whole(width: int) -> None:
    text = listed(ROWS, width, ("recipe", "model"))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and all(line == line.rstrip() for line in lines)
    start, end = lines[0].index("RECIPE"), lines[0].index("MODEL")
    assert "".join(line[start:end].strip() for line in lines[1:]) == "".join(NAMES)
    assert text.count("0123456789ab") == 3


def test_names_are_wrapped_at_their_joints() -> None:
    lines = listed(ROWS[1:2], 70, ("recipe",)).splitlines()
    pieces = [line[8:40].split("  ")[0].strip() for line in lines[1:]]
    assert "".join(pieces) == NAMES[1]
    assert all(re.search(r"[-_./,:+=]$", piece) for piece in pieces[:-1])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_word_is_broken_while_another_column_can_be_narrower(width: int) -> None:
    row = {"recipe": "svd-llm-lora:keep.param_fraction=0.9", "model": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    lines = listed([row | {"task": "mmlu_high_school"}], width, ("recipe", "model")).splitlines()
    place = lines[0].index("MODEL")
    pieces = [line[place:].split("  ")[0].strip() for line in lines[1:]]
    assert all(re.search(r"[-_./,:+=]$", piece) for piece in list(filter(None, pieces))[:-1])


def test_as_few_names_as_can_be_are_wrapped() -> None:
    models = ["SmolLM2-135M-Instruct"] * 6
    names = ["svd", "magnitude", "eigenprune-greedy", "svd-llm+random-subspace", "laser", "sfsd"]
    rows = [{"recipe": name, "model": model, "id": "0" * 12} for name, model in zip(names, models)]
    assert len(listed(rows, 60, ("recipe", "model")).splitlines()) == 7
    assert len(listed(rows, 56, ("recipe", "model")).splitlines()) == 8


def test_what_cannot_be_wrapped_is_not_cut() -> None:
    assert "0123456789ab" in listed(ROWS, 20) and NAMES[2] in listed(ROWS, 20)


def test_colour_takes_no_room() -> None:
    plain = listed(ROWS, 80, ("recipe",))
    tinted = listed(ROWS, 80, ("recipe",), {"failed": "31"})
    assert re.sub(r"\x1b\[\d+m", "", tinted) == plain and tinted.count("\x1b[31mfailed\x1b[0m") == 3


def test_a_pipe_gets_tabs_and_no_tricks() -> None:
    assert with_tabs([{"a": "b\tc\nd", "e": "f"}, {"a": "\x1b[31m", "e": ""}]) == "b c d\tf\n [31m\t"


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (timedelta(seconds=3), "now"),
        (timedelta(minutes=5, seconds=59), "5m"),
        (timedelta(hours=23), "23h"),
        (timedelta(days=3), "3d"),
        (timedelta(days=70), "2mo"),
        (timedelta(days=800), "2y"),
        (-timedelta(days=3), "now"),
    ],
)
def test_how_long_ago(passed: timedelta, said: str) -> None:
    now = datetime(2026, 5, 1)
    assert ago(now - passed, now) == said and ago(None, now) == "?"
