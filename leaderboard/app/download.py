"""What is shown, as a file: CSV for people and spreadsheets, Parquet with its types.

Notable choice: a spreadsheet runs a CSV cell that begins like a formula, and names come from anybody. Such text gets an
apostrophe in front, in CSV alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import streamlit as st

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def downloads(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Two buttons for these rows, of which each has the same keys; none where there are no rows. `name` is the file's,
    without ending, and unique on its page.
    """
    if not rows:
        return
    with st.container(horizontal=True):
        st.download_button(
            "CSV",
            lambda: as_csv(rows),
            f"{name}.csv",
            "text/csv",
            key=f"csv {name}",
            icon=":material/download:",
            on_click="ignore",
        )
        st.download_button(
            "Parquet",
            lambda: as_parquet(rows),
            f"{name}.parquet",
            key=f"parquet {name}",
            icon=":material/download:",
            on_click="ignore",
        )


def as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """UTF-8 with a line of names. Nothing stands for what is missing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writerow({column: _no_formula(column) for column in rows[0]})
    writer.writerows({column: _no_formula(value) for column, value in row.items()} for row in rows)
    return text.getvalue().encode("utf-8")


def as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """One column a key; numbers stay numbers."""
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
