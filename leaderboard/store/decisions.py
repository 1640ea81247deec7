"""Pins, blessings, gates and deletions: rows of the store and files beside it, kept the same.

Notable choices:
- A decision's row and file come about in one transaction, the file last: a kill leaves both, none, or a file that the
  next writer takes in. Every decision has an id, so none is taken in twice.
- The later of two decisions is the one with the higher sequence number, one more than all before it under the writers'
  lock: a clock may be wrong. Rows are kept in that order, so that readers go by `rowid`.
- Every writer looks first whether store and files hold the same: a store that is new, or older than the files, gets
  what it lacks; files are written for decisions of stores that had none.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from leaderboard.errors import Unreadable, Unwritable
from leaderboard.readers.safe_json import canonical, clean
from leaderboard.store import decision_files
from leaderboard.store.decision_files import KINDS, LAST_SEQUENCE, DecisionName, RecordedDecision, folder_of
from leaderboard.store.places import RunPlaces
from leaderboard.store.rows import remove_runs

if TYPE_CHECKING:
    import duckdb

    from leaderboard.store.database import Store

SCHEMA = 7
"""The first schema in which decisions have ids and numbers."""
_KEYED = {"baselines": "run_id", "blessings": "run_id", "deletions": "run_id", "gate_runs": "candidate"}
_log = logging.getLogger("leaderboard")


@contextmanager
def recording(store: Store, kind: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Record a decision in one transaction with what the block changes. values: by column of the kind's table.

    Raises `Unwritable` where the file cannot be written; then nothing was changed.
    """
    written: list[Path] = []
    folder = None if store.path is None else folder_of(store.path)
    try:
        with store.transaction():
            taken = [0] if folder is None else [name.sequence for name in decision_files.names(folder).values()]
            sequence = max([_last_sequence(store), *taken]) + 1
            if sequence > LAST_SEQUENCE:
                raise Unwritable(
                    f"{folder} holds decision number {LAST_SEQUENCE}, and none can follow: remove it there"
                )
            decision = RecordedDecision(kind, uuid4().hex, sequence, _cleaned(values))
            _insert(store, kind, [decision])
            yield
            if folder is not None:
                written = decision_files.write(folder, [decision])
    except BaseException:
        decision_files.remove(written)
        raise


def record(store: Store, kind: str, values: Mapping[str, Any]) -> None:
    """Record a decision by itself. Raises what `recording` raises."""
    with recording(store, kind, values):
        pass


def synchronize(store: Store, database: Path) -> None:
    """Give the store the decisions that only the files hold, and the files those that only the store holds. For
    writers that hold the lock. database: whose decisions these are.

    What is wrong with a file is logged; it is left out and left alone. Raises `Unwritable`.
    """
    folder = folder_of(database)
    present = decision_files.names(folder)
    stored = _stored_ids(store)
    if None not in stored and stored == present.keys():
        return
    written: list[Path] = []
    try:
        with store.transaction():
            if None in stored:
                _number(store, present)
            held = _decisions(store)
            lacking = [decision for decision in held if decision.decision_id not in present]
            if lacking:
                written = decision_files.write(folder, lacking)
            known = {decision.decision_id for decision in held}
            _take_in(store, [name for decision_id, name in present.items() if decision_id not in known])
    except BaseException:
        decision_files.remove(written)
        raise


def salvage(connection: duckdb.DuckDBPyConnection, database: Path) -> None:
    """Write files for the decisions that can still be read of a store that cannot be used, where there are none yet.
    Raises `Unwritable`.
    """
    folder = folder_of(database)
    present = decision_files.names(folder)
    rows = {kind: _readable_rows(connection, kind) for kind in KINDS}
    found = [
        RecordedDecision(
            kind, row["decision_id"], row["sequence"] or 0, {name: row.get(name) for name in KINDS[kind].columns}
        )
        for kind, row in _with_ids(rows)
    ]
    last = max([0, *(name.sequence for name in present.values()), *(decision.sequence for decision in found)])
    fresh = [decision for decision in found if decision.decision_id not in present]
    numbered = []
    for decision in fresh:
        if not decision.sequence:
            last += 1
        numbered.append(decision._replace(sequence=decision.sequence or last))
    if numbered:
        decision_files.write(folder, numbered)


def follow(store: Store, renamed: Mapping[str, str]) -> None:
    """Let decisions about runs whose ids have changed (former id -> id) speak of the new ones. Inside the caller's
    transaction; the files keep what was decided, and a store made of them is to be told again.
    """
    for table, column in _KEYED.items():
        for former, run_id in renamed.items():
            store.connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", [run_id, former])


def remove_run(store: Store, run_id: str) -> None:
    """Forget the rows of a run and all that followed from it. Inside the caller's transaction."""
    remove_runs(store, [run_id])
    store.connection.execute("DELETE FROM variants WHERE variant_id NOT IN (SELECT variant_id FROM runs)")
    store.connection.execute("DELETE FROM docs WHERE doc_key NOT IN (SELECT doc_key FROM samples)")


def _cleaned(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: clean(value) if isinstance(value, str) else value for name, value in values.items()}


def _stored_ids(store: Store) -> set[str | None]:
    ids = " UNION ALL ".join(f"SELECT decision_id FROM {kind.table}" for kind in KINDS.values())
    return {row[0] for row in store.connection.execute(ids).fetchall()}


