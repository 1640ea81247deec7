"""A run beside its baseline, its controls and other runs, task by task: in words, as a table, as scores on one axis,
and what differs in how they were made.

Its URL ends in `?run=<id>` and `&against=` for what it is compared with; `?a=<id>&b=<id>` compares run b with run a,
whatever their models, and with every further `b`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import streamlit as st

from leaderboard.app import (
    comparison,
    comparison_table,
    data,
    html_table,
    layout,
    run_choice,
    run_differences,
    tables,
    url_state,
)
from leaderboard.app.charts import dumbbells, forest, heat
from leaderboard.app.comparison import ComparedSide
from leaderboard.app.download import downloads
from leaderboard.app.html_table import ColumnHead, Text
from leaderboard.app.page_queries import RunFacts
from leaderboard.app.run_differences import RunRecord
from leaderboard.board.board import pair_board
from leaderboard.board.cell import Cell
from leaderboard.compare import choice_shift
from leaderboard.compare.run_diff import unshared
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import direction, estimated, gained, metric_name, percent, plain

TASKS_IN_A_PLOT = 40
THE_BASELINE, ITS_CONTROLS = "baseline", "controls"
BOX = "against what"
USUAL = (THE_BASELINE, ITS_CONTROLS)


def main() -> None:
    """Draw the page."""
    overview = layout.overview_or_stop()
    places = st.columns([2, 4, 4])
    run = run_choice.choose(overview, places)
    if run is None:
        return
    facts = overview.value.runs[run]
    if facts.status != "complete":
        html_table.show(html_table.name(facts.name or facts.recipe))
        show_failed(run, overview)
        return
    cells = [cell for cell in _board(facts, overview) if cell.run_id == run]
    sides = sides_of(run, cells, choose_against(run, cells, places[2], overview), overview)
    if not sides:
        return
    subject = {cell.task: cell for side in reversed(sides) for cell in side.cells.values()}
    made = layout.further_or_stop(
        lambda: data.answer(run_differences.records, run, *[side.run_id for side in sides if side.run_id]), overview
    )
    html_table.show(
        html_table.name(facts.name or facts.recipe),
        html_table.lead(comparison.sentences(sides)),
        html_table.badges(_badges(made, list(subject.values()))),
        html_table.table(
            comparison_table.heads(sides),
            comparison_table.rows(sides, subject),
            caption="Scores and improvements, a row a task",
        ),
    )
    show_unshared(run, sides, overview)
    show_numbers(sides)
    left, right = st.columns(2, gap="large")
    with left:
        show_plots(sides, subject, overview)
    with right:
        show_differences(made, sides)
    show_choices(sides, overview)


def _board(facts: RunFacts, overview: data.Answer[data.Overview]) -> list[Cell]:
    return layout.further_or_stop(lambda: data.cells_of(facts.model_key), overview)


def show_failed(run: str, overview: data.Answer[data.Overview]) -> None:
    """Why there is nothing to compare."""
    st.warning("This run failed, so there are no scores to compare:", icon=":material/error:")
    cells = [cell for cell in _board(overview.value.runs[run], overview) if cell.run_id == run]
    for note in dict.fromkeys(plain(note) for cell in cells for note in cell.notes):
        st.text(note)


def choose_against(run: str, cells: Sequence[Cell], place: Any, overview: data.Answer[data.Overview]) -> list[str]:
    """What to compare with, from the URL and the box: `baseline`, `controls`, or ids of runs."""
    runs = overview.value.runs
    pair = run_choice.named_run(runs, "a")
    others_named = run_choice.named_runs(runs, "b")[1:] if pair else []
    usual = list(USUAL) if any(cell.against_controls for cell in cells) else [THE_BASELINE]
    labels = dict(zip(USUAL, ("baseline", "its controls"))) if len(usual) > 1 else {THE_BASELINE: "baseline"}
    others = run_choice.newest_first(runs, runs[run].model_key)
    named = [pair, *others_named] if pair else _asked(runs)
    foreign = [runs[name] for name in named if name in runs and runs[name].model_key != runs[run].model_key]
    labels |= {
        name: words
        for name, words in (run_choice.labels(others) | _with_models(foreign, overview)).items()
        if name != run and runs[name].status == "complete"
    }
    if pair and pair not in labels:
        st.info(
            "Both are the same run: there is nothing to compare." if pair == run else "The run to compare with failed:"
        )
        st.text(plain(runs[pair].name or runs[pair].recipe))
        return []
    first = [name for name in named if name in labels] or usual
    st.session_state[BOX] = first
    place.multiselect(
        "Against", list(labels), key=BOX, format_func=labels.__getitem__, on_change=_chosen, args=(usual,)
    )
    return first


def _chosen(usual: list[str]) -> None:
    value = st.session_state[BOX]
    run_choice.forget_pair()
    url_state.put("against", [] if value == usual else value)


def _asked(runs: Mapping[str, RunFacts]) -> list[str]:
    """The URL's `against`, ids in full."""
    asked = st.query_params.get_all("against")
    found = [name if name in USUAL else next((r for r in runs if name and r.startswith(name)), "") for name in asked]
    if "" in found:
        st.warning("A run to compare with is not known here:", icon=":material/filter_alt_off:")
        st.text(plain(", ".join(name for name, run in zip(asked, found) if not run)))
    return [name for name in found if name]


