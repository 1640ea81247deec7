"""Tables for other programs: what they hold, and what names from files cannot do in them."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from leaderboard.board.frame import cell_rows, cells_frame_with_controls
from leaderboard.terminal.output import (
    OurText,
    as_csv,
    as_markdown,
    cells_shown,
    markdown_code,
    terminal_style,
    written,
)

ROW: dict[str, Any] = {
    "name": "a",
    "score": 0.25,
    "none": None,
    "nan": math.nan,
    "large": math.inf,
    "count": 1200,
    "flag": True,
    "when": datetime(2026, 1, 2, 3, 4, 5),
    "where": Path("x/y"),
    "tasks": ["b", "c"],
    "numpy": np.float64(0.5),
}
HOSTILE = [
    "a|b",
    "a\\|b",
    "a\\\\|b",
    "`tick`",
    "two\nlines\r\x1b[31m",
    "<img src=x onerror=alert(1)>",
    "![x](http://evil)",
    "@everyone http://evil www.evil.com",
    "| --- |",
    "",
]


def test_json_has_numbers_and_null() -> None:
    (row,) = json.loads(written("json", [ROW]))
    assert row == {
        "name": "a",
        "score": 0.25,
        "none": None,
        "nan": None,
        "large": None,
        "count": 1200,
        "flag": True,
        "when": "2026-01-02T03:04:05Z",
        "where": "x/y",
        "tasks": ["b", "c"],
        "numpy": 0.5,
    }
    assert json.loads(written("json", [])) == []


def test_csv_reads_back() -> None:
    text = written("csv", [ROW, {**ROW, "name": 'q"u,o\nte'}])
    first, second = csv.DictReader(io.StringIO(text))
    assert first["score"] == "0.25" and first["none"] == first["nan"] == "" and first["tasks"] == "b; c"
    assert first["when"] == "2026-01-02T03:04:05Z" and second["name"] == 'q"u,o\nte'
    assert written("csv", []) == "" and "\r" not in written("csv", [ROW])


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_a_spreadsheet_runs_nothing(start: str) -> None:
    text = f"{start}HYPERLINK(1)"
    (row,) = csv.DictReader(io.StringIO(as_csv([{text: text, "b": -0.5}]), newline=""))
    assert row == {f"'{text}": f"'{text}", "b": "-0.5"}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_stays_in_its_cell_in_markdown(text: str) -> None:
    head, line, row = as_markdown([{"name": text, "score": 0.5}]).split("\n")
    assert head == "| name | score |" and line == "|---|---:|"
    assert len(unescaped_cells(row)) == 2 and unescaped_cells(row)[1].strip() == "0.5000"
    span = unescaped_cells(row)[0].strip()
    assert span == markdown_code(text)
    assert not span or (span[0] == span[-1] == "`" and "`" not in span[1:-1] and span.isprintable())


def unescaped_cells(row: str) -> list[str]:
    """The cells of a row as GitHub parts them: a backslash takes the letter behind it along."""
    cells, at = [""], 1
    while at < len(row) - 1:
        if row[at] == "\\":
            cells[-1] += row[at : at + 2]
            at += 2
            continue
        if row[at] == "|":
            cells.append("")
        else:
            cells[-1] += row[at]
        at += 1
    return cells


def test_markdown_of_our_own_words() -> None:
    assert as_markdown([{"a": OurText("+0.5 [0|1]"), "b": OurText("12.5%"), "c": 1200, "d": None, "e": False}]) == (
        "| a | b | c | d | e |\n|---|---:|---:|---:|---|\n| +0.5 [0\\|1] | 12.5% | 1,200 |  | no |"
    )
    assert as_markdown([]) == ""


def test_rows_of_cells_are_those_of_the_frame(made: Any, kit: Any) -> None:
    before, after = kit.pair(60, 30, lost=9)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after})
    cells = made.board()
    rows, frame = cell_rows(cells), cells_frame_with_controls(cells)
    assert [set(row) for row in rows] == [{*frame.columns, "baseline_run", "notes"}] * len(frame)
    for row, (_, framed) in zip(rows, frame.iterrows()):
        for column in frame.columns:
            assert pandas.isna(framed[column]) if row[column] is None else framed[column] == row[column], column
    assert [row["verdict"] for row in cells_shown(cells)] == [row["verdict"] for row in rows]


@pytest.mark.parametrize(
    ("settings", "color"),
    [({}, False), ({"CLICOLOR_FORCE": "1"}, True), ({"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False)],
)
def test_colour_is_for_terminals_unless_asked_for(
    settings: dict[str, str], color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "97")
    assert terminal_style() == (97, color)
