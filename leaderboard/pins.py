"""Pinned baselines: choosing the run that a model's others are measured against, and the record of such choices.

Notable choices: pins are only ever added, each with its reason, and the last one of a model counts. A run may be named by the
beginning of its id or by where it lies, because the table prints folders and the page prints ids.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from leaderboard import queries
from leaderboard.errors import LeaderboardError, UnknownRun
from leaderboard.store import Store, open_store


class Pin(NamedTuple):
    """One choice of a baseline; `current` for the last of its model. `recipe` is None where the run has left the store since."""

    model: str
    run_id: str
    recipe: str | None
    pinned_at: datetime
    reason: str
    current: bool


def pin(database: Path, run: str, reason: str, *, timeout_s: float = 30.0) -> Pin:
    """Make `run` the baseline of its model from now on. Never creates a database.

    Raises `UnknownRun`, `LeaderboardError` for a failed run or an empty reason, and what `open_store` raises.
    """
    if not reason.strip():
        raise LeaderboardError("a pin needs a reason: say in --reason why this run is the baseline")
    with open_store(database, read_only=True, timeout_s=timeout_s) as store:
        run_id = find_run(store, run)
    with open_store(database, read_only=False, timeout_s=timeout_s) as store:
        queries.pin_baseline(store, run_id, reason.strip())
        return next(entry for entry in reversed(_pins(store)) if entry.run_id == run_id)


def pins(database: Path, *, timeout_s: float = 30.0) -> list[Pin]:
    """All pins, earliest first. Raises what `open_store` raises."""
    with open_store(database, read_only=True, timeout_s=timeout_s) as store:
        return _pins(store)


def find_run(store: Store, run: str) -> str:
    """The id of the run that `run` names: its folder or results file, or the beginning of its id. Raises `UnknownRun`."""
    place = Path(run)
    if not run or not place.exists():
        return str(queries.run_details(store, run)["run_id"])
    where = place.resolve()
    found = [row.run_id for row in queries.runs(store) if where in (Path(row.path).resolve(), Path(row.path).resolve().parent)]
    if len(found) != 1:
        raise UnknownRun(f"{run} holds {len(found) or 'no'} runs of this leaderboard: name one run's folder or results file, or its id")
    return found[0]


def _pins(store: Store) -> list[Pin]:
    rows = store.rows(
        "SELECT coalesce(v.model_name, b.model_key) AS model, b.run_id, v.recipe_label AS recipe, b.pinned_at, b.reason, "
        "b.rowid = last_value(b.rowid) OVER (PARTITION BY b.model_key ORDER BY b.pinned_at, b.rowid "
        "ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS current "
        "FROM baselines b LEFT JOIN runs r USING (run_id) LEFT JOIN variants v USING (variant_id) ORDER BY b.pinned_at, b.rowid"
    )
    return [Pin(**row) for row in rows]
