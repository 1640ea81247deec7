"""Chosen runs: the unedited run that a model's others are measured against (pinned), and the run that later ones of its
recipe are gated against (blessed).

Notable choices: choices are only ever added, each with its reason, and the last one of a model, or of a model and
recipe, counts. Which of the two a choice is follows from the run: an unedited one is pinned, an edited one is blessed,
and only `as_base` makes an edited one its model's baseline. A run is named as `naming` says.
"""

from __future__ import annotations

import heapq
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from leaderboard.errors import LeaderboardError
from leaderboard.readers.records import BASELINE
from leaderboard.store import decisions, queries
from leaderboard.store.database import Store, open_store
from leaderboard.store.naming import find_run
from leaderboard.store.writer import now


class Pin(NamedTuple):
    """One choice of a run; `current` for the last of its model, or of its model and recipe where it is `blessed`.
    `recipe` is None where a pinned run has left the store since.
    """

    model: str
    run_id: str
    recipe: str | None
    pinned_at: datetime
    reason: str
    current: bool
    blessed: bool = False


def choose(database: Path, run: str, reason: str, *, as_base: bool = False, timeout_s: float = 30.0) -> Pin:
    """Pin an unedited run, bless an edited one. Never creates a database.

    Raises `UnknownRun`, `LeaderboardError` for a failed run or an empty reason, and what `open_store` raises.
    """
    if not reason.strip():
        raise LeaderboardError("a choice needs a reason: say in --reason why this run")
    with open_store(database, read_only=True, timeout_s=timeout_s) as store:
        row = queries.run_details(store, find_run(store, run))
    unedited = row["recipe_name"] == BASELINE or (row["origin"] != "recipe" and row["edited"] is not True)
    with open_store(database, read_only=False, timeout_s=timeout_s) as store:
        if unedited or as_base:
            queries.pin_baseline(store, row["run_id"], reason.strip())
            return next(entry for entry in reversed(_pins(store)) if entry.run_id == row["run_id"])
        _bless(store, row["run_id"], reason.strip())
        return _blessings(store)[-1]


def pin(database: Path, run: str, reason: str, *, timeout_s: float = 30.0) -> Pin:
    """Make `run`, edited or not, the baseline of its model from now on; as `choose` otherwise."""
    return choose(database, run, reason, as_base=True, timeout_s=timeout_s)


def last_blessing(store: Store, model: str, recipe: str) -> Pin | None:
    """The blessing that counts for a model and recipe, by their names."""
    return next(
        (entry for entry in reversed(_blessings(store)) if (entry.model, entry.recipe) == (model, recipe)), None
    )


def is_blessed(store: Store, run_id: str) -> bool:
    """Whether a run is the blessed one of its model and recipe now."""
    return any(entry.run_id == run_id and entry.current for entry in _blessings(store))


def _bless(store: Store, run_id: str, reason: str) -> None:
    row = queries.run_details(store, run_id)
    if row["status"] != "complete":
        raise LeaderboardError(f"run {run_id} failed and cannot be blessed")
    values = {
        "model_name": row["model_name"],
        "model_key": row["model_key"],
        "recipe_label": row["recipe_label"],
        "run_id": run_id,
        "path": store.places.stored(Path(row["path"])),
        "blessed_at": now(),
        "reason": reason,
    }
    decisions.record(store, "blessing", values)


def _blessings(store: Store) -> list[Pin]:
    rows = store.rows(
        "SELECT model_name AS model, run_id, recipe_label AS recipe, blessed_at AS pinned_at, reason, row_number() OVER"
        " (PARTITION BY model_name, recipe_label ORDER BY rowid DESC) = 1 AS current, true AS blessed"
        " FROM blessings ORDER BY rowid"
    )
    return [Pin(**row) for row in rows]


def pins(database: Path, *, timeout_s: float = 30.0) -> list[Pin]:
    """All pins and blessings, each kind in the order in which they were made. Raises what `open_store` raises."""
    with open_store(database, read_only=True, timeout_s=timeout_s) as store:
        # the clock only puts the two beside each other
        return list(heapq.merge(_pins(store), _blessings(store), key=lambda entry: entry.pinned_at))


def _pins(store: Store) -> list[Pin]:
    rows = store.rows(
        "SELECT coalesce(v.model_name, b.model_key) AS model, b.run_id, v.recipe_label AS recipe, b.pinned_at,"
        " b.reason, b.rowid = last_value(b.rowid) OVER (PARTITION BY b.model_key ORDER BY b.rowid ROWS"
        " BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS current FROM baselines b LEFT JOIN runs r USING"
        " (run_id) LEFT JOIN variants v USING (variant_id) ORDER BY b.rowid"
    )
    return [Pin(**row) for row in rows]
