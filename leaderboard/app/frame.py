"""Parts that the pages share: what is said when there is nothing to show, tables of plain text with tinted verdicts, plots with a sentence beneath."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import streamlit as st

from leaderboard.advice import ingest_command, run_arguments
from leaderboard.app import data
from leaderboard.app.scale import tinted
from leaderboard.cell import Cell
from leaderboard.errors import Busy, LeaderboardError, MissingDatabase, NewerDatabase
from leaderboard.wording import (
    interval,
    metric_name,
    needed,
    number,
    percent,
    plain,
    signed,
)

__all__ = ["answer_or_stop", "cell_rows", "explain_empty", "explain_error", "facts_table", "glance", "plot", "remarks", "snapshot_or_stop", "tinted", "watch"]
_Value = TypeVar("_Value")
_Found = TypeVar("_Found", data.Snapshot, data.Answer[Any])
REFRESH_SECONDS = 5
EXAMPLE_RUN = ("lm_eval", "run", "--model", "hf", "--model_args", "pretrained=demo", "--tasks", "int_mult,int_sum,pronoun_bias", "--recipe", "laser")


def snapshot_or_stop() -> data.Snapshot:
    """The board's data; where there is none, an explanation instead of the page."""
    return _or_stop(data.snapshot)


def answer_or_stop(question: Callable[..., _Value], *arguments: Hashable) -> data.Answer[_Value]:
    """`data.answer`; where there is none, an explanation instead of the page. A page asks once with it and further with `data.answer`."""
    return _or_stop(lambda: data.answer(question, *arguments))


def _or_stop(ask: Callable[[], _Found]) -> _Found:
    try:
        found = ask()
    except MissingDatabase:
        explain_empty()
        watch(None)
        st.stop()
    except LeaderboardError as error:
        explain_error(error)
        watch(object() if isinstance(error, Busy) else data.generation(data.database()))
        st.stop()
    if found.busy:
        st.warning(f"The database is busy: showing data of {found.read_at:%H:%M}.", icon=":material/hourglass_top:")
    watch(object() if found.busy else found.generation)
    return found


def watch(shown: object) -> None:
    """Run the page again once the database is no longer of the generation shown; a value of its own tries again every time."""
    checks = itertools.count()

    @st.fragment(run_every=REFRESH_SECONDS)
    def check() -> None:
        if next(checks) and data.generation(data.database()) != shown:
            st.rerun()

    check()


def explain_empty() -> None:
    """What to run when there is nothing to show."""
    st.header("Nothing here yet")
    st.write("This page shows every recipe beside its baseline as soon as one run is finished. To make one, with the small model that comes along:")
    st.code(shlex.join([*EXAMPLE_RUN, *run_arguments(data.database())]), language=None, wrap_lines=True)
    st.write("If you have results of `lm_eval` already, from any machine, take them in:")
    st.code(ingest_command(data.database(), "PATH"), language=None, wrap_lines=True)
    st.caption("The database looked for:")
    st.text(str(data.database()))


def explain_error(error: LeaderboardError) -> None:
    """An error of the store, in the store's own words, as text."""
    titles = {Busy: "The database is busy", NewerDatabase: "This database is newer than the page"}
    st.header(titles.get(type(error), "The database cannot be shown"))
    st.text(str(error))
    if isinstance(error, Busy):
        st.caption(f"The page tries again every {REFRESH_SECONDS} seconds.")


def remarks(cell: Cell) -> str:
    """What is still to be said of a cell, on one line."""
    return "; ".join(filter(None, [needed(cell), *map(plain, cell.notes)]))


def cell_rows(cells: Sequence[Cell], *, with_model: bool) -> list[dict[str, Any]]:
    """The cells as rows of text for a table."""
    return [
        ({"Model": plain(cell.model)} if with_model else {})
        | {
            "Task": plain(cell.task),
            "Recipe": plain(cell.recipe),
            "Verdict": cell.verdict,
            "Delta [95 %]": interval(cell),
            "Score": number(cell.score),
            "Baseline": number(cell.baseline_score),
            "Kept": percent(cell.parameters_kept),
            "Remarks": remarks(cell),
            "Metric": plain(metric_name(cell)),
            "Documents": "-" if cell.n is None else f"{cell.n:,}",
            "Lost / gained": "-" if cell.lost is None else f"{cell.lost} / {cell.gained}",
            "q": number(cell.q_value),
        }
        for cell in cells
    ]


def glance(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row a recipe, one column a task: the verdict and the difference. The latest run of a recipe speaks for it."""
    tasks = sorted({cell.task for cell in cells})
    latest = {(cell.recipe, cell.task): cell for cell in sorted(cells, key=lambda c: (c.started is not None, c.started or 0))}
    kept = {cell.recipe: cell.parameters_kept for cell in cells}
    order = sorted(kept, key=lambda recipe: (all(c.verdict != "baseline" for c in cells if c.recipe == recipe), recipe))
    return [
        {"Recipe": plain(recipe), "Kept": percent(kept[recipe])} | {plain(task): _glance_text(latest.get((recipe, task))) for task in tasks}
        for recipe in order
    ]


def _glance_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.verdict == "baseline":
        return f"baseline {number(cell.score)}"
    return cell.verdict if cell.delta is None else f"{cell.verdict} {signed(cell.delta)}"


def facts_table(facts: dict[str, Any]) -> None:
    """Two columns of plain text, name and value; empty values are left out."""
    rows = [{"Name": name, "Value": plain(str(value))} for name, value in facts.items() if value not in (None, "")]
    if rows:
        st.dataframe(rows, hide_index=True, width="stretch", height="content")


def plot(chart: Any, sentence: str) -> None:
    """A chart with what it shows in words: beneath it for everybody, and as the picture's alternative text."""
    st.altair_chart(chart.properties(description=sentence), width="stretch")
    st.text(sentence)
