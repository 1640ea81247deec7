"""The boxes that choose a model and one of its runs, alike on the pages that look at one run.

Notable choices:
- The newest complete run of a recipe comes first, so that a page opens on what was just made.
- A link's `run` (or `b`, of older links) names a run by its id or the beginning of it, and brings its model along where
  the link names none. `recipe` alone stands for the newest run of that recipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import streamlit as st

from leaderboard.app import data, layout, url_state
from leaderboard.app.page_queries import RunFacts
from leaderboard.board.across_models import unedited
from leaderboard.errors import LeaderboardError
from leaderboard.store.database import Store
from leaderboard.store.queries import deleted_words
from leaderboard.terminal.format import plain


def controls(store: Store) -> dict[str, str]:
    """run_id -> the control that it is, of all runs that are one."""
    rows = store.rows("SELECT run_id, control FROM runs JOIN variants USING (variant_id) WHERE control IS NOT NULL")
    return {row["run_id"]: row["control"] for row in rows}


def newest_first(runs: Mapping[str, RunFacts], model: str) -> list[RunFacts]:
    """The runs of a model (by key), the latest started first, those without a time last."""
    of_model = [run for run in runs.values() if run.model_key == model]
    return sorted(of_model, key=lambda run: (run.started is not None, run.started or 0, run.run_id), reverse=True)


def first_choice(runs: Sequence[RunFacts], is_control: Mapping[str, str], recipe: str | None) -> str | None:
    """The run that a page opens on: the first one of `recipe` where such is asked for and there, else the first that
    is complete and no control, an edited one before the unedited model. runs: the newest first.
    """
    named = [run for run in runs if recipe and recipe in (plain(run.recipe), plain(run.name))]
    for some in (named, [run for run in runs if not unedited(run.recipe)], list(runs)):
        complete = [run for run in some if run.status == "complete"]
        best = [run for run in complete if run.run_id not in is_control] or complete or (some if named else [])
        if best:
            return best[0].run_id
    return runs[0].run_id if runs else None


def labels(runs: Sequence[RunFacts]) -> dict[str, str]:
    """run_id -> name and date, `laser, 26 Nov 2026 09:35`; with the beginning of the id where two would be alike."""
    words = {run.run_id: _label(run) for run in runs}
    times = Counter(words.values())
    return {run_id: text if times[text] == 1 else f"{text}, {run_id[:8]}" for run_id, text in words.items()}


def _label(run: RunFacts) -> str:
    when = "" if run.started is None else f", {run.started:%d %b %Y %H:%M}"
    return f"{plain(run.name or run.recipe)}{when}{'' if run.status == 'complete' else ', failed'}"


def named_runs(runs: Mapping[str, RunFacts], key: str) -> list[str]:
    """The runs that the URL names under `key`, by the beginnings of their ids; from then on it names them in full. What
    is not known is told and left out.
    """
    asked = st.query_params.get_all(key)
    found = [next((run_id for run_id in runs if start and run_id.startswith(start)), None) for start in asked]
    unknown = [start for start, run_id in zip(asked, found) if run_id is None]
    if unknown:
        st.warning("A run of this link is not known here:", icon=":material/filter_alt_off:")
        st.text("\n".join(plain(_deleted(start) or start) for start in unknown))
    known = [run_id for run_id in found if run_id is not None]
    if known != asked:
        if known:
            st.query_params[key] = known
        else:
            st.query_params.pop(key, None)
    return known


def _deleted(run_id: str) -> str:
    """That a run was taken off the board, where that is known."""
    with suppress(LeaderboardError):
        return data.answer(deleted_words, run_id).value
    return ""


def named_run(runs: Mapping[str, RunFacts], key: str) -> str | None:
    """The first of them; None where there is none."""
    found = named_runs(runs, key)
    return found[0] if found else None


def choose(overview: data.Answer[data.Overview], places: Sequence[Any]) -> str | None:
    """Draw the box of the model and that of its runs; the run chosen. places: of the two boxes."""
    runs = overview.value.runs
    earlier = named_run(runs, "b")
    arrived = earlier is not None and "run" not in st.query_params
    named = earlier if arrived else named_run(runs, "run")
    if named and (arrived or "model" not in st.query_params):
        url_state.put(url_state.MODEL, [plain(overview.value.names[runs[named].model_key])])
    model = layout.choose_model(overview.value, places[0])
    of_model = newest_first(runs, model)
    if named and runs[named].model_key != model:
        named = None
        st.query_params.pop("run", None)
        forget_pair()
    roles = layout.further_or_stop(lambda: data.answer(controls), overview)
    usual = first_choice(of_model, roles, None)
    if named is None:
        url_state.say_unknown(url_state.RECIPE, [plain(name) for run in of_model for name in (run.recipe, run.name)])
    first = named or first_choice(of_model, roles, st.query_params.get(url_state.RECIPE))
    chosen = url_state.by_id(places[1], "Run (newest first)", labels(of_model), "run", first=first)
    if chosen and earlier and chosen != earlier:
        forget_pair()
    if chosen and not unedited(runs[chosen].recipe):
        # The run that a page opens on by itself filters no other page.
        url_state.put(url_state.RECIPE, [plain(runs[chosen].recipe)], travels=chosen != usual)
    return chosen


def forget_pair() -> None:
    """Drop the two runs of an older link, once something else is chosen."""
    for key in ("a", "b"):
        st.query_params.pop(key, None)