def _with_models(runs: Sequence[RunFacts], overview: data.Answer[data.Overview]) -> dict[str, str]:
    return {
        name: f"{plain(overview.value.names[overview.value.runs[name].model_key])}: {words}"
        for name, words in run_choice.labels(runs).items()
    }


def sides_of(
    run: str, cells: Sequence[Cell], against: Sequence[str], overview: data.Answer[data.Overview]
) -> list[ComparedSide]:
    """What was chosen, as groups of columns."""
    sides = []
    for name in against:
        if name == THE_BASELINE:
            sides.append(comparison.baseline_side(cells))
        elif name == ITS_CONTROLS:
            sides += comparison.control_sides(cells)
        else:
            runs = overview.value.runs
            found = layout.further_or_stop(partial(data.answer, pair_board, name, run), overview)
            alike = (
                runs[name].name == runs[run].name
                or sum(runs[name].name == runs[o].name for o in against if o in runs) > 1
            )
            label = plain(runs[name].name or runs[name].recipe) + (f" ({name[:8]})" if alike else "")
            if runs[name].model_key != runs[run].model_key:
                label = f"{label} on {plain(overview.value.names[runs[name].model_key])}"
            sides.append(comparison.run_side(label, found))
    return sides


def _badges(made: Sequence[RunRecord], cells: Sequence[Cell]) -> list[str]:
    """Settings of the run, how many documents, and which run its baseline is."""
    if not made:
        return []
    words = run_differences.setting_badges(made[0])
    counts = sorted({cell.n for cell in cells if cell.n is not None})
    if counts:
        words.append(f"n {counts[0]:,}" if len(counts) == 1 else f"n {counts[0]:,} to {counts[-1]:,}")
    other = next((record.run for record in made[1:] if record.run["recipe_name"] == BASELINE), None)
    if other is not None:
        when = f", {other['started']:%d %b %Y, %H:%M}" if other["started"] else ""
        words.append(f"baseline {other['run_id'][:8]}{when}")
    return words


def show_unshared(run: str, sides: Sequence[ComparedSide], overview: data.Answer[data.Overview]) -> None:
    """Tasks and metrics that only one of the runs has, a line each."""
    for side in sides:
        if side.run_id is None or side.run_id == run:
            continue
        found = layout.further_or_stop(partial(data.answer, unshared, side.run_id, run), overview)
        for only, name in zip(found, (side.phrase, "this run")):
            for line in only._replace(name=name).sentences():
                st.text(plain(line))


