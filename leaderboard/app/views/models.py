"""The first page: what is here, what helped and what broke, in three seconds."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import streamlit as st

from leaderboard.app import data, layout, url_state
from leaderboard.app.badges import short_count
from leaderboard.app.colours import MARKS as COLOURS
from leaderboard.app.colours import css
from leaderboard.app.linked_table import content_key
from leaderboard.app.menu import BOARD, RUN
from leaderboard.board.newest import NewestRun, newest
from leaderboard.board.standings import ALONE, AS_CONTROL, BEATS, KINDS, kind_of, split_name
from leaderboard.board.summary import ModelSummary, summaries
from leaderboard.readers.records import BASELINE
from leaderboard.store.database import Store
from leaderboard.store.families import ModelName
from leaderboard.terminal.format import breakable, counted, plain
from leaderboard.terminal.marks import MARKS, MINUS, gain
from leaderboard.terminal.output import as_text

CARDS = 12  # models shown as cards; more of them are rows
NEWEST = 8
FAILED = 6
BEST = 4  # tasks of a card
JUDGING_SECONDS = 0.5
BOARD_ONLY = ("verdict", "metric", "controls", "only", "tasks", "find")


def main() -> None:
    """Draw the page."""
    if any(key in st.query_params for key in BOARD_ONLY):  # a link of when the board was the first page
        st.switch_page(BOARD.script, query_params=dict(st.query_params.to_dict()))
    overview = layout.overview_or_stop()
    found = layout.further_or_stop(lambda: data.answer(models_at_a_glance, JUDGING_SECONDS), overview)
    if not all(model.judged for model in found.values()):
        whole = data.ahead(models_at_a_glance, None)
        found = found if whole is None else whole.value
    last = layout.further_or_stop(lambda: data.answer(newest, NEWEST), overview)
    st.title("Models", anchor=False)
    st.markdown(in_words(list(found.values()), len(overview.value.runs)))
    asked = url_state.text(st, "Search", "find_model", placeholder="Search models, recipes, tasks")
    names = {model.model_key: model for model in overview.value.models}
    order = [key for key in names if key in found and holds(found[key], names[key], asked)]
    edited = [found[key] for key in order if found[key].recipes or found[key].failed]
    if asked and not order:
        st.info("No model, recipe or task is called so.")
    show_cards(edited[:CARDS], names)
    if len(edited) > CARDS:
        show_rows(edited[CARDS:], names, "Further models", "further")
    left, right = st.columns([3, 2], gap="large")
    with left:
        show_newest([run for run in last if run.model_key in order], names)
    with right:
        show_failed(edited, names)
    show_rows([found[key] for key in order if found[key] not in edited], names, "Plain lm-eval results", "plain")
    layout.show_rejections(overview.value)
    if not all(model.judged for model in found.values()):
        show_once_judged()


def models_at_a_glance(store: Store, seconds: float | None) -> dict[str, ModelSummary]:
    """Every model; those that were not judged after so long say so."""
    return summaries(store, data.effects(), seconds=seconds)


@st.fragment(run_every=layout.REFRESH_SECONDS)
def show_once_judged() -> None:
    """Draw the page again once every model is judged."""
    if data.ahead(models_at_a_glance, None) is not None:
        st.rerun()


def in_words(models: Sequence[ModelSummary], runs: int) -> str:
    """How much there is."""
    edited = sum(model.recipes > 0 for model in models)
    failed = sum(len(model.failed) for model in models)
    newest_run = max((model.newest for model in models if model.newest), default=None)
    counts: dict[str, int] = {}
    for model in models:
        for name, count in model.counts.items():
            counts[name] = counts.get(name, 0) + count
    better = counts.get(BEATS, 0)
    others = counts.get(ALONE, 0) + counts.get(AS_CONTROL, 0)
    worse = counts.get("worse", 0) + counts.get("collapsed", 0)
    waiting = sum(not model.judged for model in models)
    results = (
        f"**{better:,}** results better than baseline and control, {others:,} better without that proof,"
        f" {counts.get('undecided', 0):,} undecided, **{worse:,}** worse."
    )
    words = [
        f"**{len(models):,}** {'model' if len(models) == 1 else 'models'},"
        f" **{runs:,}** {'run' if runs == 1 else 'runs'}.",
        f"Recipes were tried on **{edited:,}** of them." if edited else "No recipe was tried yet.",
        f"{counted(waiting, 'model is', 'models are')} being judged." if waiting else results if edited else "",
        f"{counted(failed, 'run', 'runs')} failed." if failed else "",
        f"Newest: {newest_run:%d %b %Y, %H:%M}." if newest_run else "",
    ]
    return " ".join(filter(None, words))


def holds(model: ModelSummary, name: ModelName, asked: str) -> bool:
    """Whether the words searched for are all in a model's names, best recipes or tasks."""
    said = [name.name, name.shown, model.architecture or "", *(f"{best.recipe} {best.task}" for best in model.best)]
    text = " ".join(said).casefold()
    return all(word in text for word in asked.casefold().split())


