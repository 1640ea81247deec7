"""Size and score: what each recipe leaves of a task's score for the parameters, bytes or FLOPs that it keeps or the
tokens a second that it reads, and the smallest that makes no task worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from leaderboard.app import data, html_table, layout, smallest, url_state
from leaderboard.app.charts import size
from leaderboard.app.charts.size import MEASURES, SPEED, Measure, SizePoint
from leaderboard.app.colours import css
from leaderboard.app.comparison import improvement
from leaderboard.app.download import downloads
from leaderboard.app.html_table import ColumnHead, Text
from leaderboard.app.page_queries import RunFacts
from leaderboard.board.cell import Cell
from leaderboard.board.standings import Standings, kind, standings
from leaderboard.readers.records import BASELINE
from leaderboard.report.words import improvement_limits
from leaderboard.terminal.format import counted, percent, plain
from leaderboard.terminal.marks import MARKS, MINUS, gain, legend

PLOTS = 30
NAMED = 3  # recipes in the box of the decision


def main() -> None:
    """Draw the page."""
    overview = layout.overview_or_stop()
    places = st.columns([3, 3, 4, 2], vertical_alignment="bottom")
    model = layout.choose_model(overview.value, places[0])
    cells = layout.further_or_stop(lambda: data.cells_of(model), overview)
    words = url_state.one_of(places[1], "Size in", tuple(measure.words for measure in MEASURES), "size")
    measure = next(measure for measure in MEASURES if measure.words == words)
    tasks = sorted({cell.task for cell in cells if cell.score is not None and cell.verdict != "failed"})
    if not tasks:
        st.info("No run of this model has a score.")
        return
    asked = url_state.any_of(places[2], "Tasks", tasks, "task", placeholder="All tasks") or tasks
    controls = url_state.switch(places[3], "Controls", "controls")
    board = standings(cells)
    latest = [cell for row in board.listed(controls=True) for cell in row.cells.values() if cell.task in asked]
    found = [
        point
        for point in size.points(latest, overview.value.runs, measure.field)
        if point.share is not None or not measure.share
    ]
    if not found:
        st.info(f"No run of this model has recorded its {measure.words.replace('P', 'p', 1)}; a recipe's receipt does.")
        return
    shown = [point for point in found if controls or point.cell.control is None]
    show_legend([point.cell for point in shown])
    show_plots(asked, shown, board, measure, overview.value.runs)
    say_what_is_drawn(latest, found, measure, controls)
    show_table(shown, measure)


def show_legend(cells: Sequence[Cell]) -> None:
    """The marks that occur."""
    entries = legend(kind(cell) for cell in cells if cell.control is None)
    html_table.show(html_table.badges([f"{mark.sign} {mark.words}" for _, mark in entries]))


def show_plots(
    asked: Sequence[str],
    shown: Sequence[SizePoint],
    board: Standings,
    measure: Measure,
    facts: Mapping[str, RunFacts],
) -> None:
    """A plot a task, and the box with the decision, which stands first."""
    by_task = {task: [point for point in shown if point.cell.task == task] for task in asked[:PLOTS]}
    drawn = [point for some in by_task.values() for point in some]
    with st.grid("auto", min_column_width=350, gap="medium"):
        with st.container(border=True):
            show_decision(board, measure, facts)
        for task, of_task in by_task.items():
            with st.container():
                if of_task:
                    said = size.sentence(of_task, measure)
                    layout.draw(size.chart(drawn, of_task, measure), said, cells=[point.cell for point in of_task])
                else:
                    st.info(f"No run of this task has recorded its {measure.words.replace('P', 'p', 1)}.")
                    st.text(plain(task))


def show_decision(board: Standings, measure: Measure, facts: Mapping[str, RunFacts]) -> None:
    """The smallest recipes with no task worse, and what that rests on."""
    st.subheader(f"{'Fastest' if measure == SPEED else 'Smallest'} with no task worse", anchor=False)
    found = smallest.smallest(board, facts, measure)
    if not found:
        what = "faster" if measure == SPEED else "smaller"
        st.text(f"No recipe is {what} than the unedited model and leaves no task worse.")
        return
    rows = [
        [
            Text(one.row.recipe, one.row.settings),
            Text(f"{one.share:.2f}x" if measure == SPEED else percent(one.share), strong=True),
        ]
        for one in found[:NAMED]
    ]
    head = "Times as fast" if measure == SPEED else f"{measure.words} kept"
    html_table.show(
        html_table.table(
            [ColumnHead("Recipe"), ColumnHead(head, numeric=True)], rows, caption="The decision", blocks=False
        )
    )
    st.text(f"{plain(found[0].row.name)}: {smallest.caveat(found[0], len(board.tasks))}")
    if len(found) > NAMED:
        what = "faster" if measure == SPEED else "smaller"
        st.caption(f"{len(found) - NAMED} further recipes are {what} than the model with no task worse.")


def say_what_is_drawn(cells: Sequence[Cell], found: Sequence[SizePoint], measure: Measure, controls: bool) -> None:
    """How to read the plots, and what is not in them."""
    drawn = {(point.cell.run_id, point.cell.task) for point in found}
    missing = [cell for cell in cells if (cell.run_id, cell.task) not in drawn]
    failed = sum(cell.verdict in ("failed", "incomparable") for cell in missing)
    hidden = len({point.cell.run_id for point in found if point.cell.control is not None})
    said = [
        f"Across: {measure.phrase}. Up: score, so that better is up, or nearer to the best value where that lies in the"
        " middle. Line: no other recipe is as "
        + ("fast and better." if measure == SPEED else "small and better; edited matrices count as stored factors.")
    ]
    if hidden:
        said.append(
            f"{counted(hidden, 'control', 'controls')} {'drawn as ticks' if controls else 'hidden'}, never on the line."
        )
    if missing:
        said.append(f"Not drawn: {failed} failed or incomparable, {len(missing) - failed} without a recorded size.")
    st.caption(" ".join(said))


def show_table(shown: Sequence[SizePoint], measure: Measure) -> None:
    """All points as rows."""
    if not shown:
        return
    st.subheader("All points", anchor=False)
    ordered = sorted(shown, key=lambda point: (point.cell.task, not point.front, point.size))
    rows: list[dict[str, Any]] = [
        {
            "Task": plain(point.cell.task),
            "Recipe": plain(point.cell.name),
            "Verdict": "baseline" if point.cell.verdict == BASELINE else MARKS[kind(point.cell)].words,
            "On the line": "yes" if point.front else "no",
            measure.words: round(point.size),
            "Kept": None if point.share is None else point.share * (1 if measure == SPEED else 100),
            "Score": point.cell.score,
            "Improvement": improvement(point.cell),
            "95 %": _limits(point.cell),
            "Run": point.cell.run_id[:12],
        }
        for point in ordered
    ]
    st.dataframe(
        _painted(rows, [kind(point.cell) for point in ordered]),
        hide_index=True,
        width="stretch",
        key=f"points {measure.words} {len(rows)}",
        placeholder="",
        column_config=_columns(measure),
    )
    downloads(rows, "size-and-score")


def _columns(measure: Measure) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    faster = measure == SPEED
    return {
        "Kept": number("Times the baseline's" if faster else "Kept", format="%.2f" if faster else "%.1f%%"),
        "Recipe": st.column_config.TextColumn(width=280),
        measure.words: number(format="localized"),
        "Score": number(format="%.3f"),
        "Improvement": st.column_config.Column(help="Positive is good on every task"),
    }


def _painted(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> Any:
    """The rows with the colours of the verdicts, and improvements with their signs."""
    import pandas as pd

    style = pd.DataFrame(list(rows)).style.apply(lambda column: [css(what) for what in kinds], subset=["Verdict"])
    return style.format({"Improvement": lambda value: gain(value, minus=MINUS)}, na_rep="")


def _limits(cell: Cell) -> str:
    limits = improvement_limits(cell, unpaired=True)
    return "" if limits is None else " to ".join(gain(end, minus=MINUS) for end in limits)


main()
