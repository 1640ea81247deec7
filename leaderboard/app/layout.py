"""Parts that the pages share: what is said when there is nothing to show, tables of plain text with tinted verdicts,
plots with a sentence beneath.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from datetime import date
from typing import Any, Literal, TypeVar

import streamlit as st

from leaderboard.app import data, url_state
from leaderboard.app.charts.titled import save_button, titled
from leaderboard.app.colours import tinted
from leaderboard.app.tables import cell_rows
from leaderboard.board.across_models import unedited
from leaderboard.board.cell import Cell
from leaderboard.commands import ingest_command, run_arguments
from leaderboard.errors import Busy, LeaderboardError, MissingDatabase, NewerDatabase
from leaderboard.store.families import last_part, meant
from leaderboard.terminal.format import plain, span

__all__ = ["cell_rows", "tinted"]  # and all that is defined here
_Value = TypeVar("_Value")
REFRESH_SECONDS = 5
EXAMPLE_RUN = (
    "lm_eval",
    "run",
    "--model",
    "hf",
    "--model_args",
    "pretrained=demo",
    "--tasks",
    "int_mult,int_sum,pronoun_bias",
    "--recipe",
    "laser",
)


def answer_or_stop(question: Callable[..., _Value], *arguments: Hashable) -> data.Answer[_Value]:
    """`data.answer`; where there is none, an explanation instead of the page. A page asks once with it and further with
    `data.answer`.
    """
    return _or_stop(lambda: data.answer(question, *arguments))


def overview_or_stop() -> data.Answer[data.Overview]:
    """What there is; where there is nothing, an explanation instead of the page."""
    found = _or_stop(data.overview)
    if not found.value.runs:
        explain_empty()
        show_rejections(found.value)
        st.stop()
    return found


def further_or_stop(ask: Callable[[], data.Answer[_Value]], first: data.Answer[Any]) -> _Value:
    """What a page asks after its first answer; an explanation in its place where there is none."""
    try:
        found = ask()
    except LeaderboardError as error:
        explain_error(error)
        if isinstance(error, Busy):
            watch(object())
        st.stop()
    if found.busy and not first.busy:
        say_busy(found)
        watch(object())
    return found.value


def say_busy(found: data.Answer[Any]) -> None:
    """How old the data shown is, while somebody writes."""
    st.warning(f"The database is busy: showing data of {found.read_at:%H:%M}.", icon=":material/hourglass_top:")


def show_rejections(found: data.Overview) -> None:
    """What ingest could not take, with its reason."""
    if found.rejections:
        with st.expander(f"Not taken in: {len(found.rejections)}"):
            rows = [
                {
                    "Path": plain(data.place_of(row["path"])),
                    "Reason": plain(row["reason"]),
                    "When (UTC)": row["logged_at"],
                }
                for row in found.rejections
            ]
            st.dataframe(rows, hide_index=True, placeholder="", width="stretch")
            if data.published():
                st.caption("Once mended, they are taken in where this board was published from, by `lm_eval ingest`.")
                return
            st.caption("Once mended, take them in again:")
            st.code(ingest_command(data.database(), "PATH"), language=None, wrap_lines=True)


def choose_model(overview: data.Overview, place: Any) -> str:
    """The model chosen in the URL, as its key; at first the one that was edited last, if any was. A name that several
    models bear means the newest of them, which is said.
    """
    resolve_model(overview)
    shown = {model.shown: model.model_key for model in overview.models}
    edited = [run for run in overview.runs.values() if not unedited(run.recipe)]
    last = max(edited, key=lambda run: (run.started is not None, run.started or 0), default=None)
    names = sorted(shown, key=str.casefold)
    first = last and overview.names[last.model_key]
    return shown[url_state.one_of(place, "Model", names, url_state.MODEL, first=first)]


def resolve_model(overview: data.Overview) -> None:
    """Write the name of one model into the URL in place of one that means a family, or is written otherwise."""
    asked = st.query_params.get(url_state.MODEL)
    if asked is None or any(asked == model.shown for model in overview.models):
        return
    found = meant(asked, overview.models)
    if found.model is None:
        return
    url_state.put(url_state.MODEL, [found.model.shown])
    if found.others:
        others = ", ".join(plain(other.shown) for other in found.others)
        st.info(f"{len(found.others) + 1} models bear this name. This is the newest; choose another in the box:")
        st.text(others)


def choose_family(overview: data.Overview, names: Sequence[str], place: Any, first: str) -> str:
    """A box of models by name alone, whatever their identity; the URL keeps the identity until another is chosen."""
    found = meant(st.query_params.get(url_state.MODEL, ""), overview.models).model
    current = found.name if found is not None and found.name in names else first
    parts = Counter(last_part(name) for name in names)
    labels = {last_part(name) if parts[last_part(name)] == 1 else name: name for name in names}
    label = next(label for label, name in labels.items() if name == current)
    url_state.follow(place, "Model", list(labels), url_state.MODEL, label)
    return current


def _or_stop(ask: Callable[[], data.Answer[_Value]]) -> data.Answer[_Value]:
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
        say_busy(found)
    watch(object() if found.busy else found.generation)
    return found


def watch(shown: object) -> None:
    """Run the page again once the database is no longer of the generation shown; a value of its own tries again every
    time.
    """
    checks = itertools.count()

    @st.fragment(run_every=REFRESH_SECONDS)
    def check() -> None:
        if next(checks) and data.generation(data.database()) != shown:
            st.rerun()

    check()


def explain_empty() -> None:
    """What to run when there is nothing to show."""
    st.header("Nothing here yet")
    if place := data.published():
        st.text(f"The board published at {place} holds no runs. Where the runs are, this publishes them:")
        st.code("lm_eval publish --to postgres://USER@HOST/DATABASE", language=None)
        return
    st.write(
        "This page shows every recipe beside its baseline as soon as one run is finished. To make one, with the small"
        " model that comes along:"
    )
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


def say_nothing_left(what: str, keys: Sequence[str]) -> None:
    """That nothing passes the filters, and a button that takes them back. keys: theirs, in the URL."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.info(f"No {what} matches these filters.", icon=":material/filter_alt:", width=340)
        st.button("Clear the filters", icon=":material/filter_alt_off:", on_click=url_state.clear, args=(tuple(keys),))