def show_cards(models: Sequence[ModelSummary], names: dict[str, ModelName]) -> None:
    """A card a model; the one whose name is in the URL first."""
    chosen = st.query_params.get(url_state.MODEL)
    with st.container(horizontal=True, gap="small"):
        for model in sorted(models, key=lambda model: names[model.model_key].shown != chosen):
            name = names[model.model_key]
            with st.container(border=True, width=364, key=f"card {model.model_key}"):
                st.html(f"{_STYLE}{card(model, name)}")
                st.page_link(
                    BOARD.script, label="Open the board", icon=":material/arrow_forward:",
                    query_params={url_state.MODEL: name.shown},
                )  # fmt: skip


def card(model: ModelSummary, name: ModelName) -> str:
    """What a card says, as HTML of escaped text."""
    badges = [
        f"{short_count(model.parameters)} parameters" if model.parameters else "",
        model.architecture or "",
        model.dtype or "",
        counted(model.runs, "run", "runs"),
        counted(model.tasks, "task", "tasks"),
    ]
    spans = "".join(f"<span class='chip'>{html.escape(plain(text))}</span>" for text in badges if text)
    return (
        f"<h3 class='name' title='{html.escape(plain(name.name), quote=True)}'>{breakable(name.shown)}</h3>"
        f"<div class='chips'>{spans}</div>{_outcomes(model)}{_bests(model)}"
    )


def _outcomes(model: ModelSummary) -> str:
    if not model.judged:
        return "<p class='quiet'>Being judged: open the board.</p>"
    counts = [(name, model.counts.get(name, 0)) for name in KINDS if name != BASELINE and model.counts.get(name)]
    total = sum(count for name, count in counts)
    if not total:
        return ""
    bar = "".join(
        f"<span style='flex-grow:{count}; background:{_BAR[name]}'></span>" for name, count in counts if name in _BAR
    )
    words = "".join(
        f"<span><span class='sign' style='{css(name)}'>{MARKS[name].sign}</span>{count:,} {_SHORT.get(name, name)}"
        "</span>"
        for name, count in counts
    )
    return f"<div class='bar' aria-hidden='true'>{bar}</div><div class='counts'>{words}</div>"


def _bests(model: ModelSummary) -> str:
    if not model.judged:
        return ""
    if not model.best:
        reasons = [f"<p class='quiet'>{html.escape(plain(failed.reason))}</p>" for failed in model.failed[:1]]
        return "".join(reasons) if not model.recipes else "<p class='quiet'>No recipe is better on any task.</p>"
    proved = all(best.kind == BEATS for best in model.best)
    parts = [f"<p class='quiet'>Best recipe of each task{', controls beaten' if proved else ''}</p>"]
    for best in model.best[:BEST]:
        recipe, settings = split_name(best.recipe.partition(" ")[0], best.recipe)
        breaks = (
            f"<div style='{css('worse').partition(';')[0]}'>{MARKS['worse'].sign} breaks"
            f" {breakable(', '.join(best.breaks))}</div>"
            if best.breaks
            else "<div class='quiet'>no task is shown to break</div>"
        )
        kept = "" if best.kind == BEATS else " <span class='quiet'>(no control run)</span>"
        parts.append(
            f"<div class='best'><div><span class='quiet'>{breakable(best.task)}</span>"
            f"<span class='gain' style='{css(best.kind)}'>{MARKS[best.kind].sign} {gain(best.improvement, minus=MINUS)}"
            f"</span></div><div>{breakable(recipe)}"
            f"<span class='quiet'>{breakable(', ' + settings if settings else '')}</span>{kept}</div>{breaks}"
            "</div>"
        )
    more = len(model.best) - BEST
    return "".join(parts) + (f"<p class='quiet'>and {counted(more, 'task', 'tasks')} more</p>" if more > 0 else "")


def show_newest(runs: Sequence[NewestRun], names: dict[str, ModelName]) -> None:
    """The last runs, each with what it is on its tasks; a name leads to the run."""
    st.subheader("Newest runs", anchor=False)
    for run in runs:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            model = f"{names[run.model_key].shown}: " if run.model_key in names else ""
            when = f"{run.started:%d %b, %H:%M} " if run.started else ""
            st.page_link(RUN.script, label=as_text(f"{when}{model}{run.name}"), query_params={"run": run.run_id})
            st.html(f"{_STYLE}{_newest(run)}")


