"""Recipes x tasks against the baseline: verdicts at a glance, intervals, and every number in a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from leaderboard.app import data, layout, tables, url_state
from leaderboard.app.charts import forest
from leaderboard.app.download import downloads
from leaderboard.app.page_queries import RunFacts
from leaderboard.board import further
from leaderboard.board.cell import VERDICTS, Cell, not_its_control
from leaderboard.readers.records import BASELINE
from leaderboard.readers.safe_json import digest
from leaderboard.terminal.format import counted, direction, metric_name, plain

PRIMARY = "primary"
PLOTS, PLOTS_ASKED_FOR = 6, 24  # tasks drawn when all are shown, and when the filter names them
ROWS_IN_FULL = 40


def main() -> None:
    """Draw the page."""
    st.title("Leaderboard", anchor=False)
    overview = layout.overview_or_stop()
    columns = st.columns([3, 2, 3, 3, 2])
    model = layout.choose_model(overview.value, columns[0])
    board = layout.further_or_stop(lambda: data.cells_of(model), overview)
    cells = chosen(of_metric(board, columns[1]), columns[2:])
    facts = overview.value.runs
    show_summary(cells, overview)
    if cells:
        show_glance(cells, facts)
        show_forest(cells, PLOTS_ASKED_FOR if st.session_state.get("task") else PLOTS)
        show_table(cells, facts)
        show_reported(cells)
    else:
        st.info("No result matches these filters.")
    layout.show_rejections(overview.value)
    how_to_read()


def of_metric(cells: Sequence[Cell], place: Any) -> Sequence[Cell]:
    """The cells of the metric in the URL: each task's primary one, with the further ones in a column, or one by
    name.
    """
    names = further.metric_names(cells)
    metric = url_state.one_of(place, "Metric", [PRIMARY, *names], "metric") if names else PRIMARY
    return cells if metric == PRIMARY else further.in_metric(cells, metric)


def chosen(cells: Sequence[Cell], columns: Sequence[Any]) -> list[Cell]:
    """The cells of the tasks, recipes and verdicts in the filters, which live in the URL. The baseline stays: the
    others mean nothing without it.
    """
    tasks = url_state.any_of(columns[0], "Tasks", sorted({c.task for c in cells}), "task", placeholder="All tasks")
    recipes = url_state.any_of(
        columns[1],
        "Recipes",
        sorted({c.recipe for c in cells if c.verdict != BASELINE}),
        "recipe",
        placeholder="All recipes",
    )
    present = {cell.verdict for cell in cells}
    verdicts = url_state.any_of(
        columns[2],
        "Verdicts",
        [word for word in VERDICTS if word in present and word != BASELINE],
        "verdict",
        placeholder="All verdicts",
    )
    controls = any(cell.control for cell in cells) and not st.toggle(
        "Show controls", value=True, key="controls", bind="query-params"
    )
    return [
        c
        for c in cells
        if (not tasks or c.task in tasks)
        and (
            c.verdict == BASELINE
            or (
                (not recipes or c.recipe in recipes)
                and (not verdicts or c.verdict in verdicts)
                and not (controls and c.control)
            )
        )
    ]


def show_summary(cells: Sequence[Cell], overview: data.Answer[data.Overview]) -> None:
    """How many of each verdict, what they are measured against, and how fresh the data is."""
    counts = Counter(cell.verdict for cell in cells)
    words = [f"{counts[word]} {word}" for word in VERDICTS if counts[word] and word != BASELINE]
    doubtful = sum(not_its_control(cell) for cell in cells)
    if doubtful:
        st.warning(
            f"{counted(doubtful, 'result is', 'results are')} better than the baseline, but not better than a control"
            " of the recipe's own: an edit of the same size without the recipe's idea may do as well.",
            icon=":material/balance:",
        )
    st.caption(
        f"{', '.join(words) or 'Only the baseline so far'} \u00b7 {measured_against(cells, overview.value.pinned)}"
        f" \u00b7 data of {overview.read_at:%H:%M:%S}"
    )


def measured_against(cells: Sequence[Cell], pinned: Mapping[str, str]) -> str:
    """Whether a pinned run is the baseline of these cells, another stands in, or both: a pinned run need not have every
    task.
    """
    by_pin = {cell.baseline_run == pinned.get(cell.model_key) for cell in cells if cell.baseline_run}
    stand_in = "the unedited model's latest run of the same tasks and settings"
    runs = ", ".join(
        sorted(
            {
                cell.baseline_run[:8]
                for cell in cells
                if cell.baseline_run and cell.baseline_run == pinned.get(cell.model_key)
            }
        )
    )
    if by_pin == {True}:
        return f"against the pinned baseline, run {runs}"
    if by_pin == {True, False}:
        others = "on tasks that it has not run, or ran in another form"
        return f"against the pinned baseline, run {runs}, and {others}, {stand_in}"
    return (
        f"against {stand_in} (no baseline {'of these tasks ' if any(c.model_key in pinned for c in cells) else ''}is"
        " pinned)"
    )


def show_glance(cells: Sequence[Cell], facts: Mapping[str, RunFacts]) -> None:
    """The matrix of recipes and tasks."""
    st.subheader("At a glance", anchor=False)
    rows = layout.glance(cells, facts)
    recipes = tables.glance_order(cells)
    picked = st.dataframe(
        layout.tinted(rows, [name for name in rows[0] if name not in ("Recipe", "Kept", "Tokens/s")]),
        hide_index=True,
        width="stretch",
        key=f"glance {_content(cells)}",
        on_select="rerun",
        selection_mode="multi-row",
        column_config={"Recipe": st.column_config.TextColumn(pinned=True, width=190)},
    )
    st.caption("Blank: not run. Tick two recipes to compare them.")
    downloads(rows, "glance")
    latest = {cell.name: cell for cell in tables.by_age(cells)}
    compare([latest[recipes[row]] for row in picked["selection"]["rows"] if row < len(recipes)])


def compare(ticked: Sequence[Cell]) -> None:
    """Lead on to the comparison of two ticked runs; the baseline, or else the earlier, is what the other is compared
    with.
    """
    if len(ticked) < 2:
        return
    first, second = ticked[:2]
    if first.run_id == second.run_id:
        st.info("Both rows are of one run: tick a row of another.")
        return
    if second.verdict == BASELINE and first.verdict != BASELINE:
        first, second = second, first
    st.switch_page("views/compare.py", query_params={"a": first.run_id, "b": second.run_id})


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
            shown = forest.most_telling(of_task)
            with column.container(border=True):
                st.text(f"{plain(task)}: {plain(metric_name(of_task[0]))}, {direction(of_task[0])}")
                layout.plot(forest.chart(shown), forest.sentence(shown, len(of_task)))


def show_table(cells: Sequence[Cell], facts: Mapping[str, RunFacts]) -> None:
    """All numbers; a click on a recipe opens its run, two ticked rows are compared."""
    st.subheader("All results", anchor=False)
    st.caption(
        "Click a recipe's name to open the run: command, versions, receipt, files. Tick two rows to compare their runs."
    )
    picked = st.dataframe(
        layout.tinted(layout.cell_rows(cells, with_model=False, facts=facts), ["Verdict", "Against its control"]),
        hide_index=True,
        width="stretch",
        height="content" if len(cells) <= ROWS_IN_FULL else 800,
        key=f"cells {_content(cells)}",
        on_select="rerun",
        selection_mode=["multi-row", "single-cell"],
        column_config={
            name: st.column_config.TextColumn(width="medium") for name in ("Recipe", "Against its control", "Notes")
        },
    )
    downloads(tables.cell_records(cells, facts), "results")
    clicked = [row for row, column in picked["selection"]["cells"] if column == "Recipe" and row < len(cells)]
    if clicked:
        st.switch_page("views/run.py", query_params={"run": cells[clicked[0]].run_id})
    compare([cells[row] for row in picked["selection"]["rows"] if row < len(cells)])


def _content(cells: Sequence[Cell]) -> str:
    """A key that changes with what a table shows: a table that is given other rows keeps its old widths and loses a
    click.
    """
    return digest([[cell.run_id, cell.task, cell.metric] for cell in cells])[:16]


def show_reported(cells: Sequence[Cell]) -> None:
    """Papers' numbers beside ours, kept apart from all that was measured here."""
    rows = tables.reported_rows(cells)
    if rows:
        st.subheader("Reported by papers", anchor=False)
        st.caption(
            "Numbers that papers report for this model, task and recipe. They were not measured here, their settings"
            " may differ, and they are part of no verdict."
        )
        st.dataframe(rows, hide_index=True, width="stretch", key="reported")
        downloads(rows, "reported")


