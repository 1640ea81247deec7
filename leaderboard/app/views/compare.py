"""Two runs, task by task: what differs in how they were made, the differences with the margin, and every metric they
share. Its URL ends in `?a=<id>&b=<id>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import streamlit as st

from leaderboard.app import data, layout, page_queries, tables, url_state
from leaderboard.app.charts import forest, heat
from leaderboard.app.download import downloads
from leaderboard.board.board import pair_board
from leaderboard.board.cell import VERDICTS, Cell
from leaderboard.compare import choice_shift
from leaderboard.compare.run_diff import Unshared, compare_facts, unshared
from leaderboard.terminal.format import counted, direction, estimated, metric_name, percent, plain

TASKS_IN_A_PLOT = 40


def main() -> None:
    """Draw the page."""
    st.title("Compare", anchor=False)
    overview = layout.overview_or_stop()
    labels = layout.run_labels(overview.value)
    columns = st.columns(2)
    first = url_state.by_id(columns[0], "Run A, the baseline", labels, "a")
    second = url_state.by_id(columns[1], "Run B, compared with it", labels, "b")
    if first is None or second is None:
        st.info("Choose two runs, or tick two rows of the leaderboard.")
        return
    if first == second:
        st.info("Both are the same run: there is nothing to compare.")
        return
    failed = [run for run in (first, second) if overview.value.runs[run].status != "complete"]
    cells = [] if failed else layout.further_or_stop(lambda: data.answer(pair_board, first, second), overview)
    for run in failed:
        st.warning("This run failed, so there are no scores to compare:", icon=":material/error:")
        st.text(labels[run])
    if cells:
        counts = Counter(cell.verdict for cell in cells)
        st.caption(
            f"B minus A: {', '.join(f'{counts[word]} {word}' for word in VERDICTS if counts[word])}; corrected over"
            f" {counted(len(cells), 'task', 'tasks')}."
        )
    if not failed:
        show_unshared(layout.further_or_stop(lambda: data.answer(unshared, first, second), overview))
    if cells:
        show_forest(cells)
    comparable = [cell for cell in cells if cell.verdict not in ("incomparable", "failed")]
    if not failed:
        tasks = tuple(cell.task for cell in comparable)
        show_heat(layout.further_or_stop(lambda: data.answer(heat.rows, first, second, tasks), overview))
    if cells:
        show_table(cells)
    if comparable:
        asked = tuple((cell.task, cell.filter) for cell in comparable)
        show_choices(layout.further_or_stop(lambda: data.answer(choice_shift.of_tasks, first, second, asked), overview))
    show_differences(layout.further_or_stop(lambda: data.answer(page_queries.two_runs, first, second), overview))


def show_unshared(found: Sequence[Unshared]) -> None:
    """Tasks and metrics that only one of the two has, a line each."""
    for only in found:
        for line in only.sentences():
            st.text(plain(line))


def show_forest(cells: Sequence[Cell]) -> None:
    """One plot a metric, because units differ; its rows are tasks."""
    drawable = sorted(forest.drawable(cells), key=lambda cell: (metric_name(cell), direction(cell), cell.task))
    if not drawable:
        st.info("No task can be compared with an interval; the table below says why.")
        return
    st.subheader("Difference with its 95 % interval, and the margin", anchor=False)
    for _, group in groupby(drawable, key=lambda cell: (metric_name(cell), direction(cell))):
        of_metric = list(group)
        shown = sorted(of_metric, key=lambda cell: -abs(cell.delta or 0.0))[:TASKS_IN_A_PLOT]
        with st.container(border=True):
            st.text(f"{plain(metric_name(shown[0]))}, {direction(shown[0])}")
            layout.plot(forest.by_task(shown), forest.task_sentence(shown, len(of_metric)))


def show_heat(rows: Sequence[heat.HeatTile]) -> None:
    """Every metric that both report of the tasks in which they may be compared, coloured by whether it rose or fell."""
    if not rows:
        st.info("The two runs share no metric of a task in which they may be compared.")
        return
    st.subheader("Every metric of every task", anchor=False)
    layout.plot(heat.chart(rows), heat.sentence(rows))
    downloads([row._asdict() for row in rows], "metrics")


def show_table(cells: Sequence[Cell]) -> None:
    """All numbers of the primary metrics."""
    st.subheader("All tasks", anchor=False)
    st.caption("Click a task with lost or gained documents to read them.")
    picked = st.dataframe(
        layout.tinted(layout.cell_rows(cells, with_model=False), ["Verdict"]),
        hide_index=True,
        width="stretch",
        key=f"tasks {cells[0].baseline_run} {cells[0].run_id}",
        on_select="rerun",
        selection_mode="single-cell",
        column_config={"Recipe": None, "Notes": st.column_config.TextColumn(width="medium")},
    )
    downloads(tables.cell_records(cells), "tasks")
    clicked = [cells[row] for row, column in picked["selection"]["cells"] if column == "Task" and row < len(cells)]
    if clicked and clicked[0].lost is not None and clicked[0].baseline_run:
        st.switch_page(
            "views/flips.py",
            query_params={"a": clicked[0].baseline_run, "b": clicked[0].run_id, "task": clicked[0].task},
        )


def show_choices(found: dict[str, choice_shift.Choices]) -> None:
    """Answers that changed, wrong ones among themselves included, and how far the probabilities moved: more sensitive
    than any score.
    """
    if not found:
        return
    st.subheader("Answers and probabilities", anchor=False)
    rows = [
        {
            "Task": plain(task),
            "Documents": of_task.documents,
            "Answers changed": percent(of_task.changed),
            "Choice divergence, nats [95 %]": estimated(of_task.divergence),
            "Right answer's log-likelihood, drop in nats [95 %]": estimated(of_task.gold_drop),
        }
        for task, of_task in found.items()
    ]
    st.dataframe(rows, hide_index=True, width="stretch", key="choices")
    st.caption(
        "Divergence: how far B's probabilities of the choices are from A's (Kullback-Leibler, mean over documents; 0 is"
        " no change). Drop: above 0, B finds the right answers less likely. Shown, and part of no verdict."
    )
    downloads([{"task": task} | choice_shift.record(of_task) for task, of_task in found.items()], "answers")


def show_differences(runs: Sequence[dict[str, object]]) -> None:
    """What the two runs say of how they were made."""
    if len(runs) != 2:
        return
    found = compare_facts(*runs)
    st.subheader("What differs in how they were made", anchor=False)
    rows = [
        {"Name": plain(entry.name), "Run A": plain(entry.first), "Run B": plain(entry.second)}
        for entry in found
        if entry.differs
    ]
    st.dataframe(rows, hide_index=True, width="stretch", key="differences")
    downloads(rows, "differences")
    same = [{"Name": plain(entry.name), "Both": plain(entry.first)} for entry in found if entry.first == entry.second]
    if unknown := [entry.name for entry in found if not entry.comparable]:
        st.caption(f"Digests of two kinds, which say nothing of each other: {plain(', '.join(unknown))}")
    with st.expander(f"The same in both: {len(same)}"):
        st.dataframe(same, hide_index=True, width="stretch", key="same")


main()