def show_numbers(sides: Sequence[ComparedSide]) -> None:
    """All numbers of the primary metrics and the notes, folded."""
    with st.expander("All numbers and notes"):
        for place, side in enumerate(sides):
            cells = list(side.cells.values())
            if not cells:
                continue
            st.text(f"Against {side.phrase}")
            st.dataframe(
                layout.tinted(layout.cell_rows(cells, with_model=False, are_pairs=side.kind != BASELINE), ["Verdict"]),
                hide_index=True,
                placeholder="",
                width="stretch",
                key=f"numbers {place} {cells[0].run_id}",
                column_config={"Recipe": None, "Notes": st.column_config.TextColumn(width="medium")},
            )
            downloads(tables.cell_records(cells), "tasks" if place == 0 else f"tasks-{place}")


def show_plots(
    sides: Sequence[ComparedSide], subject: Mapping[str, Cell], overview: data.Answer[data.Overview]
) -> None:
    """Scores, intervals and all metrics, one behind the other."""
    scores, intervals, every = st.tabs(["Scores", "Intervals", "Every metric"])
    with scores:
        show_scores(sides, subject)
    with intervals:
        for side in sides:
            st.text(f"Against {side.phrase}")
            show_forest(list(side.cells.values()))
    with every:
        for place, side in enumerate(sides):
            show_heat(side, place, overview)


def show_scores(sides: Sequence[ComparedSide], subject: Mapping[str, Cell]) -> None:
    """One plot a metric, because units differ."""
    whom = [side.title for side in sides]
    whom.insert(1, dumbbells.SUBJECT)
    scored = sorted(
        (c for c in subject.values() if c.score is not None), key=lambda c: (metric_name(c), direction(c), c.task)
    )
    for place, (_, group) in enumerate(groupby(scored, key=lambda c: (metric_name(c), direction(c)))):
        of_metric = list(group)
        found = [dumbbells.Scores(c.task, c.metric, _scores_of(c, sides)) for c in of_metric[:TASKS_IN_A_PLOT]]
        first = of_metric[0]
        layout.plot(
            dumbbells.chart(found, whom, f"{plain(metric_name(first))}, {direction(first)}", legend=place == 0),
            dumbbells.sentence(found, whom),
            title="Scores",
            cells=of_metric[:TASKS_IN_A_PLOT],
        )
        if len(of_metric) > TASKS_IN_A_PLOT:
            st.caption(f"The first {TASKS_IN_A_PLOT} of {len(of_metric)} tasks.")
    if not scored:
        st.info("No task has a score.")


def _scores_of(cell: Cell, sides: Sequence[ComparedSide]) -> dict[str, float]:
    found = {
        side.title: other.baseline_score
        for side in sides
        if (other := side.cells.get(cell.task)) is not None and other.baseline_score is not None
    }
    return found | {dumbbells.SUBJECT: cell.score or 0.0}


def show_forest(cells: Sequence[Cell]) -> None:
    """One plot a metric, because units differ; its rows are tasks."""
    drawable = sorted(forest.drawable(cells), key=lambda cell: (metric_name(cell), direction(cell), cell.task))
    if not drawable:
        st.info("No task can be compared with an interval; the table above says why.")
        return
    for _, group in groupby(drawable, key=lambda cell: (metric_name(cell), direction(cell))):
        of_metric = list(group)
        shown = sorted(of_metric, key=lambda cell: -abs(cell.delta or 0.0))[:TASKS_IN_A_PLOT]
        st.text(f"{plain(metric_name(shown[0]))}, {direction(shown[0])}")
        layout.plot(
            forest.by_task(shown), forest.task_sentence(shown, len(of_metric)), title="Differences", cells=shown
        )


