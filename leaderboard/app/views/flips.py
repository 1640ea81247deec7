"""Documents whose answer went from right to wrong or back: which, what was asked, what both runs answered, and which
documents many recipes flip.

Its URL ends in `?run=<run>&task=<task>`; `a=<run>&b=<run>` compares run b with another run than the board's baseline.
Prompts and answers may hold anything: they are shown as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from leaderboard.app import (
    data,
    document_view,
    flip_queries,
    html_table,
    layout,
    run_choice,
    tables,
    url_state,
)
from leaderboard.app.charts import flip_matrix
from leaderboard.app.comparison import improvement
from leaderboard.app.document_view import Sides
from leaderboard.app.download import downloads
from leaderboard.app.flip_queries import Flip, FlipQuestion, OftenFlipped
from leaderboard.board.across_models import unedited
from leaderboard.board.board import pair_board
from leaderboard.board.cell import COMPARED, Cell
from leaderboard.board.standings import kind
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import counted, plain
from leaderboard.terminal.marks import MARKS, MINUS, gain

ALL, LOST, GAINED = "all flips", "lost", "gained"
_SIGNS = {LOST: "\u25bc lost", GAINED: "\u25b2 gained"}


def main() -> None:
    """Draw the page."""
    overview = layout.overview_or_stop()
    places = st.columns([2, 4, 3])
    run = run_choice.choose(overview, places)
    if run is None:
        return
    cells, other = cells_of(run, overview)
    tasks = sorted(cell.task for cell in cells if cell.metric and cell.verdict != BASELINE)
    if not tasks:
        say_nothing(run, cells, overview)
        return
    first = next((cell.task for cell in cells if cell.lost or cell.gained), tasks[0])
    task = url_state.one_of(places[2], "Task", tasks, "task", first=first)
    cell = next(cell for cell in cells if cell.task == task)
    html_table.show(html_table.lead([sentence(cell, other, overview)]))
    if cell.lost is None or cell.baseline_run is None:
        st.info("The documents of this task are not right or wrong, or cannot be put side by side: none can flip.")
        for note in dict.fromkeys(map(plain, cell.notes)):
            st.text(note)
        return
    often, names = often_flipped(cell, overview)
    sides = Sides(cell, other is not None, {(row.doc_key, row.occurrence): row for row in often}, names)
    show_documents(sides, overview)
    show_matrix(sides, often)


def say_nothing(run: str, cells: Sequence[Cell], overview: data.Answer[data.Overview]) -> None:
    """Why there are no documents to show."""
    if cells and all(cell.verdict == BASELINE for cell in cells):
        st.info("This run is the baseline itself: choose the run of a recipe.")
        return
    st.info("No task of this run has documents that are right or wrong and a baseline that it may be compared with.")
    for note in dict.fromkeys(plain(note) for cell in cells for note in cell.notes):
        st.text(note)


def cells_of(run: str, overview: data.Answer[data.Overview]) -> tuple[list[Cell], str | None]:
    """The run's cells against the run that the URL names, and that run; or against the board's own baseline, and
    None.
    """
    runs = overview.value.runs
    other = run_choice.named_run(runs, "a")
    if other is not None and other != run and {runs[name].status for name in (other, run)} == {"complete"}:
        return layout.further_or_stop(lambda: data.answer(pair_board, other, run), overview), other
    board = layout.further_or_stop(lambda: data.cells_of(runs[run].model_key), overview)
    return [cell for cell in board if cell.run_id == run], None


def sentence(cell: Cell, other: str | None, overview: data.Answer[data.Overview]) -> str:
    """`1 lost, 11 gained of 200 documents: better than baseline and control (+0.050).`"""
    what = kind(cell)
    verdict = MARKS[what].words if other is None and what not in COMPARED else cell.verdict
    number = gain(improvement(cell), minus=MINUS)
    said = f"{verdict}{f' ({number})' if number else ''}"
    if cell.lost is not None:
        counts = f"{cell.lost:,} lost, {cell.gained:,} gained of {counted(cell.n or 0, 'document', 'documents')}: "
        said = f"{counts}{said}"
    if other is None:
        return f"{said}."
    runs = overview.value.runs
    return f"{said}, against {plain(runs[other].name or runs[other].recipe)} ({other[:8]})."


def often_flipped(cell: Cell, overview: data.Answer[data.Overview]) -> tuple[list[OftenFlipped], dict[str, str]]:
    """The documents that any recipe of the model flips, and run -> recipe of those that were looked at: the latest of
    each that is compared with the same baseline; controls are left out.
    """
    board = layout.further_or_stop(lambda: data.cells_of(overview.value.runs[cell.run_id].model_key), overview)
    like = [
        c
        for c in board
        if (c.task, c.metric, c.filter, c.baseline_run) == (cell.task, cell.metric, cell.filter, cell.baseline_run)
        and c.lost is not None
        and c.control is None
        and not unedited(c.recipe)
    ]
    latest = {c.name: c for c in tables.by_age(like)}
    names = {c.run_id: plain(c.name) for c in latest.values()}
    if not names:
        return [], {}
    question = FlipQuestion(cell.baseline_run or "", "", cell.task, cell.metric, cell.filter)
    runs = tuple(sorted(names))
    return layout.further_or_stop(lambda: data.answer(flip_queries.often_flipped, question, runs), overview), names


def show_documents(sides: Sides, overview: data.Answer[data.Overview]) -> None:
    """Filter and search, the list, and beneath it the document chosen."""
    cell = sides.cell
    left, right = st.columns([2, 5], vertical_alignment="bottom")
    which = _filter(left)
    search = url_state.text(right, "Find in prompts and answers", "find", placeholder="Find in prompts and answers")
    up = 1 if cell.higher_is_better else -1
    change = {LOST: -up, GAINED: up}.get(which, 0)
    question = FlipQuestion(
        cell.baseline_run or "", cell.run_id, cell.task, cell.metric, cell.filter, change, search.strip().lower()
    )
    found = layout.further_or_stop(lambda: data.answer(flip_queries.flips, question), overview)
    if not found.shown:
        st.info("No document of these has this text." if search.strip() else "No document changed this way.")
        return
    if found.total > len(found.shown):
        st.caption(f"The {len(found.shown)} largest changes of {found.total:,}.")
    flip = _pick(found.shown, sides, question)
    document_view.show(flip, sides)


def _filter(place: Any) -> str:
    """Which flips to show; all of them stand in no URL."""
    asked = st.query_params.get("show", ALL)
    value = asked if asked in (LOST, GAINED) else ALL
    st.session_state["show"] = value
    place.segmented_control(
        "Documents", (ALL, LOST, GAINED), key="show", required=True, label_visibility="collapsed", on_change=_filtered
    )
    return value


def _filtered() -> None:
    value = st.session_state["show"]
    url_state.put("show", [] if value == ALL else [value])


def _pick(shown: Sequence[Flip], sides: Sides, question: FlipQuestion) -> Flip:
    """Draw the list; the document that is ticked, or that the URL names, or the first."""
    rows = [document_view.row(flip, sides) for flip in shown]
    asked = st.query_params.get("doc", "")
    first = next((place for place, flip in enumerate(shown) if asked and flip.doc_key.startswith(asked)), 0)
    picked = st.dataframe(
        layout.tinted(rows, ["Change"]).format(_SIGNS.get, subset=["Change"]),
        hide_index=True,
        width="stretch",
        height=300 if len(rows) > 7 else "content",
        key=f"flips {question}",
        on_select="rerun",
        selection_mode="single-row-required",
        selection_default={"selection": {"rows": [first]}},
        placeholder="",
        column_order=[name for name in rows[0] if name != "Document"] + ["Document"],
        column_config=document_view.columns(rows),
    )
    downloads(rows, "flips")
    ticked = [place for place in picked["selection"]["rows"] if place < len(shown)] or [first]
    flip = shown[ticked[0]]
    if ticked[0] != 0 or asked:
        url_state.put("doc", [flip.doc_key[:12]])
    return flip


def show_matrix(sides: Sides, often: Sequence[OftenFlipped]) -> None:
    """Documents that flip under many recipes: they are near the border, or the recipes break the same thing."""
    if len(sides.names) < 2:
        return
    st.subheader("Which documents flip everywhere", anchor=False)
    if not often:
        st.info("No document flips under any recipe.")
        return
    cell = sides.cell
    layout.plot(
        flip_matrix.chart(often, sides.names, higher_is_better=cell.higher_is_better),
        flip_matrix.sentence(often, sides.names, cell.n),
        title="Documents that flip, by recipe",
        cells=[cell],
    )
    rows = [document_view.often_row(row, sides) for row in often[: flip_queries.MOST_DOCUMENTS]]
    with st.expander("As a table"):
        st.dataframe(
            rows, hide_index=True, placeholder="", width="stretch", key=f"often {cell.task} {cell.baseline_run}"
        )
        downloads(rows, "often")


main()
