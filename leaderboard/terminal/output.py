"""Tables in the formats that others read: CSV, Markdown, LaTeX, JSON, Parquet. A table is a sequence of rows with the
same keys; its values are plain ones of Python.

Notable choices:
- Names, notes and reasons come from files that anybody may have written. A spreadsheet runs a CSV cell that begins like
  a formula: such text gets an apostrophe in front. In Markdown, text that would link, mention, embed or compute becomes
  a code span, and other signs of markup are escaped. In LaTeX all of its signs are.
- What is missing, NaN and infinity are an empty cell, and null in JSON.
- Numbers keep all digits in CSV, JSON and Parquet, and six in Markdown and LaTeX.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

from leaderboard.terminal.format import plain

Row = Mapping[str, Any]
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_ACTIVE = re.compile(r"@|\$|://|www\.|#\d|\bGH-\d|:[a-z0-9_+-]+:|javascript:|mailto:|xmpp:", re.IGNORECASE)
"""What GitHub makes something of wherever it stands: mentions, formulas, links, references, emoji."""
_MARKUP = re.compile(r"[\\`*\[\]<>|~&!{}]|(?<![^\W_])_|_(?![^\W_])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row that begins with it would be read as the space after the row before
    "*": "{*}",
    '"': r"\textquotedbl{}",
    "\u2212": "$-$",
    "\u2605": r"$\bigstar$",
    "\u25b2": r"$\blacktriangle$",
    "\u25b4": r"$\blacktriangle$",
    "\u25b3": r"$\vartriangle$",
    "\u25bc": r"$\blacktriangledown$",
    "\u00b7": r"$\cdot$",
    "\u2a2f": r"$\times$",
    "\u2192": r"$\rightarrow$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def as_csv(rows: Sequence[Row]) -> str:
    """CSV with a line of names; lines end as the format wants (`\\r\\n`)."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([_no_formula(name) for name in rows[0]])
    writer.writerows([[_csv_value(value) for value in row.values()] for row in rows])
    return text.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """A table as GitHub reads it, with a final newline. Columns of numbers stand to the right."""
    if not rows:
        return ""
    names = list(rows[0])
    lines = [
        [markdown_cell(name) for name in names],
        ["---:" if _is_numeric(rows, name) else "---" for name in names],
        *([markdown_cell(value) for value in row.values()] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_json(rows: Sequence[Row]) -> str:
    """A list of objects, in ASCII, with a final newline."""
    return json.dumps([_json_value(row) for row in rows], indent=2) + "\n"


def as_latex(rows: Sequence[Row], caption: str) -> str:
    """A `table` of the packages booktabs and amssymb, with its caption above, and a final newline."""
    if not rows:
        return ""
    names = list(rows[0])
    aligned = "".join("r" if _is_numeric(rows, name) else "l" for name in names)
    head, *body = ([latex_text(value) for value in line] for line in [names, *(row.values() for row in rows)])
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,amssymb}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex_text(caption)}}}",
            rf"  \begin{{tabular}}{{{aligned}}}",
            r"    \toprule",
            rf"    {' & '.join(head)} \\",
            r"    \midrule",
            *(rf"    {' & '.join(line)} \\" for line in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def as_parquet(rows: Sequence[Row]) -> bytes:
    """A Parquet file: one column a key; numbers stay numbers."""
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), file)
    return file.getvalue()


def markdown_cell(value: Any) -> str:
    """A value as text of a Markdown table, in which nothing of it is markup."""
    text = shown(value)
    if _ACTIVE.search(text):
        return _code_span(text).replace("|", "\\|")
    return markdown_text(text)


def markdown_text(text: str) -> str:
    """Text in a line of Markdown, in which nothing of it is markup: signs are escaped, or it is a code span."""
    text = plain(text).strip()
    return _code_span(text) if _ACTIVE.search(text) else _MARKUP.sub(lambda found: f"\\{found[0]}", text)


def latex_text(value: Any) -> str:
    """A value as text of LaTeX, in which nothing of it is a command."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"${shown(value)}$" if shown(value).startswith("-") else shown(value)
    text = "".join(_LATEX.get(letter, letter) for letter in shown(value))
    return re.sub("--", "-{}-", text)


def shown(value: Any) -> str:
    """A value as one line of text, for the eye."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return plain(str(value)).strip()


def _code_span(text: str) -> str:
    """A code span that nothing in the text can end."""
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def _is_numeric(rows: Sequence[Row], name: str) -> bool:
    """Whether a column holds numbers, and nothing else but gaps."""
    values = [row[name] for row in rows if row[name] not in (None, "")]
    return bool(values) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _csv_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat(" ") if isinstance(value, datetime) else _no_formula(value)


def _no_formula(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_json_value(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else str(value)
