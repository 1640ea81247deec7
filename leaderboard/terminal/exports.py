"""Tables as files for papers and programs: LaTeX and Parquet. The forms that a terminal prints are in `output`.

In LaTeX nothing of a name is a command, and numbers have six digits; what is missing, NaN and infinity are empty.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from leaderboard.terminal.format import plain
from leaderboard.terminal.output import Row

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


def _is_numeric(rows: Sequence[Row], name: str) -> bool:
    """Whether a column holds numbers, and nothing else but gaps."""
    values = [row[name] for row in rows if row[name] not in (None, "")]
    return bool(values) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
