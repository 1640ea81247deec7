"""Tables for other programs: JSON, CSV and Markdown of the rows that a command or a page shows.

Names come from files that anybody may have written. In Markdown they stand in code spans, where neither links, images,
HTML nor mentions mean anything. A spreadsheet runs a CSV cell that begins like a formula: such text gets an apostrophe
in front, in CSV alone. In JSON a number is a number, and one that is not finite is null.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from leaderboard.board.cell import Cell
from leaderboard.board.further import all_metrics
from leaderboard.terminal.format import interval, metric_name, number, plain

Form = Literal["text", "json", "markdown", "csv"]
Row = Mapping[str, Any]
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class OurText(str):
    """Text of ours in a table for Markdown, not a name from a file: it stands there as it is."""

    __slots__ = ()


class TerminalStyle(NamedTuple):
    """Columns of the terminal, and whether to colour."""

    width: int
    color: bool


def terminal_style() -> TerminalStyle:
    """The style of standard output: 120 columns and no colour where it is no terminal, or where `NO_COLOR` is set;
    `CLICOLOR_FORCE` colours what goes elsewhere too.
    """
    forced = os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0")
    wanted = (sys.stdout.isatty() and os.environ.get("TERM") != "dumb") or forced
    return TerminalStyle(shutil.get_terminal_size((120, 24)).columns, wanted and not os.environ.get("NO_COLOR"))


def written(form: Form, rows: Sequence[Row], shown: Sequence[Row] | None = None) -> str:
    """Rows of the same keys as JSON, CSV or Markdown, without a final newline. shown: for Markdown, fewer columns with
    formatted numbers.
    """
    if form == "json":
        return json.dumps([_plain_data(dict(row)) for row in rows], indent=2, ensure_ascii=False)
    if form == "csv":
        return as_csv(rows, "\n").rstrip("\n")
    return as_markdown(rows if shown is None else shown)


def as_csv(rows: Sequence[Row], line_end: str = "\r\n") -> str:
    """A line of names, and one a row. Nothing stands for what is missing; lists are joined by semicolons."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator=line_end)
    writer.writerow({column: no_formula(column) for column in rows[0]})
    writer.writerows({column: no_formula(_flat(value)) for column, value in row.items()} for row in rows)
    return text.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """A table as GitHub reads it: numbers to the right, names as code."""
    if not rows:
        return ""
    columns = list(rows[0])
    right = [all(_is_numeric(row[column]) for row in rows) for column in columns]
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if is_right else "---" for is_right in right) + "|",
        *("| " + " | ".join(_markdown_cell(row[column]) for column in columns) + " |" for row in rows),
    ]
    return "\n".join(lines)


def markdown_code(text: str) -> str:
    """`text` as a code span that nothing in it can end, also within a table; nothing for nothing."""
    bare = plain(text).replace("`", "'").strip()
    # a pipe behind a backslash would end the cell however it is escaped
    safe = re.sub(r"(\\*)\|", lambda found: rf"{found[1]}" + ("\u00a6" if found[1] else r"\|"), bare)
    return f"`{safe}`" if safe else ""


def as_text(text: str) -> str:
    """Text from a file inside a sentence of Markdown: shown letter by letter, never as markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-!<>|$~:" else letter for letter in plain(text))


def no_formula(value: Any) -> Any:
    """`value` with an apostrophe in front where a spreadsheet would run it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def cells_shown(cells: Sequence[Cell]) -> list[Row]:
    """Judged cells as a short table: a row a metric, the primary one of each task first."""
    models = len({cell.model for cell in cells}) > 1
    return [
        {
            **({"model": cell.model} if models else {}),
            "task": cell.task,
            "recipe": cell.name,
            "metric": metric_name(cell),
            "documents": cell.n,
            "baseline": OurText(number(cell.baseline_score)),
            "score": OurText(number(cell.score)),
            "delta [95 %]": OurText("" if cell.delta is None else interval(cell)),
            "verdict": OurText(cell.verdict),
        }
        for cell in all_metrics(cells)
    ]


def _is_numeric(value: Any) -> bool:
    if value is None or isinstance(value, (int, float)):
        return not isinstance(value, bool)
    return isinstance(value, OurText) and re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?%?|-|", value) is not None


def _markdown_cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    flat = _flat(value)
    if flat is None:
        return ""
    if isinstance(flat, OurText):
        return plain(flat).replace("|", r"\|")
    if isinstance(flat, bool):
        return "yes" if flat else "no"
    if isinstance(flat, float):
        return number(flat)
    return f"{flat:,}" if isinstance(flat, int) else markdown_code(str(flat))


def _flat(value: Any) -> Any:
    """One cell's value: nothing for NaN, lists joined, dates in ISO form."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, (list, tuple)):
        return "; ".join(str(_flat(item)) for item in value)
    return value if isinstance(value, (str, bool, int, float)) or value is None else _plain_data(value)


def _plain_data(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"  # the store has UTC
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_data(item) for key, item in value.items()}
    if hasattr(value, "item"):  # a number of NumPy's
        return _plain_data(value.item())
    return [_plain_data(item) for item in value] if isinstance(value, (list, tuple)) else value
