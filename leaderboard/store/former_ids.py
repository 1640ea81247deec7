"""Runs that a store holds under the id that an earlier version gave them.

Results without samples have had too little in their id, so that several experiments shared one and the first of them
was kept. Read again, that one gives up its rows for those of its present id, and what was decided of it (pins,
blessings, deletions, gates) follows; the others are new. Which of them the stored one is follows from its place: the
same path, or, where nothing lies at the stored path any more, a folder and a file of the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from leaderboard.readers.records import Run
from leaderboard.store import decisions
from leaderboard.store.database import Store
from leaderboard.store.rows import remove_runs

_DECISIONS = ("baselines", "blessings", "deletions")  # tables that name a run and its place


def carry_over(store: Store, runs: Sequence[Run]) -> set[str]:
    """Take the rows of these runs' former ids out, inside the caller's transaction, and move what was decided of them.
    Returns the present ids of those that were held, whose rows are still to be inserted.

    Decisions name the place of their run, so that one which the store has from its file alone follows too.
    """
    former = sorted({run.former_id for run in runs if run.former_id})
    if not former:
        return set()
    held = _places(store, "runs", former)
    decided = {id_: path for table in _DECISIONS for id_, path in _places(store, table, former).items()}
    names = _present_ids(store, runs, {**decided, **held})
    decisions.follow(store, names)
    remove_runs(store, [old for old in names if old in held])
    return {new for old, new in names.items() if old in held}


def _present_ids(store: Store, runs: Iterable[Run], held: Mapping[str, str]) -> dict[str, str]:
    """Former id -> present id of runs, as far as their places agree with those held (former id -> stored path)."""
    here: dict[str, str] = {}
    moved: dict[str, str] = {}
    for run in runs:
        place = held.get(run.former_id or "")
        if place is None or run.former_id is None:
            continue
        where = store.places.resolved(place)
        if where == run.path or place == store.places.stored(run.path):
            here[run.former_id] = run.run_id
        elif where.parts[-2:] == run.path.parts[-2:] and not where.exists():
            moved.setdefault(run.former_id, run.run_id)
    return moved | here


def _places(store: Store, table: str, former: Sequence[str]) -> dict[str, str]:
    """Former id -> the last stored path of those that the table names."""
    rows = store.rows(
        f"SELECT run_id, last(path ORDER BY rowid) AS path FROM {table} WHERE run_id IN (SELECT unnest(?)) AND path IS"
        " NOT NULL GROUP BY run_id",
        [former],
    )
    return {row["run_id"]: row["path"] for row in rows}
