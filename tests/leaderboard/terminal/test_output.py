"""Tables for others to read: what is in them is text there, whatever it holds."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import datetime
from pathlib import Path

import pytest

from leaderboard.terminal.output import as_csv, as_json, as_latex, as_markdown, as_parquet, markdown_text

ROWS = [
    {"Recipe": "laser", "int_mult": -0.25, "n": 80, "better": True, "when": datetime(2026, 11, 26, 9, 31)},
    {"Recipe": "svd:a|b", "int_mult": math.nan, "n": None, "better": None, "when": None},
]
HOSTILE = (
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "a|b\n| new | row |",
    "@everyone #12 $\\frac{1}{2}$ :tada:",
    "`` ` ``|`",
    "\u202eevil\u202c",
    "**bold** __init__ ~~gone~~ &lt;b&gt;",
)


def test_csv_holds_every_digit_and_no_formula() -> None:
    rows = [{"=name": "=HYPERLINK(1)", "x": 0.1 + 0.2}, {"=name": "+0.25", "x": math.inf}, {"=name": "-x", "x": None}]
    head, *body = csv.reader(io.StringIO(as_csv(rows)))
    assert head == ["'=name", "x"]
    assert body == [["'=HYPERLINK(1)", "0.30000000000000004"], ["+0.25", ""], ["'-x", ""]]


def test_json_is_ascii_and_has_no_nan() -> None:
    rows = [
        {"name": "\u202e\u00fc", "x": math.nan, "path": Path("a/b"), "deep": {"y": [math.inf, 1]}, "t": ROWS[0]["when"]}
    ]
    text = as_json(rows)
    assert text.isascii()
    assert json.loads(text) == [
        {"name": "\u202e\u00fc", "x": None, "path": "a/b", "deep": {"y": [None, 1]}, "t": "2026-11-26T09:31:00"}
    ]


def test_markdown_is_a_table_of_github() -> None:
    assert as_markdown(ROWS).splitlines() == [
        "| Recipe | int_mult | n | better | when |",
        "| --- | ---: | ---: | --- | --- |",
        "| laser | -0.25 | 80 | yes | 2026-11-26 09:31 |",
        "| svd:a\\|b |  |  |  |  |",
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_in_markdown(name: str) -> None:
    table = as_markdown([{name: name}])
    assert len(table.splitlines()) == 3 and "\u202e" not in table
    cell = table.splitlines()[2].removeprefix("| ").removesuffix(" |")
    unescaped = cell.replace("\\\\", "").replace("\\|", "")
    assert "|" not in unescaped
    if cell.startswith("`"):  # a code span: nothing inside ends it
        fence = cell[: len(cell) - len(cell.lstrip("`"))]
        assert cell.endswith(fence) and cell.strip("`").find(fence) == -1
    else:
        for sign in "`*[]<>~&":
            assert sign not in cell.replace(f"\\{sign}", "")


def test_names_of_tasks_stay_readable_in_markdown() -> None:
    assert markdown_text("int_mult_clean") == "int_mult_clean"
    assert markdown_text("__init__") == "\\_\\_init\\_\\_"


def test_latex_escapes_its_own_signs() -> None:
    table = as_latex(
        [{"a_b": "50% & $x$ #1 {y} \\input{/etc/passwd} ~^", "x": -0.5}, {"a_b": "[1cm]", "x": 2}], "T_1 & more"
    )
    assert r"\caption{T\_1 \& more}" in table and r"\begin{tabular}{lr}" in table
    assert (
        r"50\% \& \$x\$ \#1 \{y\} \textbackslash{}input\{/etc/passwd\} \textasciitilde{}\textasciicircum{} & $-0.5$"
        in table
    )
    assert r"    {[}1cm] & 2 \\" in table
    assert table.count(r"\\") == 3 and r"\midrule" in table


def test_parquet_keeps_numbers() -> None:
    import pyarrow.parquet

    rows = [{"x": 1.5, "name": "=a"}, {"x": None, "name": "b"}]
    assert pyarrow.parquet.read_table(io.BytesIO(as_parquet(rows))).to_pylist() == rows


def test_of_no_rows_nothing_is_written() -> None:
    assert (as_csv([]), as_markdown([]), as_latex([], "x"), as_json([])) == ("", "", "", "[]\n")
