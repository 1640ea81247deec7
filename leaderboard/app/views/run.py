"""One run: its verdicts, and everything to make it again: command, versions, seeds, recipe, receipt, files. Its URL
ends in `?run=<id>`.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import streamlit as st

from leaderboard.app import data, html_table, layout, linked_table, receipt_view, run_choice, run_files
from leaderboard.app.download import downloads
from leaderboard.app.menu import ACROSS, BOARD, COMPARE, FLIPS, HISTORY, LAYERS
from leaderboard.app.own_command import is_own, own_command
from leaderboard.board.further import all_metrics
from leaderboard.board.layers import edits
from leaderboard.errors import Busy, DeletedRun, LeaderboardError
from leaderboard.readers.asked import revision_of
from leaderboard.readers.ran_on import RanOn
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import plain


def main() -> None:
    """Draw the page."""
    first = layout.overview_or_stop()
    wanted = str(st.query_params.get("run", ""))
    if wanted and not any(name.startswith(wanted) for name in first.value.runs):
        st.query_params.pop("run", None)
        say_unknown(wanted)
        return
    chosen = run_choice.choose(first, st.columns([2, 5]))
    if chosen is None:
        return
    try:
        details = data.details(chosen)
    except LeaderboardError as error:
        layout.explain_error(error)
        if isinstance(error, Busy):
            layout.watch(object())
        return
    show(details, first)


def say_unknown(wanted: str) -> None:
    """That a link names no run, or one that was taken off the board, and where there are some."""
    try:
        data.details(wanted)
    except LeaderboardError as error:
        st.header("Taken off the board" if isinstance(error, DeletedRun) else "No such run", anchor=False)
        st.text(plain(str(error)))
    st.page_link(BOARD.script, label="To the leaderboard", icon=BOARD.icon)


def show(details: data.Details, first: data.Answer[data.Overview]) -> None:
    """All sections of one run."""
    run = details.run
    html_table.show(html_table.name(first.value.runs[run["run_id"]].name or run["recipe_label"]))
    st.text(f"{plain(run['recipe_label'])} on {plain(run['model_name'])}")
    left, right = st.columns([2, 5])
    for place, title, text in ((left, "Run", run["run_id"]), (right, "Folder", data.place_of(run["path"]))):
        place.caption(title)
        place.code(plain(str(text)), language=None, wrap_lines=True)
    if run["recipe_summary"]:
        st.text(plain(run["recipe_summary"]))
    if run["status"] == "failed":
        st.error("This run failed.", icon=":material/error:")
        st.code(
            "\n".join(filter(None, [run["failure_kind"], run["failure_reason"], run["failure_where"]])),
            language=None,
            wrap_lines=True,
        )
    cells = [cell for cell in linked_table.cells_of([run["model_key"]], first) if cell.run_id == run["run_id"]]
    if cells:
        rows = [
            {"Task": row["Task"], "Metric": row["Metric"]} | {name: row[name] for name in row if name != "Recipe"}
            for row in layout.cell_rows(list(all_metrics(cells)), with_model=False)
        ]
        st.dataframe(layout.tinted(rows, ["Verdict"]), hide_index=True, placeholder="", width="stretch", key="verdicts")
        downloads(rows, "verdicts")
    for warning in json.loads(run["warnings"] or "[]"):
        st.text(f"warning: {plain(warning)}")
    show_links(run, [cell.task for cell in cells])
    show_command(run)
    show_files(run)
    own = [edit for edit in layout.further_or_stop(lambda: data.answer(edits), first) if edit.run_id == run["run_id"]]
    receipt_view.show(details, own, run_files.receipt_of(run))
    show_facts(run)
    show_scores(details)


def show_links(run: dict[str, Any], tasks: list[str]) -> None:
    """Where else this run is to be seen."""
    edited = run["origin"] == "recipe" and run["recipe_name"] != "baseline"
    with st.container(horizontal=True):
        if tasks and edited:
            here = {"run": run["run_id"], "model": st.query_params.get("model", "")}
            st.page_link(COMPARE.script, label="Compare it", icon=COMPARE.icon, query_params=here)
            st.page_link(FLIPS.script, label="Its flips", icon=FLIPS.icon, query_params=here)
        if tasks:
            st.page_link(
                HISTORY.script,
                label="Its history",
                icon=HISTORY.icon,
                query_params={
                    "model": plain(run["model_name"]),
                    "recipe": plain(run["recipe_label"]),
                    "task": plain(tasks[0]),
                },
            )
        if tasks and edited:
            st.page_link(
                ACROSS.script,
                label="Its recipe on other models",
                icon=ACROSS.icon,
                query_params={"task": plain(tasks[0]), "recipe": plain(run["recipe_label"]), "least": "1"},
            )
            st.page_link(LAYERS.script, label="Its layers among others", icon=LAYERS.icon)


def show_command(run: dict[str, Any]) -> None:
    """What to type for this run alone, and with which versions installed."""
    st.subheader("Command", anchor=False)
    words = [str(word) for word in json.loads(run["command"] or "[]")]
    if not words:
        scored_by = "plain lm_eval" if run["origin"] in ("recipe", "plain") else run["origin"]
        st.code(f"not recorded: these results came from {scored_by}", language=None, wrap_lines=True)
    else:
        show_own_command(run, words)
    needed = run_files.requirements(_versions(run))
    if needed:
        st.caption("With these versions, as lines for pip")
        st.code("\n".join(map(plain, needed)), language=None)
    seeds = _mapping(run["seeds"])
    if seeds:
        st.caption("Seeds")
        st.text(", ".join(f"{plain(name)} {plain(str(value))}" for name, value in seeds.items()))
    if run["digest_after"] and words:
        st.caption("The weights that were scored have the digest")
        st.code(plain(run["digest_after"]), language=None, wrap_lines=True)


def show_own_command(run: dict[str, Any], words: list[str]) -> None:
    """The command that makes this run alone, and folded the one that made it among others."""
    if len(words) == 1:
        st.code(plain(words[0]), language=None, wrap_lines=True)
        st.caption("The call from Python that made it, and what it asked for beside it.")
        return
    own = own_command(words, run["recipe_label"], run["control"])
    st.code(_typed(words if own is None else own), language=None, wrap_lines=True)
    if own is None:
        st.caption("The command as it was typed; which of its recipes made this run cannot be told from it.")
    elif not is_own(words, own):
        also = "the unedited model and the recipe" if run["control"] else "the unedited model"
        st.caption("Makes this run alone" + ("." if run["recipe_name"] == BASELINE else f", and {also} beside it."))
        with st.expander("The whole command that made it, among other runs"):
            st.code(_typed(words), language=None, wrap_lines=True)


def _typed(words: list[str]) -> str:
    return plain(shlex.join(words))


def show_files(run: dict[str, Any]) -> None:
    """Where its files lie, and which of them are still there."""
    st.subheader("Files", anchor=False)
    files = run_files.files_of(run)
    st.code(
        "\n".join(
            [plain(data.place_of(run["path"])), *(f"  {plain(file.name)}  ({_size(file.size)})" for file in files)]
        ),
        language=None,
        wrap_lines=True,
    )
    gone = sum(file.size is None for file in files)
    if gone:
        st.caption(f"{gone} of {len(files)} are not on this machine, or have been moved since they were taken in.")


def _size(size: int | None) -> str:
    return "not there" if size is None else f"{size:,} bytes"


def show_facts(run: dict[str, Any]) -> None:
    """Versions, identities and settings."""
    left, right = st.columns(2)
    with left:
        st.subheader("Versions and machine", anchor=False)
        machine = {name: run[name] for name in ("backend", "device", "dtype", "batch_size", "started", "finished")}
        machine |= {name: run[name] for name in RanOn._fields}
        layout.facts_table(
            _versions(run) | machine | {f"seconds: {k}": round(v, 2) for k, v in _numbers(run["seconds"]).items()}
        )
    with right:
        st.subheader("Identity", anchor=False)
        names = (
            "run_id",
            "spec_id",
            "settings_id",
            "variant_id",
            "recipe_id",
            "recipe_source",
            "control",
            "control_of",
        )
        model = ("pretrained", "revision", "identity", "model_type", "digest_before", "digest_after")
        revision = {"revision of its methods": revision_of(run["asked"])} if run["recipe_id"] else {}
        layout.facts_table({name: run[name] for name in names} | revision | {name: run[name] for name in model})
    for title, column in (
        ("Recipe, fully resolved", "recipe_resolved"),
        ("Settings", "settings"),
        ("Totals", "totals"),
    ):
        if run[column]:
            with st.expander(title):
                st.code(json.dumps(json.loads(run[column]), indent=2, ensure_ascii=False), language="json")


def _versions(run: dict[str, Any]) -> dict[str, Any]:
    named = {
        "lm_eval": run["lm_eval_version"],
        "transformers": run["transformers_version"],
        "torch": run["torch_version"],
    }
    return {name: value for name, value in (named | _mapping(run["versions"])).items() if value}


def _mapping(text: str | None) -> dict[str, Any]:
    value = json.loads(text or "{}")
    return value if isinstance(value, dict) else {}


def _numbers(text: str | None) -> dict[str, float]:
    return {str(k): float(v) for k, v in _mapping(text).items() if isinstance(v, (int, float))}


def show_scores(details: data.Details) -> None:
    """All metrics as lm-eval reported them."""
    if details.scores:
        st.subheader("All scores", anchor=False)
        rows = [
            {
                "Task": plain(r["task"]),
                "Metric": plain(r["metric"]),
                "Filter": plain(r["filter"]),
                "Score": r["score"],
                "Reported": plain(r["reported"]),
                "Std. error": r["stderr"],
            }
            for r in details.scores
        ]
        st.dataframe(rows, hide_index=True, placeholder="", width="stretch", key="scores")
        downloads(details.scores, "scores")


main()