def _last_sequence(store: Store) -> int:
    most = ", ".join(f"(SELECT max(sequence) FROM {kind.table})" for kind in KINDS.values())
    ((last,),) = store.connection.execute(f"SELECT greatest(0, {most})").fetchall()
    return int(last)


def _decisions(store: Store) -> list[RecordedDecision]:
    """All that the store holds, which have ids and numbers."""
    return [
        RecordedDecision(kind, row["decision_id"], row["sequence"], {name: row[name] for name in columns})
        for kind, (table, columns) in KINDS.items()
        for row in store.rows(f"SELECT * FROM {table} ORDER BY rowid")
    ]


def _insert(store: Store, kind: str, decisions: Sequence[RecordedDecision]) -> None:
    table, columns = KINDS[kind]
    rows: dict[str, list[Any]] = {name: [decision.values[name] for decision in decisions] for name in columns}
    rows |= {"decision_id": [decision.decision_id for decision in decisions]}
    store.insert(table, rows | {"sequence": [decision.sequence for decision in decisions]})


def _number(store: Store, present: Mapping[str, DecisionName]) -> None:
    """Give ids and numbers to the decisions of a store of an earlier version, and pins the place of their run."""
    rows = {
        kind: store.rows(f"SELECT rowid AS number, * FROM {table} WHERE decision_id IS NULL ORDER BY rowid")
        for kind, (table, _) in KINDS.items()
    }
    places = {row["run_id"]: row["path"] for row in store.rows("SELECT run_id, path FROM runs")}
    last = max([_last_sequence(store), *(name.sequence for name in present.values())])
    for kind, row in _with_ids(rows):
        known = present.get(row["decision_id"])
        last += known is None
        changed = {"decision_id": row["decision_id"], "sequence": last if known is None else known.sequence}
        if kind in ("pin", "blessing"):
            changed["path"] = places.get(row["run_id"])
        setting = ", ".join(f"{name} = ?" for name in changed)
        store.connection.execute(
            f"UPDATE {KINDS[kind].table} SET {setting} WHERE rowid = ?", [*changed.values(), row["number"]]
        )


def _with_ids(rows: Mapping[str, Sequence[dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, row) with an id for each that has none, which follows from what it says: each kind in its own order, and
    between kinds by time.
    """
    merged = heapq.merge(
        *([(row[_time_of(kind)], kind, row) for row in of_kind] for kind, of_kind in rows.items()),
        key=lambda item: str(item[0]),
    )
    seen: Counter[str] = Counter()
    for _, kind, row in merged:
        said = canonical([kind, {name: str(row.get(name)) for name in KINDS[kind].columns if name != "path"}])
        repeated = seen[said]
        seen[said] += 1
        made = hashlib.sha256(f"{said} {repeated}".encode()).hexdigest()[:32]
        yield kind, row | {"decision_id": row.get("decision_id") or made, "sequence": row.get("sequence")}


def _time_of(kind: str) -> str:
    return next(name for name, what in KINDS[kind].columns.items() if what == "time")


def _readable_rows(connection: duckdb.DuckDBPyConnection, kind: str) -> list[dict[str, Any]]:
    import duckdb

    table, columns = KINDS[kind]
    with suppress(duckdb.Error):
        cursor = connection.execute(f"SELECT * FROM {table} ORDER BY rowid")
        names = [column[0] for column in cursor.description or ()]
        rows = [dict(zip(names, row)) for row in cursor.fetchall()]
        needed = [name for name, what in columns.items() if not what.endswith("?")]
        return [row for row in rows if all(row.get(name) is not None for name in needed)]
    return []


def _take_in(store: Store, lacking: Iterable[DecisionName]) -> None:
    found: dict[str, list[RecordedDecision]] = {kind: [] for kind in KINDS}
    for name in lacking:
        try:
            found[name.kind].append(decision_files.read(name))
        except Unreadable as error:
            _say(f"{name.path.parent}: {error}; this decision is left out")
    for kind, decisions in found.items():
        if decisions:
            _merge(store, kind, decisions)
    for run_id in {str(decision.values["run_id"]) for decision in found["deletion"]}:
        (last,) = store.rows("SELECT last(deleted ORDER BY rowid) AS deleted FROM deletions WHERE run_id = ?", [run_id])
        if last["deleted"] and store.rows("SELECT 1 FROM runs WHERE run_id = ?", [run_id]):
            remove_run(store, run_id)


def _merge(store: Store, kind: str, decisions: Sequence[RecordedDecision]) -> None:
    """Insert decisions in their order; one that belongs before others has the rows written anew."""
    table = KINDS[kind].table
    earlier = [decision for decision in _decisions(store) if decision.kind == kind]
    if earlier and max(decision.sequence for decision in earlier) >= min(decision.sequence for decision in decisions):
        store.connection.execute(f"DELETE FROM {table}")
        decisions = [*earlier, *decisions]
    _insert(store, kind, sorted(decisions, key=lambda decision: (decision.sequence, decision.decision_id)))


@cache
def _say(message: str) -> None:
    """Log a message once in a process."""
    _log.warning(message)


def relative_paths(store: Store, places: RunPlaces) -> None:
    """Rewrite the absolute paths of a store of an earlier version that lie below its folder."""
    for table in ("runs", "ingest_log", "deletions"):
        start = f"{str(places.folder).rstrip('/')}/"
        store.connection.execute(
            f"UPDATE {table} SET path = substr(path, ?) WHERE starts_with(path, ?)", [len(start) + 1, start]
        )