def facts_table(facts: dict[str, Any]) -> None:
    """Two columns of plain text, name and value; empty values are left out."""
    rows = [{"Name": name, "Value": plain(str(value))} for name, value in facts.items() if value not in (None, "")]
    if rows:
        st.dataframe(rows, hide_index=True, placeholder="", width="stretch", height="content")


def plot(
    chart: Any,
    sentence: str,
    width: Literal["stretch", "content"] = "stretch",
    *,
    title: str = "",
    cells: Sequence[Cell] = (),
) -> None:
    """A chart with what it shows in words: beneath it for everybody, and as the picture's alternative text. title: of
    the picture; cells: what it is of, where it is of cells.
    """
    draw(chart, sentence, width, title=title, cells=cells)
    st.text(sentence)


def draw(
    chart: Any,
    sentence: str,
    width: Literal["stretch", "content"] = "stretch",
    *,
    title: str = "",
    cells: Sequence[Cell] = (),
) -> None:
    """The chart of `plot`, which can be saved, without its words."""
    picture = titled(chart, title or sentence.partition(":")[0].partition(".")[0][:60], picture_of(cells))
    st.altair_chart(picture.properties(description=sentence), width=width)
    save_button()


def picture_of(cells: Sequence[Cell]) -> str:
    """`demo, int_mult, n 80, 27 Nov 2026`: what a picture needs in order to stand alone; without cells, of the model
    and task that are chosen.
    """
    models = list(dict.fromkeys(cell.model for cell in cells)) or st.query_params.get_all(url_state.MODEL)
    tasks = list(dict.fromkeys(cell.task for cell in cells)) or st.query_params.get_all(url_state.TASK)
    counts = [cell.n for cell in cells if cell.n is not None]
    today = date.today()
    return ", ".join(
        filter(
            None,
            [
                last_part(models[0]) if len(models) == 1 else f"{len(models)} models" if models else "",
                tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks" if tasks else "",
                span(counts),
                f"{today.day} {today:%b %Y}",
            ],
        )
    )
