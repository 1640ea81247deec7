"""Runs that a store holds under the id that an earlier version gave them.

Results without samples have had too little in their id, so that several experiments shared one and the first of them
was kept. Read again, that one gives up its rows for those of its present id, and what was decided of it (pins,
blessings, deletions, gates) follows; the others are new. Which of them the stored one is follows from its place: the
same path, or, where nothing lies at the stored path any more, a folder and a file of the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from leaderboard.readers.records import Run
from leaderboard.readers.safe_json import clean
from leaderboard.store.database import Store
from leaderboard.store.rows import remove_runs

_DECISIONS = (("baselines", "run_id"), ("blessings", "run_id"), ("deletions", "run_id"), ("gate_runs", "candidate"))


def carry_over(store: Store, runs: Sequence[Run]) -> set[str]:
    """Take the rows of these runs' former ids out, inside the caller's transaction, and move what was decided of them.
    Returns the present ids of those that were held, whose rows are still to be inserted.
    """
    former = {run.former_id for run in runs if run.former_id}
    if not former:
        return set()
    held = _places(store, "SELECT run_id, path FROM runs WHERE run_id IN (SELECT unnest(?))", former)
    deleted = _places(
        store,
        "SELECT run_id, arg_max(path, rowid) AS path FROM deletions WHERE run_id IN (SELECT unnest(?)) GROUP BY run_id"
        " HAVING arg_max(deleted, rowid)",
        former,
    )
    names = present_ids([(run.former_id, run.run_id, run.path) for run in runs if run.former_id], {**deleted, **held})
    for old, new in names.items():
        for table, column in _DECISIONS:
            store.connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", [new, old])
    remove_runs(store, [old for old in names if old in held])
    return {new for old, new in names.items() if old in held}


def stored_names(store: Store, held: Mapping[str, str]) -> dict[str, str]:
    """Former id -> present id of the store's runs. held: former id -> where the run lay that had it."""
    rows = store.rows("SELECT former_id, run_id, path FROM runs WHERE former_id IS NOT NULL ORDER BY run_id")
    return present_ids([(row["former_id"], row["run_id"], Path(row["path"])) for row in rows], held)


def present_ids(runs: Iterable[tuple[str, str, Path]], held: Mapping[str, str]) -> dict[str, str]:
    """Former id -> present id, of (former id, present id, place) of runs, as far as the places agree."""
    here: dict[str, str] = {}
    moved: dict[str, str] = {}
    for former, present, path in runs:
        place = held.get(former)
        if place is None:
            continue
        if place == clean(str(path)):
            here[former] = present
        elif Path(place).parts[-2:] == path.parts[-2:] and not Path(place).exists():
            moved.setdefault(former, present)
    return moved | here


def _places(store: Store, sql: str, former: set[str]) -> dict[str, str]:
    return {row["run_id"]: row["path"] for row in store.rows(sql, [sorted(former)])}
