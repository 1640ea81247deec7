"""One run: its verdicts, the command that made it, its receipt, settings, versions and files. Its URL ends in `?run=<id>`."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from leaderboard.app import data, frame
from leaderboard.errors import LeaderboardError, UnknownRun
from leaderboard.wording import counted, number, percent, plain


def main() -> None:
    """Draw the page."""
    snapshot = frame.snapshot_or_stop()
    wanted = str(st.query_params.get("run", ""))
    st.page_link("app_pages/board.py", label="Back to the leaderboard", icon=":material/arrow_back:")
    if not wanted:
        choose(snapshot)
        return
    try:
        details = data.details(wanted)
    except UnknownRun as error:
        st.header("No such run", anchor=False)
        st.text(str(error))
        choose(snapshot)
        return
    except LeaderboardError as error:
        frame.explain_error(error)
        return
    show(details, snapshot)


def choose(snapshot: data.Snapshot) -> None:
    """A list of runs to pick from."""
    st.subheader("Choose a run", anchor=False)
    labels = {cell.run_id: f"{plain(cell.model)}: {plain(cell.recipe)} ({cell.run_id[:8]})" for cell in snapshot.cells}
    picked = st.selectbox("Run", sorted(labels, key=labels.__getitem__), index=None, format_func=labels.__getitem__, label_visibility="collapsed")
    if picked:
        st.switch_page("app_pages/run.py", query_params={"run": picked})


def show(details: data.Details, snapshot: data.Snapshot) -> None:
    """All sections of one run."""
    run = details.run
    st.title("Run", anchor=False)
    st.text(f"{plain(run['recipe_label'])} on {plain(run['model_name'])}")
    if run["recipe_summary"]:
        st.text(plain(run["recipe_summary"]))
    if run["status"] == "failed":
        st.error("This run failed.", icon=":material/error:")
        st.code("\n".join(filter(None, [run["failure_kind"], run["failure_reason"], run["failure_where"]])), language=None, wrap_lines=True)
    cells = [cell for cell in snapshot.cells if cell.run_id == run["run_id"]]
    if cells:
        st.dataframe(frame.tinted(frame.cell_rows(cells, with_model=False), ["Verdict"]), hide_index=True, width="stretch", key="verdicts")
    for warning in json.loads(run["warnings"] or "[]"):
        st.text(f"warning: {plain(warning)}")
    show_command(run)
    show_receipt(details)
    show_facts(run)
    show_scores(details)


def show_command(run: dict[str, Any]) -> None:
    """The command line, and where its files lie."""
    import shlex

    st.subheader("Command", anchor=False)
    words = json.loads(run["command"] or "[]")
    st.code(plain(shlex.join(map(str, words))) if words else "not recorded: these results came from plain lm_eval", language=None, wrap_lines=True)
    st.subheader("Files", anchor=False)
    st.code("\n".join([plain(run["path"]), *(f"  {plain(name)}" for name in json.loads(run["files"] or "[]"))]), language=None, wrap_lines=True)


def show_receipt(details: data.Details) -> None:
    """What was done to which matrix."""
    st.subheader("Receipt", anchor=False)
    run = details.run
    before, after = run["parameters_before"], run["parameters_after"]
    if before and after:
        st.text(f"{before:,} parameters before, {after:,} after ({percent(after / before)} kept when stored as factors); {counted(len(details.matrices), 'matrix', 'matrices')} edited")
    if details.matrices:
        st.dataframe([_matrix(row) for row in details.matrices], hide_index=True, width="stretch", key="matrices")
    else:
        st.text("No matrix was edited.")
    if details.calibrations:
        st.caption("Calibrated on")
        st.dataframe([_plain_row(row) for row in details.calibrations], hide_index=True, width="stretch", key="calibrations")


def _matrix(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "Step": row["step"],
        "Method": plain(row["method"] or ""),
        "Matrix": plain(row["name"]) + (f" [{plain(row['part'])}]" if row["part"] else ""),
        "Shape": row["shape"],
        "Rank": f"{row['rank_before']} -> {row['rank_after']}",
        "Energy kept": percent(row["energy_kept"]),
        "Relative error": number(row["relative_error"]),
        "Seconds": None if row["seconds"] is None else round(row["seconds"], 4),
        "Role": plain(row["role"] or ""),
        "Layer": row["layer"],
        "Digest before": plain(row["digest_before"] or "")[:12],
        "Digest after": plain(row["digest_after"] or "")[:12],
    }


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name.capitalize(): plain(value) if isinstance(value, str) else value for name, value in row.items()}


def show_facts(run: dict[str, Any]) -> None:
    """Versions, identities and settings."""
    left, right = st.columns(2)
    with left:
        st.subheader("Versions and machine", anchor=False)
        versions = json.loads(run["versions"] or "{}")
        named = {"lm_eval": run["lm_eval_version"], "transformers": run["transformers_version"], "torch": run["torch_version"]} | versions
        machine = {name: run[name] for name in ("backend", "device", "dtype", "batch_size", "started", "finished")}
        frame.facts_table(named | machine | {f"seconds: {k}": round(v, 2) for k, v in _numbers(run["seconds"]).items()})
    with right:
        st.subheader("Identity", anchor=False)
        names = ("run_id", "spec_id", "settings_id", "variant_id", "recipe_id", "recipe_source", "control", "control_of")
        model = ("pretrained", "revision", "identity", "model_type", "digest_before", "digest_after")
        frame.facts_table({name: run[name] for name in (*names, *model)})
    for title, column in (("Recipe, fully resolved", "recipe_resolved"), ("Settings", "settings"), ("Totals", "totals"), ("Seeds", "seeds")):
        if run[column]:
            with st.expander(title):
                st.code(json.dumps(json.loads(run[column]), indent=2, ensure_ascii=False), language="json")


def _numbers(text: str | None) -> dict[str, float]:
    return {str(k): float(v) for k, v in json.loads(text or "{}").items() if isinstance(v, (int, float))}


def show_scores(details: data.Details) -> None:
    """All metrics as lm-eval reported them."""
    if details.scores:
        st.subheader("All scores", anchor=False)
        rows = [
            {"Task": plain(r["task"]), "Metric": plain(r["metric"]), "Filter": plain(r["filter"]), "Score": r["score"], "Reported": plain(r["reported"]), "Std. error": r["stderr"]}
            for r in details.scores
        ]
        st.dataframe(rows, hide_index=True, width="stretch", key="scores")


main()
