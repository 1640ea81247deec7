"""Size and score: what each recipe leaves of a task's score for the parameters, bytes or FLOPs that it keeps, and which
runs nothing else beats in both.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from leaderboard.app import data, layout, url_state
from leaderboard.app.charts import size
from leaderboard.app.download import downloads
from leaderboard.board.cell import Cell
from leaderboard.terminal.format import direction, interval, metric_name, number, percent, plain

PLOTS = 4
MEASURES = {"Parameters": "parameters", "Bytes": "bytes", "FLOPs per token": "flops_per_token"}


def main() -> None:
    """Draw the page."""
    st.title("Size and score", anchor=False)
    overview = layout.overview_or_stop()
    columns = st.columns(3)
    model = layout.choose_model(overview.value, columns[0])
    cells = layout.further_or_stop(lambda: data.cells_of(model), overview)
    words = url_state.one_of(columns[1], "Size in", tuple(MEASURES), "size")
    tasks = sorted({cell.task for cell in cells if cell.score is not None and cell.verdict != "failed"})
    if not tasks:
        st.info("No run of this model has a score.")
        return
    asked = url_state.any_of(columns[2], "Tasks", tasks, "task", placeholder="All tasks") or tasks
    points = size.points(cells, overview.value.runs, MEASURES[words])
    st.caption(
        f"{words} with edited matrices stored as factors, against the score; up and to the left is better, or nearer to"
        " the best value where that lies in the middle. The line joins the runs that no other beats in both. Whiskers:"
        " 95 % interval of the difference from the baseline. Verdicts are those of the leaderboard."
    )
    if len(asked) > PLOTS:
        st.caption(f"The first {PLOTS} of {len(asked)} tasks are drawn; choose others above.")
    rows: list[dict[str, object]] = []
    for task in asked[:PLOTS]:
        of_task = [point for point in points if point.cell.task == task]
        missing = [
            cell for cell in cells if cell.task == task and cell.run_id not in {point.cell.run_id for point in of_task}
        ]
        rows += show_task(of_task, missing, words)
    if rows:
        st.subheader("All points", anchor=False)
        st.dataframe(
            layout.tinted(rows, ["Verdict"]),
            hide_index=True,
            width="stretch",
            key=f"points {model} {words} {len(rows)}",
        )
        downloads(rows, "size-and-score")


def show_task(points: Sequence[size.SizePoint], missing: Sequence[Cell], words: str) -> list[dict[str, object]]:
    """One task's plot; what it shows, as rows."""
    with st.container(border=True):
        cell = points[0].cell if points else missing[0]
        st.text(f"{plain(cell.task)}: {plain(metric_name(cell))}, {direction(cell)}")
        if points:
            layout.plot(size.chart(points, words), size.sentence(points, words))
        else:
            st.info(f"No run of this task has recorded its size in {words}.")
        if missing:
            failed = sum(cell.verdict == "failed" for cell in missing)
            st.text(f"Not drawn: {failed} failed, {len(missing) - failed} without a recorded size.")
    return [
        {
            "Task": plain(point.cell.task),
            "Recipe": plain(point.cell.name),
            "Verdict": point.cell.verdict,
            "On the front": "yes" if point.front else "no",
            words: round(point.size),
            "Kept": percent(point.share),
            "Score": number(point.cell.score),
            "Delta [95 %]": interval(point.cell),
            "Run": point.cell.run_id[:12],
        }
        for point in sorted(points, key=lambda point: (not point.front, point.size))
    ]


main()
