"""Documents whose answer went from right to wrong or back: which, what was asked, what both runs answered, and which
documents many recipes flip.

Its URL ends in `?b=<run>&task=<task>`; `a=<run>` compares with another run than the board's baseline. Prompts and
answers may hold anything: they are shown as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from leaderboard.app import answer_text, data, layout, page_queries, tables, url_state
from leaderboard.app.charts import flips
from leaderboard.app.download import downloads
from leaderboard.app.page_queries import MOST_DOCUMENTS, Flip
from leaderboard.board.across_models import unedited
from leaderboard.board.board import pair_board
from leaderboard.board.cell import Cell
from leaderboard.terminal.format import counted, interval, metric_name, number, plain

ALL, LOST, GAINED = "lost and gained", "lost", "gained"


def main() -> None:
    """Draw the page."""
    st.title("Flips", anchor=False)
    overview = layout.overview_or_stop()
    labels = layout.run_labels(overview.value)
    run = url_state.by_id(st, "Run", labels, "b", first=None)
    if run is None:
        st.info(
            "Choose a run: the documents that it gets wrong and its baseline got right are listed here, and those the"
            " other way round."
        )
        return
    cells = cells_of(run, overview)
    flipped = [cell for cell in cells if cell.lost is not None and cell.baseline_run]
    if not flipped:
        st.info(
            "No task of this run has documents that are right or wrong and a baseline that it may be compared with."
        )
        for note in dict.fromkeys(plain(note) for cell in cells for note in cell.notes):
            st.text(note)
        return
    columns = st.columns(2)
    most = max(flipped, key=lambda cell: (cell.lost or 0) + (cell.gained or 0)).task
    task = url_state.one_of(columns[0], "Task", sorted({cell.task for cell in flipped}), "task", first=most)
    which = url_state.one_of(columns[1], "Documents", (ALL, LOST, GAINED), "show")
    cell = next(cell for cell in flipped if cell.task == task)
    st.text(f"A: {labels.get(str(cell.baseline_run), cell.baseline_run)}\nB: {labels[run]}")
    st.caption(
        f"{cell.verdict}: {cell.lost} lost, {cell.gained} gained of {cell.n:,} documents; difference {interval(cell)}"
    )
    found = layout.further_or_stop(
        lambda: data.answer(page_queries.flips, cell.baseline_run, run, task, cell.metric, cell.filter), overview
    )
    show_documents([flip for flip in found if which == ALL or word_of(flip, cell) == which], cell, overview)
    show_often(cell, overview)


def cells_of(run: str, overview: data.Answer[data.Overview]) -> list[Cell]:
    """The run's cells, against the run that the URL names or the board's own baseline."""
    against = st.query_params.get("a", "")
    other = next((known for known in overview.value.runs if against and known.startswith(against)), None)
    if against and other is None:
        st.warning(
            "The run to compare with is not known here; the leaderboard's baseline takes its place:",
            icon=":material/filter_alt_off:",
        )
        st.text(plain(against))
    if (
        other is not None
        and other != run
        and {overview.value.runs[name].status for name in (other, run)} == {"complete"}
    ):
        return layout.further_or_stop(lambda: data.answer(pair_board, other, run), overview)
    board = layout.further_or_stop(lambda: data.cells_of(overview.value.runs[run].model_key), overview)
    return [cell for cell in board if cell.run_id == run]


def word_of(flip: Flip, cell: Cell) -> str:
    """Whether a document was lost or gained."""
    return GAINED if (flip.after > flip.before) == cell.higher_is_better else LOST


def show_documents(found: Sequence[Flip], cell: Cell, overview: data.Answer[data.Overview]) -> None:
    """The list, and beneath it the one chosen."""
    st.subheader("Documents", anchor=False)
    if not found:
        st.info("No document changed this way.")
        return
    if len(found) >= MOST_DOCUMENTS:
        st.caption(f"The {MOST_DOCUMENTS} largest changes.")
    rows = [_row(flip, cell) for flip in found]
    picked = st.dataframe(
        layout.tinted(rows, ["Change"]),
        hide_index=True,
        width="stretch",
        height=280 if len(rows) > 6 else "content",
        key=f"flips {cell.baseline_run} {cell.run_id} {cell.task} {len(rows)} {rows[0]['Change']}",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            name: st.column_config.TextColumn(width="medium") for name in ("Right answer", "A answered", "B answered")
        },
    )
    st.caption(
        "Margin: log-likelihood of the right answer minus the best other choice's, in nats (of the right text alone,"
        " where there is one). Tick a row to read the document."
    )
    downloads(rows, "flips")
    ticked = picked["selection"]["rows"]
    if ticked and ticked[0] < len(found):
        st.query_params["doc"] = found[ticked[0]].doc_key
    asked = st.query_params.get("doc", "")
    show_document(next((flip for flip in found if asked and flip.doc_key.startswith(asked)), found[0]), cell, overview)


def _row(flip: Flip, cell: Cell) -> dict[str, object]:
    before, after = both(flip)
    return {
        "Document": flip.doc_id,
        "Change": word_of(flip, cell),
        "Right answer": _one_line(answer_text.right_answer(flip.target, flip.document)),
        "A answered": _one_line(before.words),
        "B answered": _one_line(after.words),
        "Margin of A": answer_text.margin_text(before.margin),
        "Margin of B": answer_text.margin_text(after.margin),
        "Score of A": number(flip.before),
        "Score of B": number(flip.after),
        "Key": flip.doc_key[:12],
    }


def both(flip: Flip) -> tuple[answer_text.ModelAnswer, answer_text.ModelAnswer]:
    """What the two runs answered."""
    first, second = (
        answer_text.read_answer(text, flip.target, flip.document, flip.output_type, flip.doubled)
        for text in (flip.answer_before, flip.answer_after)
    )
    return first, second


def _one_line(text: str) -> str:
    line = plain(text)
    return line if len(line) <= 200 else f"{line[:197]}..."


def show_document(flip: Flip, cell: Cell, overview: data.Answer[data.Overview]) -> None:
    """One document in full: the prompt, the right answer, and both runs' answers side by side."""
    word = word_of(flip, cell)
    st.subheader(f"Document {flip.doc_id if flip.doc_id is not None else flip.doc_key[:8]}, {word}", anchor=False)
    asked = layout.further_or_stop(lambda: data.answer(page_queries.prompt, cell.task, flip.doc_key), overview)
    st.caption("Prompt")
    st.code(
        asked or "not recorded", language=None, wrap_lines=True, height=260 if len(asked or "") > 900 else "content"
    )
    st.caption("Right answer")
    st.code(answer_text.right_answer(flip.target, flip.document) or "not recorded", language=None, wrap_lines=True)
    sides = zip(
        st.columns(2), ("A", "B"), both(flip), (flip.answer_before, flip.answer_after), (flip.before, flip.after)
    )
    for column, name, answer, stored, score in sides:
        with column.container(border=True):
            st.caption(
                f"{name}: {metric_name_plain(cell)} {number(score)}, margin {answer_text.margin_text(answer.margin)}"
            )
            st.code(answer.words or "nothing", language=None, wrap_lines=True)
            choices = answer_text.likelihood_rows(stored, flip.target, flip.document, flip.doubled)
            if choices:
                st.dataframe(
                    [
                        {"Choice": _one_line(text), "Log-likelihood": round(value, 3), "": "right" if right else ""}
                        for text, value, right in choices
                    ],
                    hide_index=True,
                    width="stretch",
                    key=f"choices {name} {flip.doc_key}",
                )


