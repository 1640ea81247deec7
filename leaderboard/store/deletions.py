"""Taking a run off the board, and back: the store forgets its rows and remembers that it is not to be ingested again.

Notable choices: its folder is never touched, since files are the truth and may be wanted elsewhere; every deletion has
a reason and stays on record; one that is pinned or blessed must be replaced first.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from leaderboard.commands import advised
from leaderboard.errors import LeaderboardError, UnknownRun
from leaderboard.store import decisions, queries
from leaderboard.store.database import Store, open_store
from leaderboard.store.naming import resolve
from leaderboard.store.pins import is_blessed
from leaderboard.store.writer import now


class Deletion(NamedTuple):
    """One run that is off the board."""

    run_id: str
    path: Path
    logged_at: datetime
    reason: str


def delete(database: Path, run: str, reason: str, *, timeout_s: float = 30.0) -> Deletion:
    """Take a run, named as `naming` says, off the board; of several runs of a recipe it wants the id. Its files stay.

    Raises `UnknownRun`, `LeaderboardError` for an empty reason or a chosen run, and what `open_store` raises.
    """
    if not reason.strip():
        raise LeaderboardError("a deletion needs a reason: say in --reason why this run is taken off the board")
    with open_store(database, read_only=True, timeout_s=timeout_s) as store:
        run_id = resolve(store, run, newest=False).run.run_id
    another = advised(database, "baseline", "set", "RUN", "--reason", "...")
    with open_store(database, read_only=False, timeout_s=timeout_s) as store:
        if run_id in queries.pinned_baselines(store).values():
            raise LeaderboardError(f"{run_id} is the pinned baseline of its model: pin another one first, {another}")
        if is_blessed(store, run_id):
            raise LeaderboardError(
                f"{run_id} is the blessed run of its recipe, which gates compare with: bless another one first,"
                f" {another}"
            )
        path = Path(queries.run_details(store, run_id)["path"])
        with decisions.recording(store, "deletion", _values(store, run_id, path, reason.strip(), deleted=True)):
            decisions.remove_run(store, run_id)
        return next(entry for entry in _deletions(store) if entry.run_id == run_id)


def take_back(database: Path, run: str, *, timeout_s: float = 30.0) -> Deletion:
    """Allow a deleted run, named by its folder or the beginning of its id, to be ingested again. Never creates a
    database. Raises `UnknownRun`, and what `open_store` raises.
    """
    deleted, place = deletions(database, timeout_s=timeout_s), Path(run).resolve()
    with open_store(database, read_only=False, timeout_s=timeout_s) as store:
        found = [entry for entry in deleted if run and entry.run_id.startswith(run)]
        found = found or [entry for entry in deleted if run and entry.path.resolve() == place]
        if len(found) != 1:
            raise UnknownRun(
                f"{run!r} begins the id of {len(found) or 'no'} deleted runs, and none lies there:"
                f" {advised(database, 'runs', 'list', '--deleted')} shows them"
            )
        values = _values(store, found[0].run_id, found[0].path, "taken back", deleted=False)
        decisions.record(store, "deletion", values)
        return found[0]


def deletions(database: Path, *, timeout_s: float = 30.0) -> list[Deletion]:
    """The runs that are off the board now, earliest deletion first. Raises what `open_store` raises."""
    with open_store(database, read_only=True, timeout_s=timeout_s) as store:
        return _deletions(store)


def _deletions(store: Store) -> list[Deletion]:
    return [
        Deletion(row["run_id"], store.places.resolved(row["path"]), row["logged_at"], row["reason"])
        for row in queries.deletions(store)
    ]


def _values(store: Store, run_id: str, path: Path, reason: str, *, deleted: bool) -> dict[str, object]:
    place = store.places.stored(path)
    return {"run_id": run_id, "path": place, "logged_at": now(), "deleted": deleted, "reason": reason}