def show_heat(side: ComparedSide, place: int, overview: data.Answer[data.Overview]) -> None:
    """Every metric that both report of the tasks in which they may be compared, coloured by whether it rose or fell."""
    comparable = [c for c in side.cells.values() if c.verdict not in ("incomparable", "failed", BASELINE)]
    by_pair = [(run, other) for run, other in {(c.baseline_run or "", c.run_id): None for c in comparable}]
    found = [
        tile
        for base, run in by_pair
        for tasks in [tuple(c.task for c in comparable if c.baseline_run == base)]
        for tile in layout.further_or_stop(partial(data.answer, heat.rows, base, run, tasks), overview)
    ]
    st.text(f"Against {side.phrase}")
    if not found:
        st.info("The two runs share no metric of a task in which they may be compared.")
        return
    layout.plot(heat.chart(found), heat.sentence(found), title="Every metric", cells=comparable)
    downloads([row._asdict() for row in found], "metrics" if place == 0 else f"metrics-{place}")


def show_differences(made: Sequence[RunRecord], sides: Sequence[ComparedSide]) -> None:
    """What the runs say of how they were made: a row for what differs, a line for the rest."""
    st.subheader("What differs", anchor=False)
    ids = [side.run_id for side in sides if side.run_id]
    if len(made) != len(ids) + 1 or not ids or set(ids) == {made[0].run["run_id"]}:
        st.info("There is no other run to hold it against.")
        return
    order = [*made[1:2], made[0], *made[2:]]
    titles = [side.title for side in sides if side.run_id]
    titles.insert(1, "This run")
    facts = run_differences.facts(order)
    differing = run_differences.differing(facts, order)
    html_table.show(
        html_table.table(
            [ColumnHead("Name"), *map(ColumnHead, titles)],
            [[Text(run_differences.short(fact.name)), *map(Text, fact.values)] for fact in differing],
            caption="What differs between the runs",
            blocks=False,
        )
    )
    st.text(run_differences.same_sentence(facts))
    if unknown := [fact.name for fact in facts if not fact.comparable]:
        st.caption(f"Digests of two kinds, which say nothing of each other: {plain(', '.join(unknown))}")
    rows = [{"Name": plain(fact.name)} | dict(zip(titles, map(plain, fact.values))) for fact in differing]
    downloads(rows, "differences")
    same = [{"Name": plain(fact.name), "Value": plain(fact.values[0])} for fact in facts if not fact.differs]
    with st.expander(f"The same in all: {len(same)}"):
        st.dataframe(same, hide_index=True, placeholder="", width="stretch", key="same")


def show_choices(sides: Sequence[ComparedSide], overview: data.Answer[data.Overview]) -> None:
    """Answers that changed, wrong ones among themselves included, and how far the probabilities moved: more sensitive
    than any score.
    """
    found = [
        (side, task, of_task)
        for side in sides
        for (base, run), asked in _by_pair(side).items()
        for task, of_task in layout.further_or_stop(
            partial(data.answer, choice_shift.of_tasks, base, run, tuple(asked)), overview
        ).items()
    ]
    if not found:
        return
    st.subheader("Answers and probabilities", anchor=False)
    rows = [
        {
            "Task": plain(task),
            "Against": side.title,
            "Documents": of_task.documents,
            "Answers changed": percent(of_task.changed),
            "Choice divergence, nats [95 %]": estimated(of_task.divergence),
            "Right answer's log-likelihood, change in nats [95 %]": gained(of_task.gold_drop),
        }
        for side, task, of_task in found
    ]
    st.dataframe(rows, hide_index=True, placeholder="", width="stretch", key="choices")
    st.caption(
        "Divergence: how far this run's probabilities of the choices are from the other's (Kullback-Leibler, mean over"
        " documents; 0 is no change). Change: above 0, this run finds the right answers more likely; of all documents"
        " whole, where the row of that metric counts none for more than a bound. Shown, and part of no verdict."
    )
    downloads(
        [{"task": task, "against": side.title} | choice_shift.record(of_task) for side, task, of_task in found],
        "answers",
    )


def _by_pair(side: ComparedSide) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(other run, this run) -> (task, filter) of what may be compared."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for cell in side.cells.values():
        if cell.verdict not in ("incomparable", "failed", BASELINE) and cell.baseline_run:
            found.setdefault((cell.baseline_run, cell.run_id), []).append((cell.task, cell.filter))
    return found


main()