def metric_name_plain(cell: Cell) -> str:
    """The metric for a caption, which reads markdown: letters, figures and signs without meaning there alone."""
    return "".join(letter for letter in metric_name(cell) if letter.isalnum() or letter in " -().,@") or "score"


def show_often(cell: Cell, overview: data.Answer[data.Overview]) -> None:
    """Documents that flip under many recipes: they are near the border, or the recipes break the same thing."""
    model = overview.value.runs[cell.run_id].model_key
    board = layout.further_or_stop(lambda: data.cells_of(model), overview)
    like = [
        c
        for c in board
        if (c.task, c.metric, c.filter, c.baseline_run) == (cell.task, cell.metric, cell.filter, cell.baseline_run)
        and c.lost is not None
    ]
    latest: Mapping[str, Cell] = {
        c.name: c for c in tables.by_age(like) if c.control is None and not unedited(c.recipe)
    }
    if len(latest) < 2:
        return
    st.subheader("Documents that flip under many recipes", anchor=False)
    runs = tuple(sorted(c.run_id for c in latest.values()))
    found = layout.further_or_stop(
        lambda: data.answer(page_queries.often_flipped, cell.baseline_run, runs, cell.task, cell.metric, cell.filter),
        overview,
    )
    if not found:
        st.info("No document flips under any recipe.")
        return
    lost = [(row.lower, row.higher) if cell.higher_is_better else (row.higher, row.lower) for row in found]
    layout.plot(flips.chart(lost), flips.sentence(lost, len(runs), cell.n))
    rows = [
        {
            "Document": row.doc_id,
            "Lost under": down,
            "Gained under": up,
            f"Of {counted(len(runs), 'recipe', 'recipes')}": down + up,
            "Baseline's score": number(row.before),
            "Key": row.doc_key[:12],
        }
        for row, (down, up) in zip(found, lost)
    ]
    shown = rows[:MOST_DOCUMENTS]
    st.dataframe(
        shown,
        hide_index=True,
        width="stretch",
        height=280 if len(shown) > 6 else "content",
        key=f"often {cell.task} {cell.baseline_run}",
    )
    downloads(shown, "often")


main()
