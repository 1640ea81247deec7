"""Recipes by tasks against the baseline: which help beyond their control, which hurt, how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from leaderboard.app import badges, data, layout, standings_table, tables, url_state
from leaderboard.app.charts import intervals
from leaderboard.app.download import downloads, report_button
from leaderboard.app.download import share as share_table
from leaderboard.app.linked_table import content_key
from leaderboard.app.menu import COMPARE, FLIPS, RUN
from leaderboard.app.page_queries import RunFacts
from leaderboard.board import further
from leaderboard.board.cell import Cell
from leaderboard.board.standings import AS_CONTROL, BEATS, HARM, KINDS, PROVEN, Standing, Standings, standings
from leaderboard.readers.records import BASELINE
from leaderboard.report.words import board_rows
from leaderboard.terminal.format import KEPT, counted, plain
from leaderboard.terminal.marks import MARKS
from leaderboard.terminal.output import as_text

PRIMARY = "primary"
MEAN_RANK = "mean rank"
PLOTTED = 12  # tasks drawn, until others are chosen
ROWS_IN_FULL = 40
MOST_NAMED = 3  # recipes that share the first place
FILTERS = ("find", "verdict", "only", "tasks")  # keys of the URL that leave rows and columns out


def main() -> None:
    """Draw the page."""
    overview = layout.overview_or_stop()
    bar = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    model = layout.choose_model(overview.value, bar.container(width=250))
    cells = layout.further_or_stop(lambda: data.cells_of(model), overview)
    tasks = sorted({cell.task for cell in cells if cell.metric})
    by = url_state.maybe_one_of(bar.container(width=145), "Rank by", tasks, url_state.TASK, nothing=MEAN_RANK)
    filters = bar.popover("Filter", icon=":material/tune:")
    cells = list(of_metric(cells, filters))
    board = standings(cells, by=by)
    with_controls = any(row.controls for row in board.rows) or bool(board.unclaimed)
    controls = with_controls and url_state.switch(bar, "Show controls", "controls")
    rows, columns = chosen(board, controls, filters)
    share = bar.popover("Share", icon=":material/ios_share:")
    filtered = only_shown(rows, columns, board)
    st.markdown(summary(board, by, filtered))
    settings = layout.further_or_stop(lambda: data.answer(badges.model_facts, model), overview)
    badges.show(badges.board_badges(settings, cells))
    if all(row.is_baseline for row in rows) and len(rows) < len(board.listed(controls=controls)):
        layout.say_nothing_left("recipe", FILTERS)
    if rows:
        show_tabs(rows, board, columns, overview)
    with share:
        cells_shown = tables.cell_records(_cells(rows, columns), overview.value.runs)
        report_button(overview.value.names[model])
        share_table(cells_shown, "results", shown=board_rows(board, rows, columns))
    show_reported(cells)
    layout.show_rejections(overview.value)
    against = measured_against(_cells(rows, columns), overview.value.pinned)
    st.caption(f"Compared {against}. Data of {overview.read_at:%H:%M:%S}.")
    how_to_read()


def of_metric(cells: Sequence[Cell], place: st.delta_generator.DeltaGenerator) -> Sequence[Cell]:
    """The cells of the metric in the URL: each task's primary one, with the further ones in the details, or one by
    name.
    """
    names = further.metric_names(cells)
    metric = url_state.maybe_one_of(place, "Metric", names, "metric", nothing=PRIMARY) if names else None
    return cells if metric is None else further.in_metric(cells, metric)


def chosen(
    board: Standings, controls: bool, place: st.delta_generator.DeltaGenerator
) -> tuple[list[Standing], list[str]]:
    """The rows and tasks of the filters, which live in the URL. The baseline stays: the others mean nothing without
    it.
    """
    rows = board.listed(controls=controls)
    text = url_state.text(place, "Search", "find", placeholder="Recipes whose name holds").casefold()
    present = {kind for row in rows for kind in row.kinds()} - {BASELINE}
    _translate_old_verdicts()
    kinds = url_state.any_of(
        place, "Verdicts", [kind for kind in KINDS if kind in present], "verdict", placeholder="All verdicts",
        words=lambda kind: MARKS[kind].words,
    )  # fmt: skip
    only = url_state.any_of(
        place, "Recipes", sorted({row.recipe for row in rows if not row.is_baseline}), "only", placeholder="All recipes"
    )
    columns = url_state.any_of(place, "Tasks", board.tasks, "tasks", placeholder="All tasks") or list(board.tasks)
    return [
        row
        for row in rows
        if row.is_baseline
        or (
            text in row.name.casefold()
            and (not only or row.recipe in only)
            and (not kinds or any(kind in kinds for kind in _kinds(row, columns)))
        )
    ], columns


def _kinds(row: Standing, tasks: Sequence[str]) -> set[str]:
    return set(Standing.kinds(_only(row, tasks)))


def _only(row: Standing, tasks: Sequence[str]) -> Standing:
    from dataclasses import replace

    return replace(row, cells={task: cell for task, cell in row.cells.items() if task in tasks or not cell.metric})


def _translate_old_verdicts() -> None:
    """A link of before there were three kinds of better asks for all of them."""
    asked = st.query_params.get_all("verdict")
    words = {kind: [MARKS[kind].words] for kind in KINDS} | {"better": [MARKS[kind].words for kind in KINDS[:3]]}
    if any(word in words for word in asked):
        st.query_params["verdict"] = [each for word in asked for each in words.get(word, [word])]


def only_shown(rows: Sequence[Standing], tasks: Sequence[str], board: Standings) -> str:
    """`3 recipes and 2 tasks`, where filters leave fewer than there are; empty where they leave all."""
    recipes = sum(row.is_recipe for row in rows)
    if len(tasks) == len(board.tasks) and recipes == sum(row.is_recipe for row in board.rows):
        return ""
    return f"{counted(recipes, 'recipe', 'recipes')} and {counted(len(tasks), 'task', 'tasks')}"


def summary(board: Standings, by: str | None, filtered: str) -> str:
    """The page's question answered in words, of names that are no markup: of the whole board, whatever the filters
    leave. filtered: what they leave of it, in words.
    """
    said = _summary(board, by, f" on {counted(len(board.tasks), 'task', 'tasks')}" if filtered else "")
    return f"{said} The filters show {filtered} of these." if filtered else said


def _summary(board: Standings, by: str | None, on_tasks: str) -> str:
    recipes = [row for row in board.rows if row.is_recipe]
    if not recipes:
        return "No recipe so far."
    kinds = [row.kinds() for row in recipes]
    proven = sum(any(found[kind] for kind in PROVEN) for found in kinds)
    beating = sum(found[BEATS] > 0 for found in kinds)
    harmful = sum(any(found[kind] for kind in HARM) for found in kinds)
    as_control = sum(found[AS_CONTROL] > 0 for found in kinds)
    said = [
        f"Of {counted(len(recipes), 'recipe', 'recipes')}{on_tasks}, **{beating}** better than baseline *and* control"
        " somewhere"
    ]
    if proven > beating:
        said.append(f"{proven - beating} better without a control")
    if as_control:
        said.append(f"{as_control} not shown to beat a control somewhere")
    said.append(f"**{harmful}** worse on some task")
    first = [row for row in board.rows if row.rank and row.rank.place == 1]
    if not first or any(row.is_baseline for row in first):
        return "; ".join(said) + ". Nothing ranks above the baseline."
    on = f"on {as_text(by)}" if by else "by mean rank"
    names = [f"**{as_text(row.name)}**" for row in first[:MOST_NAMED]]
    more = [f"{len(first) - len(names)} more"] if len(first) > len(names) else []
    return "; ".join(said) + f". Best {on}: {', '.join([*names, *more])}."


def show_tabs(
    rows: Sequence[Standing], board: Standings, tasks: Sequence[str], overview: data.Answer[data.Overview]
) -> None:
    """The table first; intervals and every number behind tabs."""
    table, plot, details = url_state.tabs(["Table", "Intervals", "All results"], "view")
    if table.open:
        with table:
            show_standings(rows, board, tasks, overview.value.runs)
    if plot.open:
        with plot:
            show_intervals([row for row in rows if not row.is_baseline], tasks, board.best)
    if details.open:
        with details:
            show_results(_cells(rows, tasks), overview.value.runs)


def show_standings(
    rows: Sequence[Standing], board: Standings, tasks: Sequence[str], facts: Mapping[str, RunFacts]
) -> None:
    """The table of recipes by tasks. Ticked rows lead on."""
    seen = [_only(row, tasks) for row in rows]
    badges.show_legend(seen)
    picked = st.dataframe(
        standings_table.table(rows, board, tasks, facts),
        hide_index=True,
        width="stretch",
        height=standings_table.height(len(rows)),
        row_height=standings_table.ROW_HEIGHT,
        placeholder="",
        key=f"standings {content_key([row.name for row in rows], tasks)}",
        on_select="rerun",
        selection_mode="multi-row",
        column_config=standings_table.column_config(board, tasks),
    )
    lead_on([rows[i] for i in picked["selection"]["rows"] if i < len(rows)])
    badges.show_legend(seen, below=True)
    unranked = sum(row.rank is None and row.control is None for row in rows)
    without = (
        f" {counted(unranked, 'row has', 'rows have')} no rank: unedited, or without a verdict on the tasks that the"
        " others share."
    )
    st.caption(
        "Numbers are improvements over the baseline: + is good on every task, whatever its metric. \u2605: best of"
        f" its task. Blank: not run. Click a head to sort; tick rows to compare them.{without if unranked else ''}"
    )


def lead_on(ticked: Sequence[Standing]) -> None:
    """Links for the ticked rows, in this tab."""
    if not ticked:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        if len(ticked) == 1:
            (row,) = ticked
            about = {"recipe": row.name}
            st.page_link(
                COMPARE.script, label="Compare with baseline and control", icon=COMPARE.icon, query_params=about
            )
            st.page_link(FLIPS.script, label="Flips", icon=FLIPS.icon, query_params=about | {"run": row.run_id})
            st.page_link(RUN.script, label="Run", icon=RUN.icon, query_params=about | {"run": row.run_id})
            st.text(plain(row.name))
        else:
            first, *others = sorted(ticked, key=lambda row: (not row.is_baseline, row.control is None))
            runs = {"a": first.run_id, "b": [row.run_id for row in others]}
            st.page_link(COMPARE.script, label=f"Compare these {len(ticked)}", icon=COMPARE.icon, query_params=runs)


def show_intervals(rows: Sequence[Standing], tasks: Sequence[str], best: Mapping[str, frozenset[str]]) -> None:
    """One plot a task, in the order of the table."""
    with_intervals = [task for task in tasks if intervals.drawable(rows, task)]
    if not with_intervals:
        st.info("No comparison has an interval.")
        return
    if len(with_intervals) > PLOTTED:
        st.caption(f"The first {PLOTTED} of {len(with_intervals)} tasks; choose others in the filter.")
    shown = with_intervals[:PLOTTED]
    with st.container(horizontal=True, gap="small"):
        for task in shown:
            with st.container(width=intervals.WIDTH, gap="xsmall"):
                cells = [cell for _, cell in intervals.drawable(rows, task)]
                layout.draw(intervals.chart(rows, task), intervals.task_sentence(rows, task), cells=cells)
    st.text(intervals.sentence(rows, shown, best))


def show_results(cells: Sequence[Cell], facts: Mapping[str, RunFacts]) -> None:
    """Every number, a row a run and task."""
    if doubtful := sum(cell.verdict == "better" and cell.beats_controls is False for cell in cells):
        st.warning(
            f"{counted(doubtful, 'result is', 'results are')} better than the baseline, but not better than a control"
            " of the recipe's own: an edit of the same size without the recipe's idea may do as well.",
            icon=":material/balance:",
        )
    st.caption("Click a recipe's name to open the run: command, versions, receipt, files.")
    picked = st.dataframe(
        layout.tinted(layout.cell_rows(cells, with_model=False, facts=facts), ["Verdict", "Against its control"]),
        hide_index=True,
        placeholder="",
        width="stretch",
        height="content" if len(cells) <= ROWS_IN_FULL else 800,
        key=f"cells {content_key([[cell.run_id, cell.task, cell.metric] for cell in cells])}",
        on_select="rerun",
        selection_mode="single-cell",
        column_config={
            name: st.column_config.TextColumn(width="medium") for name in ("Recipe", "Against its control", "Notes")
        },
    )
    clicked = [row for row, column in picked["selection"]["cells"] if column == "Recipe" and row < len(cells)]
    if clicked:
        st.switch_page(RUN.script, query_params={"run": cells[clicked[0]].run_id})


def _cells(rows: Sequence[Standing], tasks: Sequence[str]) -> list[Cell]:
    """Every cell of the rows on these tasks, by task; failed runs without one too."""
    cells = [cell for row in rows for cell in row.cells.values() if cell.task in tasks or not cell.metric]
    return sorted(cells, key=lambda cell: (cell.task, cell.verdict != BASELINE))


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


def show_reported(cells: Sequence[Cell]) -> None:
    """Papers' numbers beside ours, kept apart from all that was measured here."""
    rows = tables.reported_rows(cells)
    if rows:
        st.subheader("Reported by papers", anchor=False)
        st.caption(
            "Numbers that papers report for this model, task and recipe. They were not measured here, their settings"
            " may differ, and they are part of no verdict."
        )
        st.dataframe(rows, hide_index=True, placeholder="", width="stretch", key="reported")
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
            " smaller than the margin: 0.02 for scores between 0 and 1. It is the grey band in the plots, where it"
            " is not far wider than they are.\n- **undecided**: there are too few documents to tell; the notes say"
            " about how many are needed to decide four times in five among so many comparisons, going by how much"
            " changed so far. *Could show* is the smallest difference that those at hand show four times in five;"
            " *too few documents*, there or in place of an interval, that they show none within the score's range.\n-"
            f" **incomparable**: {MARKS['incomparable'].meaning}; the notes name what differs.\n"
            "- **failed**: no usable result, with the reason.\n\nDelta is"
            " recipe minus baseline in the metric's own units; its interval holds for that one comparison. Where a"
            " metric's best value lies in the middle (a bias score of 0), better means nearer to it. Kept is"
            f" {KEPT}. Tokens/s is how fast documents were"
            " scored, and how many times as fast as the baseline in the same process. The noise floor is the share of"
            " answers of the unedited model that flip when rounding alone changes: flips within it mean nothing."
        )


main()
