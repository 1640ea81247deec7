"""A run's receipt on its page: what was done to which matrix, what it was calibrated on, how searches and trainings
went. Everything in it is shown as text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from leaderboard.app import data, layout, run_files
from leaderboard.app.charts.grid import place_map
from leaderboard.app.download import downloads
from leaderboard.app.linked_table import RUN_BLUE
from leaderboard.app.run_files import OnDisk
from leaderboard.board.layers import LayerEdit, places
from leaderboard.readers.weights_digest import short_digest
from leaderboard.terminal.format import counted, number, percent, plain

_STEPS = ("epoch", "number")  # what a training and a search count in
_MEASURES = ("loss", "accuracy")


def show(details: data.Details, edits: Sequence[LayerEdit], lying: OnDisk) -> None:
    """All of it. edits: the run's own; lying: the receipt as a file."""
    st.subheader("Receipt", anchor=False)
    run = details.run
    before, after = run["parameters_before"], run["parameters_after"]
    if before and after:
        st.text(
            f"{before:,} parameters before, {after:,} after ({percent(after / before)} kept, as the edits are stored);"
            f" {counted(len(details.matrices), 'matrix', 'matrices')} edited"
        )
    if details.matrices:
        _show_matrices(details.matrices, edits)
    else:
        st.text("No matrix was edited.")
    if details.calibrations:
        st.caption("Calibrated on")
        st.dataframe(
            [plain_row(row) for row in details.calibrations],
            hide_index=True,
            placeholder="",
            width="stretch",
            key="calibrations",
        )
    if lying.receipt is None:
        st.caption("How searches and trainings went stands in the receipt itself, which cannot be shown:")
        st.text(plain(lying.reason))
        return
    for place, search in enumerate(run_files.records(lying.receipt, "searches")):
        _show_search(place, search)
    _show_log(run_files.records(lying.receipt, "log"))
    st.download_button(
        "receipt.json",
        lambda: run_files.as_text(lying.receipt).encode(),
        "receipt.json",
        "application/json",
        icon=":material/download:",
        on_click="ignore",
    )


def _show_matrices(matrices: Sequence[dict[str, Any]], edits: Sequence[LayerEdit]) -> None:
    ranked = [edit for edit in edits if edit.rank_kept is not None]
    if ranked:
        kept = [edit.rank_kept or 0.0 for edit in ranked]
        least, most = (f"{100 * value:.0f} %" for value in (min(kept), max(kept)))
        layout.plot(
            place_map(places(ranked, {}), "least rank kept"),
            f"The share of its rank that each matrix kept, by layer: {least} at least, {most} at most. What is not"
            " drawn was not edited.",
            title="Rank kept by layer and matrix",
        )
    st.dataframe([_matrix(row) for row in matrices], hide_index=True, placeholder="", width="stretch", key="matrices")
    downloads(matrices, "matrices")


def _matrix(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "Step": row["step"],
        "Method": plain(row["method"] or ""),
        "Matrix": plain(row["name"]) + (f" [{plain(row['part'])}]" if row["part"] else ""),
        "Shape": row["shape"],
        "Rank": f"{row['rank_before']} -> {row['rank_after']}",
        "Energy kept": percent(row["energy_kept"]),
        "Relative error": number(row["relative_error"]),
        "Excess error, at most": None if row["excess_error"] is None else f"{row['excess_error']:.1e}",
        "Decomposition": plain(row["decomposition"] or ""),
        "Stored": plain(row["stored"] or ""),
        "Seconds": None if row["seconds"] is None else round(row["seconds"], 4),
        "Fallback": plain(row["fallback"] or ""),
        "Role": plain(row["role"] or ""),
        "Layer": row["layer"],
        "Digest before": plain(short_digest(row["digest_before"] or "")),
        "Digest after": plain(short_digest(row["digest_after"] or "")),
    }


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its texts safe to show."""
    return {plain(name).capitalize(): plain(value) if isinstance(value, str) else value for name, value in row.items()}


def _show_search(place: int, search: dict[str, Any]) -> None:
    """What a search chose, and everything that it tried."""
    st.subheader("Search", anchor=False)
    trials = run_files.records(search, "trials")
    st.text(plain(f"step {search.get('step')}: {search.get('method')}, {counted(len(trials), 'trial', 'trials')}"))
    if search.get("chosen") == []:
        reason = search.get("reason")
        st.text(plain(f"Nothing was found: {reason}" if isinstance(reason, str) else "Nothing was found."))
    else:
        st.caption("What was found, as the steps that take the search's place")
        st.code(run_files.as_text(search.get("chosen"), 2), language=None, wrap_lines=True)
    layout.facts_table(
        {
            name: value
            for name, value in run_files.flat([search])[0].items()
            if name not in ("trials", "chosen", "reason")
        }
    )
    if trials:
        with st.expander(f"All {len(trials)} trials"):
            _show_course(trials, "trials")
            rows = run_files.flat(trials)
            st.dataframe(_texts(rows), hide_index=True, placeholder="", width="stretch", key=f"trials {place}")
            downloads(rows, f"trials-{place}")


def _show_log(log: Sequence[dict[str, Any]]) -> None:
    """How trainings went, and what removals of components, or masks of units, were tried out."""
    if not log:
        return
    title, rows_are = "Log of the training", "epochs"
    if all("removes" in row for row in log):
        title, rows_are = "Removals on trial", "trials"
    elif all("trials" in row for row in log):
        title, rows_are = "Masks on trial", "measurements"
    st.subheader(title, anchor=False)
    _show_course(log, rows_are)
    rows = run_files.flat(log)
    with st.expander(f"All {len(rows)} entries"):
        st.dataframe(_texts(rows), hide_index=True, placeholder="", width="stretch", key="log")
        downloads(rows, "log")


def _show_course(entries: Sequence[dict[str, Any]], of_what: str) -> None:
    """The loss (or accuracy) from entry to entry, if they have one."""
    step = next((name for name in _STEPS if any(_is_number(entry.get(name)) for entry in entries)), None)
    measure = next((name for name in _MEASURES if any(_is_number(entry.get(name)) for entry in entries)), None)
    if step is None or measure is None:
        return
    rows = [
        {"at": entry[step], "value": entry[measure], "step": f"step {plain(str(entry.get('step', '-')))}"}
        for entry in entries
        if _is_number(entry.get(step)) and _is_number(entry.get(measure))
    ]
    if len(rows) < 2:
        return
    first, last = rows[0]["value"], rows[-1]["value"]
    layout.plot(
        _course(rows, step, measure),
        f"The {measure} over {len(rows)} {of_what}: {number(first)} at first, {number(last)} at last,"
        f" {number(min(row['value'] for row in rows))} at least.",
        title=f"{measure} over {len(rows)} {of_what}",
    )


def _course(rows: Sequence[dict[str, Any]], step: str, measure: str) -> Any:
    import altair as alt
    import pandas as pd

    return (
        alt.Chart(pd.DataFrame(list(rows)))
        .mark_line(point=True, color=RUN_BLUE)
        .encode(
            x=alt.X("at:Q", title=step, axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=measure, scale=alt.Scale(zero=False)),
            detail="step:N",
            tooltip=["step:N", "at:Q", "value:Q"],
        )
        .properties(height=260)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _texts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table whose columns may hold one kind of value in one row and another in the next: all as text."""
    return [
        {
            plain(name): "" if value is None else number(value) if isinstance(value, float) else plain(str(value))
            for name, value in row.items()
        }
        for row in rows
    ]
