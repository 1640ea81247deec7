"""Recipes x tasks against the baseline: verdicts at a glance, intervals, and every number in a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import streamlit as st

from leaderboard.advice import ingest_command
from leaderboard.app import address, data, forest, frame
from leaderboard.cell import BASELINE, VERDICTS, Cell
from leaderboard.untrusted import digest
from leaderboard.wording import direction, metric_name, plain

PLOTS, PLOTS_ASKED_FOR = 6, 24  # tasks drawn when all are shown, and when the filter names them

ROWS_IN_FULL = 40


def main() -> None:
    """Draw the page."""
    st.title("Leaderboard", anchor=False)
    snapshot = frame.snapshot_or_stop()
    if not snapshot.cells:
        frame.explain_empty()
        show_rejections(snapshot)
        return
    cells, model = chosen(snapshot.cells)
    show_summary(cells, snapshot, model)
    if not cells:
        st.info("No result matches these filters.")
        return
    show_glance(cells)
    show_forest(cells, PLOTS_ASKED_FOR if st.session_state.get("task") else PLOTS)
    show_table(cells)
    show_rejections(snapshot)
    how_to_read()


def chosen(cells: Sequence[Cell]) -> tuple[list[Cell], str]:
    """The cells of the model, tasks and recipes in the filters, which live in the URL."""
    models = sorted({cell.model for cell in cells})
    columns = st.columns([2, 3, 3])
    model = address.one_of(columns[0], "Model", models, "model")
    of_model = [cell for cell in cells if cell.model == model]
    tasks = address.any_of(columns[1], "Tasks", sorted({c.task for c in of_model}), "task", placeholder="All tasks")
    recipes = address.any_of(columns[2], "Recipes", sorted({c.recipe for c in of_model if c.verdict != BASELINE}), "recipe", placeholder="All recipes")
    shown = [c for c in of_model if (not tasks or c.task in tasks) and (not recipes or c.recipe in recipes or c.verdict == BASELINE)]
    return shown, model


def show_summary(cells: Sequence[Cell], snapshot: data.Snapshot, model: str) -> None:
    """How many of each verdict, what they are measured against, and how fresh the data is."""
    counts = Counter(cell.verdict for cell in cells)
    words = [f"{counts[word]} {word}" for word in VERDICTS if counts[word] and word != BASELINE]
    st.caption(f"{', '.join(words) or 'Only the baseline so far'} \u00b7 {measured_against(cells, snapshot.pinned)} \u00b7 data of {snapshot.read_at:%H:%M:%S}")


def measured_against(cells: Sequence[Cell], pinned: Mapping[str, str]) -> str:
    """Whether a pinned run is the baseline of these cells, another stands in, or both: a pinned run need not have every task."""
    by_pin = {cell.baseline_run == pinned.get(cell.model_key) for cell in cells if cell.baseline_run}
    stand_in = "the unedited model's earliest run of the same settings"
    runs = ", ".join(sorted({cell.baseline_run[:8] for cell in cells if cell.baseline_run and cell.baseline_run == pinned.get(cell.model_key)}))
    if by_pin == {True}:
        return f"against the pinned baseline, run {runs}"
    if by_pin == {True, False}:
        return f"against the pinned baseline, run {runs}, and on tasks that it has not run, {stand_in}"
    return f"against {stand_in} (no baseline {'of these tasks ' if any(c.model_key in pinned for c in cells) else ''}is pinned)"


def show_glance(cells: Sequence[Cell]) -> None:
    """The matrix of recipes and tasks."""
    st.subheader("At a glance", anchor=False)
    rows = frame.glance(cells)
    st.dataframe(
        frame.tinted(rows, [name for name in rows[0] if name not in ("Recipe", "Kept")]),
        hide_index=True,
        width="stretch",
        key=f"glance {_content(cells)}",
        column_config={"Recipe": st.column_config.TextColumn(pinned=True)},
    )


def show_forest(cells: Sequence[Cell], most: int) -> None:
    """One small plot a task, for the first `most` tasks."""
    drawable = forest.drawable(cells)
    tasks = sorted({cell.task for cell in drawable})
    if not tasks:
        return
    st.subheader("Difference from the baseline, with 95 % intervals", anchor=False)
    if len(tasks) > most:
        st.caption(f"The first {most} of {len(tasks)} tasks; choose others above.")
    for start in range(0, len(tasks[:most]), 2):
        for column, task in zip(st.columns(2), tasks[:most][start : start + 2]):
            of_task = [cell for cell in drawable if cell.task == task]
            with column.container(border=True):
                st.text(f"{plain(task)}: {plain(metric_name(of_task[0]))}, {direction(of_task[0])}")
                st.altair_chart(forest.chart(of_task), width="stretch")


def show_table(cells: Sequence[Cell]) -> None:
    """All numbers; a click on a row opens its run."""
    st.subheader("All results", anchor=False)
    st.caption("Click a recipe's name, or tick the box at its left, to open the run: command, versions, receipt, files.")
    picked = st.dataframe(
        frame.tinted(frame.cell_rows(cells, with_model=False), ["Verdict"]),
        hide_index=True,
        width="stretch",
        height="content" if len(cells) <= ROWS_IN_FULL else 800,
        key=f"cells {_content(cells)}",
        on_select="rerun",
        selection_mode=["single-row", "single-cell"],
        column_config={"Remarks": st.column_config.TextColumn(width="medium")},
    )
    chosen_rows = [*picked["selection"]["rows"], *(row for row, column in picked["selection"]["cells"] if column == "Recipe")]
    if chosen_rows and chosen_rows[0] < len(cells):
        st.switch_page("app_pages/run.py", query_params={"run": cells[chosen_rows[0]].run_id})


def _content(cells: Sequence[Cell]) -> str:
    """A key that changes with what a table shows: a table that is given other rows keeps its old widths and loses a click."""
    return digest([[cell.run_id, cell.task] for cell in cells])[:16]


def show_rejections(snapshot: data.Snapshot) -> None:
    """What ingest could not take, with its reason."""
    if snapshot.rejections:
        with st.expander(f"Not taken in: {len(snapshot.rejections)}"):
            rows = [{"Path": plain(row["path"]), "Reason": plain(row["reason"]), "When (UTC)": row["logged_at"]} for row in snapshot.rejections]
            st.dataframe(rows, hide_index=True, width="stretch")
            st.caption("Once mended, take them in again:")
            st.code(ingest_command(data.database(), "PATH"), language=None, wrap_lines=True)


def how_to_read() -> None:
    """The words, explained."""
    with st.expander("How to read this"):
        st.markdown(
            "Recipe and baseline answered the same documents, so they are compared document by document.\n\n"
            "- **better**, **worse**: the difference is significant at 5 % after correcting for all comparisons of the model (Benjamini-Hochberg).\n"
            "- **same**: the difference is shown to be smaller than the margin: 2 points for scores between 0 and 1. "
            "It is the grey band in the plots, where it is not far wider than they are.\n"
            "- **undecided**: there are too few documents to tell; the remark says about how many are needed, going by the difference seen so far.\n"
            "- **incomparable**: the two runs did not do the same; the remark names what differs.\n"
            "- **failed**: no usable result, with the reason.\n\n"
            "Delta is recipe minus baseline in the metric's own units; its interval holds for that one comparison. "
            "Where a metric's best value lies in the middle (a bias score of 0), better means nearer to it. "
            "Kept is the share of parameters left when edited matrices are stored as factors."
        )


main()