def how_to_read() -> None:
    """The words, explained."""
    with st.expander("How to read this"):
        st.markdown(
            "Recipe and baseline answered the same documents, so they are compared document by document.\n\n-"
            " **better**, **worse**: the difference is significant at 5 % after correcting for all comparisons of the"
            " model (Benjamini-Hochberg), and its interval excludes zero.\n- **collapsed**: the"
            " recipe ruined the model: its right answers are ten times less likely a word, or no better than chance"
            " where the baseline's were. Whatever the metric says, it means nothing then, least of all a bias near its"
            " best value; a task that has no right answers takes the word from one of the same weights that has.\n-"
            " **against its control**: the recipe against an edit of the same size that lacks its idea, on the same"
            " documents, corrected over all such comparisons of the model. A recipe that is better than the baseline"
            " and not better than its control"
            " shows that some edit helps, not that the recipe does.\n- **further metrics** of a task have verdicts of"
            " their own, corrected among themselves; choose one above to see it everywhere. *gold_loglikelihood* is the"
            " log-likelihood of the right answer in nats. The notes say where one contradicts the verdict.\n"
            "- **same**: the difference is shown to be"
            " smaller than the margin: 2 points for scores between 0 and 1. It is the grey band in the plots, where it"
            " is not far wider than they are.\n- **undecided**: there are too few documents to tell; the notes say"
            " about how many are needed to decide four times in five among so many comparisons, going by how much"
            " changed so far. *Could show* is the smallest difference that those at hand show four times in five;"
            " *too few documents*, there or in place of an interval, that they show none within the score's range.\n-"
            " **incomparable**: the two runs did not do the same; the notes name what differs.\n"
            "- **failed**: no usable result, with the reason.\n\nDelta is"
            " recipe minus baseline in the metric's own units; its interval holds for that one comparison. Where a"
            " metric's best value lies in the middle (a bias score of 0), better means nearer to it. Kept is the share"
            " of parameters left when edited matrices are stored as factors. Tokens/s is how fast documents were"
            " scored, and how many times as fast as the baseline in the same process. The noise floor is the share of"
            " answers of the unedited model that flip when rounding alone changes: flips within it mean nothing."
        )


main()
