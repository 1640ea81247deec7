"""What is shown, as a file: CSV for people and spreadsheets, Parquet with its types.

`terminal.output` writes the CSV, for the commands too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import streamlit as st

from leaderboard.terminal import output


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
    return output.as_csv(rows).encode("utf-8")


def as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """One column a key; numbers stay numbers."""
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()