def _newest(run: NewestRun) -> str:
    marks = "".join(
        f"<span class='sign' style='{css(name)}' title='{html.escape(plain(one.task), quote=True)}:"
        f" {MARKS[name].words}'>{MARKS[name].sign} {gain(one.improvement, minus=MINUS)}</span>"
        for one in run.outcome[:BEST]
        for name in (kind_of(one.verdict, one.beats_controls),)
        if name != BASELINE
    )
    more = len(run.outcome) - BEST
    state = "<span class='sign'>failed</span>" if run.status == "failed" else ""
    return f"<div class='line'>{state}{marks}{f' <span class=quiet>+{more}</span>' if more > 0 and marks else ''}</div>"


def show_failed(models: Iterable[ModelSummary], names: dict[str, ModelName]) -> None:
    """Failed runs with their reasons."""
    failed = [(names[model.model_key], one) for model in models for one in model.failed]
    if not failed:
        return
    st.subheader("Failed runs", anchor=False)
    for name, one in failed[:FAILED]:
        st.page_link(RUN.script, label=as_text(f"{name.shown}: {one.name}"), query_params={"run": one.run_id})
        st.html(f"{_STYLE}<div class='quiet'>{html.escape(plain(one.reason))}</div>")
    if len(failed) > FAILED:
        st.caption(f"and {len(failed) - FAILED:,} more, on the boards of their models")


def show_rows(models: Sequence[ModelSummary], names: dict[str, ModelName], title: str, key: str) -> None:
    """Models as rows of a table; a ticked one leads to its board."""
    if not models:
        return
    st.subheader(title, anchor=False)
    rows: list[dict[str, Any]] = [
        {
            "Model": plain(names[model.model_key].shown),
            "Runs": model.runs,
            "Recipes": model.recipes,
            "Tasks": model.tasks,
            "Better": model.counts.get(BEATS, 0),
            "Worse": model.counts.get("worse", 0) + model.counts.get("collapsed", 0),
            "Failed": len(model.failed),
            "Newest": model.newest,
        }
        for model in models
    ]
    if not any(row["Recipes"] for row in rows):
        rows = [{name: row[name] for name in ("Model", "Runs", "Tasks", "Newest")} for row in rows]
    picked = st.dataframe(
        rows, hide_index=True, width="stretch", height="content" if len(rows) <= 12 else 420, placeholder="",
        key=f"{key} {content_key([model.model_key for model in models])}", on_select="rerun",
        selection_mode="single-row",
        column_config={"Newest": st.column_config.DateColumn(format="D MMM YYYY")},
    )  # fmt: skip
    ticked = [i for i in picked["selection"]["rows"] if i < len(models)]
    if ticked:
        st.switch_page(BOARD.script, query_params={url_state.MODEL: names[models[ticked[0]].model_key].shown})


_SHORT = {BEATS: "better", ALONE: "better, no control", AS_CONTROL: "better, control may be"}
_BAR = {
    BEATS: COLOURS["better"],
    ALONE: "#7fb2dd",
    AS_CONTROL: "#b9d4ec",
    "same": "#a3abb6",
    "undecided": "#d5dae1",
    "worse": COLOURS["worse"],
    "collapsed": COLOURS["collapsed"],
}
_STYLE = """<style>
.name { font-size: 1.05rem; margin: 0 0 6px; padding: 0; overflow-wrap: anywhere; }
.chips, .counts { display: flex; flex-wrap: wrap; gap: 4px 8px; font-size: 0.8rem; }
.chip { border: 1px solid rgba(128, 138, 150, 0.4); border-radius: 6px; padding: 1px 7px; }
.bar { display: flex; gap: 2px; height: 8px; margin: 10px 0 8px; border-radius: 4px; overflow: hidden; }
.sign { border: 1px solid rgba(128, 138, 150, 0.4); border-radius: 5px; padding: 0 5px; margin-right: 5px;
  white-space: nowrap; font-size: 0.8rem; }
.quiet { opacity: 0.75; font-size: 0.85rem; margin: 8px 0 2px; }
.best { border-top: 1px solid rgba(128, 138, 150, 0.3); padding: 5px 0; font-size: 0.9rem; overflow-wrap: anywhere; }
.best .quiet, .line .quiet { margin: 0; }
.gain { float: right; border-radius: 5px; padding: 0 6px; font-weight: 600; }
.line { font-size: 0.9rem; overflow-wrap: anywhere; }
[data-testid="stPageLink-NavLink"] * { white-space: normal; overflow-wrap: anywhere; }
</style>"""

main()
