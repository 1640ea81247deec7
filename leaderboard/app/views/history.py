"""One recipe on one model and task over time: scores, what changed between runs, and what was decided. Its URL names
the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from leaderboard.app import data, layout, linked_table, url_state
from leaderboard.app.charts import timeline
from leaderboard.app.download import downloads
from leaderboard.app.tables import verdict_words
from leaderboard.board.across_models import unedited
from leaderboard.board.cell import Cell
from leaderboard.board.history import Event, History, HistoryPoint, HistorySubject, history, subjects
from leaderboard.terminal.format import counted, number, plain

BY_DATE, EVENLY = "by date", "evenly"
CHANGES_IN_WORDS = 6


def main() -> None:
    """Draw the page."""
    st.title("History", anchor=False)
    first = layout.answer_or_stop(subjects)
    known = first.value
    if not known:
        layout.explain_empty()
        return
    places = st.columns([3, 3, 3, 2])
    model, recipe, task = chosen(known, layout.further_or_stop(data.overview, first), places)
    found: History = layout.further_or_stop(lambda: data.answer(history, model, recipe, task), first)
    if not found.points:
        st.info("No run of these has a score of the task's main metric.")
        return
    verdicts = {
        cell.run_id: cell
        for cell in linked_table.cells_of((point.model_key for point in found.points), first)
        if cell.task == task
    }
    show_plot(found, recipe, places[3])
    show_runs(found.points, verdicts)
    show_decisions(found.events)
    how_to_read()


def chosen(known: Sequence[HistorySubject], overview: data.Overview, places: Sequence[Any]) -> tuple[str, str, str]:
    """Model, recipe and task; at first those with the most runs of an edited model, if there are any."""
    first = max(known, key=lambda subject: (not unedited(subject.recipe), subject.runs))
    model = layout.choose_family(overview, sorted({subject.model for subject in known}), places[0], first.model)
    of_model = [subject for subject in known if subject.model == model]
    most = max(of_model, key=lambda subject: (not unedited(subject.recipe), subject.runs))
    recipe = url_state.one_of(
        places[1], "Recipe", sorted({subject.recipe for subject in of_model}), "recipe", first=most.recipe
    )
    of_recipe = [subject for subject in of_model if subject.recipe == recipe]
    task = url_state.one_of(
        places[2],
        "Task",
        sorted(subject.task for subject in of_recipe),
        "task",
        first=max(of_recipe, key=lambda subject: subject.runs).task,
    )
    return model, recipe, task


def show_plot(found: History, recipe: str, place: Any) -> None:
    """The plot, and the same in a sentence. place: where to ask for the spacing."""
    points = found.points
    dated = all(point.moment is not None for point in points) and len({point.moment for point in points}) > 1
    spacing = url_state.one_of(place, "Spacing", [BY_DATE, EVENLY] if dated else [EVENLY], "spacing")
    layout.plot(
        timeline.chart(points, found.events, by_date=spacing == BY_DATE),
        sentence(found, recipe),
        title=f"History of {plain(recipe)}",
    )


def sentence(found: History, recipe: str) -> str:
    """What the plot shows, in words."""
    of_recipe = [point for point in found.points if not point.unedited]
    lines = [
        _line(of_recipe, plain(recipe)),
        _line([point for point in found.points if point.unedited], "the unedited model"),
    ]
    decided = (
        f"{counted(len(found.events), 'decision', 'decisions')} (upright lines)" if found.events else "no decisions"
    )
    changed = sum(bool(point.changes) for point in found.points)
    moved = (
        f"{counted(changed, 'run differs', 'runs differ')} from the one before in settings or versions (triangles)"
        if changed
        else "no recorded setting or version changed"
    )
    return f"{'; '.join(filter(None, lines))}; {decided}; {moved}. Bars are 95 % intervals of each score by itself."


def _line(points: Sequence[HistoryPoint], name: str) -> str:
    scores = [point.score for point in points if point.score is not None]
    failed = sum(point.status == timeline.FAILED for point in points)
    if not points:
        return ""
    span = (
        "no score"
        if not scores
        else (
            f"score {number(scores[0])}"
            if len(scores) == 1
            else f"score from {number(scores[0])} at first to {number(scores[-1])} at last"
        )
    )
    return f"{name}: {counted(len(points), 'run', 'runs')}, {span}" + (f", {failed} failed" if failed else "")


def show_runs(points: Sequence[HistoryPoint], verdicts: dict[str, Cell]) -> None:
    """Every run with its verdict against its own baseline; a ticked row opens it."""
    st.subheader("Runs", anchor=False)
    st.caption("Tick a row's box to open its run.")
    latest = list(reversed(points))
    linked_table.linked_table(
        [_row(point, verdicts.get(point.run_id)) for point in latest],
        [point.run_id for point in latest],
        "runs",
        words=["Verdict"],
        columns={"Changed": st.column_config.TextColumn(width="large")},
    )
    downloads([_record(point, verdicts.get(point.run_id)) for point in latest], "history")


def _row(point: HistoryPoint, cell: Cell | None) -> dict[str, Any]:
    interval = "" if point.low is None or point.high is None else f"[{number(point.low)}, {number(point.high)}]"
    names = [change.what for change in point.changes]
    more = f" and {len(names) - CHANGES_IN_WORDS} more" if len(names) > CHANGES_IN_WORDS else ""
    return {
        "Started (UTC)": timeline.when(point.moment),
        "Model": timeline.line_of(point),
        "Verdict": timeline.FAILED if point.status == timeline.FAILED else verdict_words(cell) if cell else "",
        "Score": number(point.score) if point.score is not None else plain(point.reported),
        "95 %": interval,
        "Changed": plain(
            "; ".join(
                f"{change.what}: {change.before} -> {change.after}" for change in point.changes[:CHANGES_IN_WORDS]
            )
            + more
        ),
        "Documents": point.subset or ("" if point.documents is None else f"{point.documents:,}"),
        "Notes": plain(point.failure),
        "Run": point.run_id[:12],
    }


def _record(point: HistoryPoint, cell: Cell | None) -> dict[str, Any]:
    """The same with all digits."""
    return {
        "run_id": point.run_id,
        "started_utc": point.moment,
        "line": timeline.line_of(point),
        "status": point.status,
        "verdict": cell.verdict if cell else None,
        "metric": point.metric,
        "filter": point.filter,
        "score": point.score,
        "reported": point.reported,
        "low": point.low,
        "high": point.high,
        "documents": point.documents,
        "subset": point.subset,
        "changes": "; ".join(f"{change.what}: {change.before} -> {change.after}" for change in point.changes),
        "failure": point.failure,
    }


def show_decisions(events: Sequence[Event]) -> None:
    """Pins, blessings and gates."""
    st.subheader("Decisions", anchor=False)
    if not events:
        st.text("No run of this model was pinned as its baseline, none of this recipe blessed or gated.")
        return
    latest = list(reversed(events))
    rows = [
        {
            "When (UTC)": timeline.when(event.moment),
            "Decision": plain(event.what),
            "Reason": plain(event.reason),
            "Run": plain(event.run_id[:12]),
        }
        for event in latest
    ]
    st.dataframe(rows, hide_index=True, placeholder="", width="stretch", key="decisions")
    downloads([event._asdict() for event in latest], "decisions")


def how_to_read() -> None:
    """The marks, explained."""
    with st.expander("How to read this"):
        st.markdown(
            "A history follows names: the model's, the recipe's and the task's. What has changed under a name from one"
            " run to the next is marked by a triangle and listed in the table.\n\n- The line *unedited* is the same"
            " model without a recipe. Where it moves too, that much is not the recipe's doing.\n- *pinned*: from then"
            " on the run is what the model's other runs are measured against. *blessed*: from then on the run is what"
            " later runs of the recipe are gated against. *gate*: a gate was run, with this outcome.\n- A run that"
            " failed has no score; it is a cross at the foot of the plot.\n- The bar of a score that is a share of"
            " documents is Wilson's interval; of any other, 1.96 of the standard errors that were reported, as far as"
            " the metric's values go.\n- Verdicts are those of the leaderboard, from paired documents. Whether two"
            " intervals here overlap says less."
        )


main()
