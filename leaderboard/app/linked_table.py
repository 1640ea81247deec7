"""What pages over many runs share besides the frame: the boards of several models, and tables whose rows lead to their
runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import streamlit as st

from leaderboard.app import data, layout
from leaderboard.app.colours import tinted
from leaderboard.app.menu import RUN
from leaderboard.board.cell import Cell
from leaderboard.readers.safe_json import digest
from leaderboard.terminal.format import counted

RUN_BLUE = "#1f77c0"  # marks of what is looked at, where no verdict gives a colour
ROWS_IN_FULL = 25


def cells_of(model_keys: Iterable[str], first: data.Answer[Any]) -> list[Cell]:
    """The boards of some models, for a page that has had its `first` answer."""
    keys = sorted(set(model_keys))
    with st.spinner(f"Reading and judging {counted(len(keys), 'board', 'boards')}"):
        return layout.further_or_stop(partial(data.cells_of, *keys), first) if keys else []


def content_key(*content: object) -> str:
    """A key that changes with what a table shows: a table that is given other rows keeps its old widths and loses a
    click.
    """
    return digest(content)[:16]


def linked_table(
    rows: Sequence[dict[str, Any]],
    run_ids: Sequence[str],
    name: str,
    *,
    words: Iterable[str] = (),
    columns: dict[str, Any] | None = None,
) -> None:
    """A table of which every row leads to its run (`run_ids`, one a row) once its box is ticked. `words`: columns whose
    words bear their colour.
    """
    picked = st.dataframe(
        tinted(rows, words),
        hide_index=True,
        placeholder="",
        width="stretch",
        height="content" if len(rows) <= ROWS_IN_FULL else 700,
        key=f"{name} {content_key(name, *run_ids)}",
        on_select="rerun",
        selection_mode="single-row",
        column_config=columns or {},
    )
    chosen = picked["selection"]["rows"]
    if chosen and chosen[0] < len(run_ids):
        st.switch_page(RUN.script, query_params={"run": run_ids[chosen[0]]})
