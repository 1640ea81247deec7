"""How far the sweeps are whose results lie beside the database: what is done, running, failed and waiting, and why.

It reads the files that drivers and cells leave, not the database, so that a sweep shows before its first run is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import streamlit as st

from leaderboard.app import data, layout, url_state
from leaderboard.app.download import downloads
from leaderboard.readers.sweep_life import HeartbeatWatch
from leaderboard.readers.sweep_state import State, SweepState, rows, sweep_folders, sweep_state
from leaderboard.terminal.format import counted, plain

MOST_ROWS = 2000
_STATES: tuple[State, ...] = get_args(State)


def main() -> None:
    """Draw the page."""
    st.title("Sweeps", anchor=False)
    if place := data.published():
        st.text(f"The state of a sweep is in its files, and not in the board published at {place}. Where they are:")
        st.code("lm_eval sweep status sweep.yaml", language=None)
        return
    folders = {folder.name: folder for folder in sweep_folders(data.database().parent)}
    if not folders:
        st.text(f"No sweep has its results in {data.database().parent}. To plan and run one:")
        st.code("lm_eval sweep plan sweep.yaml\nlm_eval sweep run sweep.yaml", language=None)
        return
    places = st.columns([2, 3])
    name = url_state.one_of(places[0], "Sweep", sorted(folders), "sweep")
    wanted = url_state.any_of(places[1], "States", list(_STATES), "state", placeholder="All states")
    _follow(folders[name], [state for state in _STATES if state in wanted] or list(_STATES))


@st.fragment(run_every=layout.REFRESH_SECONDS)
def _follow(folder: Path, wanted: Sequence[State]) -> None:
    """The sweep as it is now, again and again."""
    found = sweep_state(folder, st.session_state.setdefault("heartbeats", HeartbeatWatch()))
    if found is None:
        st.text(f"The plan in {folder} cannot be read: `lm_eval sweep run` writes it anew.")
        return
    st.progress(found.count("done") / len(found.cells) if found.cells else 1.0)
    st.text(sentence(found))
    for left_out in found.not_made:
        st.text(plain(f"Control not made: {left_out}"))
    table = [
        {key: plain(str(value)) if isinstance(value, str) else value for key, value in row.items()}
        for row in rows(found, wanted)
    ]
    if table:
        st.dataframe(
            [_shown(row) for row in table[:MOST_ROWS]],
            column_config={"Seconds": st.column_config.NumberColumn(format="%.1f")},
            hide_index=True,
            placeholder="",
            width="stretch",
            key="cells",
        )
        if len(table) > MOST_ROWS:
            st.caption(f"The first {MOST_ROWS:,} of {len(table):,} cells; the download has all.")
        downloads(table, f"sweep-{found.name}")


def sentence(found: SweepState) -> str:
    """How far a sweep is, in words."""
    left = found.seconds_left
    unsettled = found.count("running") + found.count("lost") + found.count("waiting") - found.blocked
    time_left = f" About {duration(left)} left, at the pace so far." if left is not None and unsettled else ""
    if found.driver:
        driver = f" Driven by {plain(found.driver)}."
    elif found.dead:
        driver = f" Its driver, {plain(found.dead)}: start `lm_eval sweep run FILE` again."
    else:
        driver = " No driver watches it: `lm_eval sweep run FILE` goes on." if unsettled else ""
        driver = driver or (
            " `lm_eval sweep retry FILE` runs what failed, and what waits for it." if found.blocked else ""
        )
    return f"{found.summary}.{time_left}{driver}"


def duration(seconds: float) -> str:
    """`4 minutes`, `2.5 hours`: as exact as an estimate deserves."""
    if seconds < 5400:
        return counted(max(1, round(seconds / 60)), "minute", "minutes")
    return f"{seconds / 3600:.1f} hours"


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "State": row["state"],
        "Model": row["model"],
        "Recipes": plain(", ".join(row["recipes"])),
        "Why": row["reason"],
        "Host": row["host"],
        "Tries": row["tries"],
        "Seconds": row["seconds"],
        "Cell": row["cell"],
        "Output": row["log"],
    }


main()
