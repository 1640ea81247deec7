"""From paths to rows: `ingest` reads runs and puts them into the database, and `--rebuild` makes the database anew.

Notable choices:
- Reading (slow, no lock) and writing (fast, locked) take turns: some runs are read, then written with the file held for
  less than a second, in one transaction, while the next are read. Killed anywhere, the store holds whole runs only.
- What has not changed since an earlier look is not read again (`store.looks`), and is reported as if it were. A rebuild
  reads everything.
- What cannot be read is reported with its reason and stops nothing else. Unedited models go first, so that of two runs
  that contradict each other the edited one is rejected.
- A rebuild writes a new file and renames it into place; it also reads every run directory that the old file knew of.
  What no run directory holds (pins, blessings, gates, deletions) it takes from the files of decisions; an old file
  whose decisions are not there yet is asked for them first, as far as it can be read. The old file is kept, renamed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard import make_callable
from leaderboard.board import stored_verdicts
from leaderboard.board.board import judge_ahead
from leaderboard.commands import ingest_command
from leaderboard.compare import verdict_cache
from leaderboard.errors import (
    ForeignDatabase,
    NewerDatabase,
    NotADatabase,
    Unreadable,
    Unwritable,
)
from leaderboard.judging import judge_outdated
from leaderboard.readers.addresses import local_database
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.orphan_samples import looks_like_samples
from leaderboard.readers.reader import read_runs
from leaderboard.readers.records import Rejection, Run
from leaderboard.readers.safe_json import no_collection
from leaderboard.readers.samples_reader import SamplesReader
from leaderboard.store import decisions, migrations, trouble
from leaderboard.store.database import Store, connect_to_salvage, memory_store, open_for_writing_unlocked, open_store
from leaderboard.store.decision_files import folder_of, names
from leaderboard.store.lock import file_lock
from leaderboard.store.looks import EarlierLook, FoundRun, Looks
from leaderboard.store.places import RunPlaces, file_of
from leaderboard.store.replacement import replace_database
from leaderboard.store.writer import Added, add_runs, log_rejections, note_moves

if TYPE_CHECKING:
    import duckdb

_AHEAD_SECONDS = 5.0  # of judging after an ingest that added runs, or as long as that took
_AGAIN_SECONDS = 2.0  # after one that added none
_REBUILD_AHEAD_SECONDS = 120.0  # nobody waits for the new file
_BATCH_SECONDS = 4.0  # of reading, before the batch is written
# more than the 122,880 rows of a row group: DuckDB writes whole ones at once, and fewer first to its log and then
# again, for three times the work
_BATCH_SAMPLES = 125_000
_BATCH_BYTES = 256 * 2**20  # of samples files, which bounds the memory


@dataclass(frozen=True)
class IngestReport:
    """What became of each run found; `deleted` ones were taken off the board before. `store` is set only when there is
    no file: the caller closes its connection. known: the ids of the duplicates. notes: sentences about a rebuild, or on
    why one is due.
    """

    added: list[str] = field(default_factory=list)
    duplicates: list[Path] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    deleted: list[Path] = field(default_factory=list)
    store: Store | None = None
    known: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def ingest(
    paths: Iterable[Path] | Path, database: Path | None, *, rebuild: bool = False, timeout_s: float = 30.0
) -> IngestReport:
    """Read every run at or under `paths` into `database`; `None` makes a store in memory, returned in the report.

    Ingesting a run twice changes nothing. Raises `Busy`, `NewerDatabase`, `NotADatabase` or `Unwritable` for the
    database; never for what lies under `paths`.
    """
    roots = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if database is None:
        report = IngestReport(store=memory_store())
        assert report.store is not None
        for batch in _batches(_read_all(_in_order(roots, report), report)):
            _add(report.store, batch, report)
        return report
    database = local_database(database)
    if rebuild:
        return _rebuild(roots, database, timeout_s)
    report, started = IngestReport(), time.monotonic()
    with no_collection():
        looks = Looks(database, roots)
        changed = _recall(roots, database, report, looks, timeout_s)
        if changed:
            _read_and_write(changed, database, report, looks, timeout_s)
        _finish(database, report, looks, timeout_s)
    if report.added or report.duplicates:  # the database is there, and up to date
        seconds = max(_AHEAD_SECONDS, time.monotonic() - started) if report.added else _AGAIN_SECONDS
        judge_outdated(database, timeout_s, seconds)
    if report.known:
        report.notes.extend(_of_earlier_versions(roots, database, report.known, timeout_s))
    return report


def _of_earlier_versions(
    roots: Sequence[Path], database: Path, known: Sequence[str], timeout_s: float
) -> Iterator[str]:
    """That some of these runs are there as an earlier version read them: what later ones read of a run is not added to
    a stored one, so that its verdicts can be others than a new file's.
    """
    with open_store(database, timeout_s=timeout_s) as store:
        before = migrations.runs_before_contents(store.connection, known)
    if before:
        command = ingest_command(database, *roots, rebuild=True)
        yield (
            f"taken in by an earlier version, which read less of a run: {before:,} of these. Verdicts may differ from"
            f" those of a new database until `{command}` reads all anew"
        )


def _recall(
    roots: Sequence[Path], database: Path, report: IngestReport, looks: Looks, timeout_s: float
) -> list[Candidate]:
    """What has to be read under the roots. The rest is reported by what is known of it."""
    if database.exists():
        with open_store(database, read_only=False, timeout_s=timeout_s) as store:
            looks.recall(store)
    found = list(_in_order(roots, report, looks.is_samples))
    changed = []
    moved: list[FoundRun] = []
    for candidate, look in zip(found, looks.unchanged(found)):
        if look is None:
            changed.append(candidate)
        else:
            moved += _report_again(candidate, look, report, looks)
    if moved:
        with open_store(database, read_only=False, timeout_s=timeout_s) as store, store.transaction():
            note_moves(store, [(run.run_id, run.path) for run in moved])
    return changed


def _report_again(candidate: Candidate, look: EarlierLook, report: IngestReport, looks: Looks) -> list[FoundRun]:
    """Report what has not changed. Returns the runs that the store knows from other places."""
    moved = []
    if look.reason is not None:
        report.rejected.append(Rejection(candidate.path, look.reason))
    for run in look.runs:
        if run.run_id in looks.present:
            report.duplicates.append(run.path)
            report.known.append(run.run_id)
            if looks.present[run.run_id] != looks.places.stored(run.path):
                moved.append(run)
        elif run.run_id in looks.deleted:
            report.deleted.append(run.path)
        else:
            report.rejected.append(Rejection(run.path, str(run.contradiction)))
    return moved


def _read_and_write(
    candidates: Sequence[Candidate], database: Path, report: IngestReport, looks: Looks, timeout_s: float
) -> None:
    import pyarrow  # noqa: F401 - takes a moment to load, and the database must not wait for it

    # the disk is waited for while the next runs are read
    with ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[None] | None = None
        for batch in _batches(_read_all(candidates, report, looks)):
            if writing is not None:
                writing.result()
            writing = writer.submit(_write, batch, database, report, looks, timeout_s)
        if writing is not None:
            writing.result()


def _write(batch: Sequence[Run], database: Path, report: IngestReport, looks: Looks, timeout_s: float) -> None:
    with open_store(database, read_only=False, timeout_s=timeout_s) as store:
        _add(store, batch, report, looks)
        looks.write(store)


def _finish(database: Path, report: IngestReport, looks: Looks, timeout_s: float) -> None:
    """Keep what was found. Rejections are worth a row only in a store that exists: a mistyped path must not create
    one.
    """
    if database.exists() and (report.rejected or looks.has_news):
        with open_store(database, read_only=False, timeout_s=timeout_s) as store:
            with store.transaction():
                log_rejections(store, report.rejected)
            looks.write(store, last=True)


def _in_order(
    roots: Sequence[Path], report: IngestReport, is_samples: Callable[[Path], bool] = looks_like_samples
) -> Iterator[Candidate]:
    """Everything found, unedited runs of our own first within each root."""
    for root in roots:
        later: list[Candidate] = []
        for found in find_runs(root, is_samples):
            if isinstance(found, Rejection):
                report.rejected.append(found)
            elif found.receipt is not None and not found.path.name.startswith("baseline"):
                later.append(found)
            else:
                yield found
        yield from later


def _read_all(candidates: Iterable[Candidate], report: IngestReport, looks: Looks | None = None) -> Iterator[Run]:
    """Every run of these that can be read."""
    reader = SamplesReader()
    for candidate in candidates:
        try:
            runs = read_runs(candidate, reader)
        except Unreadable as error:
            report.rejected.append(Rejection(candidate.path, str(error)))
            if looks is not None:
                looks.was_refused(candidate, error)
        # a form nobody thought of
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            report.rejected.append(
                Rejection(candidate.path, f"holds something unexpected ({type(error).__name__}: {error})")
            )
        else:
            if looks is not None:
                looks.was_read(candidate, runs)
            yield from runs


def _batches(runs: Iterable[Run]) -> Iterator[list[Run]]:
    batch: list[Run] = []
    samples = size = 0
    started = time.monotonic()
    for run in runs:
        batch.append(run)
        samples += sum(len(task.samples or ()) for task in run.tasks)
        size += sum(task.samples.size for task in run.tasks if task.samples)
        if samples >= _BATCH_SAMPLES or size >= _BATCH_BYTES or time.monotonic() - started >= _BATCH_SECONDS:
            yield batch
            batch, samples, size, started = [], 0, 0, time.monotonic()
    if batch:
        yield batch


def _add(store: Store, batch: Sequence[Run], report: IngestReport, looks: Looks | None = None) -> None:
    try:
        outcomes = add_runs(store, batch)
    except (ValueError, OverflowError, TypeError) as error:  # Arrow's, for a value that a column cannot hold
        if len(batch) > 1:
            for run in batch:
                _add(store, [run], report, looks)
            return
        outcomes = [Unreadable(f"holds a value that cannot be stored: {error}")]
    for run, outcome in zip(batch, outcomes):
        if looks is not None:
            looks.became(run, str(outcome) if isinstance(outcome, Unreadable) else None)
        if isinstance(outcome, Unreadable):
            report.rejected.append(Rejection(run.path, str(outcome)))
        elif outcome is Added.NEW:
            report.added.append(run.run_id)
        else:
            (report.deleted if outcome is Added.DELETED else report.duplicates).append(run.path)
            if outcome is Added.KNOWN:
                report.known.append(run.run_id)


def _rebuild(roots: Sequence[Path], database: Path, timeout_s: float) -> IngestReport:
    report = IngestReport()
    real = file_of(database)  # a link is to lead to the new file
    temporary = real.with_name(f".{real.name}.rebuilding-{os.getpid()}")
    with file_lock(database, time.monotonic() + timeout_s, "a rebuild"), trouble.told(database), no_collection():
        for leftover in real.parent.glob(f".{real.name}.rebuilding-*"):
            leftover.unlink(missing_ok=True)  # of a rebuild that was killed: whoever lives holds the lock
        known = _ask_old(database, report)
        try:
            store = open_for_writing_unlocked(temporary)
            try:
                decisions.synchronize(store, database)
                everywhere = _with_known_paths(roots, known, report)
                looks = Looks(database, everywhere)
                found = list(_in_order(everywhere, report, looks.is_samples))
                looks.unchanged(found)
                for batch in _batches(_read_all(found, report, looks)):
                    _add(store, batch, report, looks)
                log_rejections(store, report.rejected)
                looks.write(store, last=True)
                states = stored_verdicts.outdated(store)
                ahead = judge_ahead(store, list(states), _REBUILD_AHEAD_SECONDS)
                verdict_cache.write(store, ahead.new)
                stored_verdicts.write(store, ahead.boards, states)
            finally:
                store.connection.close()
            report.notes.extend(replace_database(temporary, real))
        except OSError as error:
            raise Unwritable(
                f"{database} could not be replaced ({error}), and is as it was: mend this and run the command again"
            ) from error
        finally:
            for leftover in (temporary, Path(f"{temporary}.wal")):
                with suppress(OSError):  # why the rebuild failed says more
                    leftover.unlink(missing_ok=True)
    return report


def _ask_old(database: Path, report: IngestReport) -> list[Path]:
    """Bring the decisions of the old file into files; the paths of the runs that it knows. Says in the report what
    could not be read.

    Raises `Busy`, `ForeignDatabase`, and `NotADatabase` where the old file is a folder.
    """
    if database.is_dir():
        raise trouble.no_folder(database)
    if not database.exists():
        return []
    try:
        with trouble.told(database):
            store = open_for_writing_unlocked(database, timeout_s=5.0)
            with closing(store.connection):
                decisions.synchronize(store, database)
                return _run_paths(store.connection, store.places)
    except ForeignDatabase:
        raise
    except (NotADatabase, NewerDatabase) as error:
        report.notes.append(f"the old database could not be used: {str(error).partition(': ')[0]}")
        return _salvage(database, report)


def _salvage(database: Path, report: IngestReport) -> list[Path]:
    paths: list[Path] = []
    connection = connect_to_salvage(database)
    if connection is not None:
        with closing(connection):
            decisions.salvage(connection, database)
            paths = _run_paths(connection, RunPlaces(database))
    folder = folder_of(database)
    count = len(names(folder))
    report.notes.append(
        f"{count} decisions (pins, blessings, gates, deletions) are taken from {folder}"
        if count
        else "no pins, blessings, gates or deletions could be read of it, and no files beside it hold any"
    )
    return paths


def _run_paths(connection: duckdb.DuckDBPyConnection, places: RunPlaces) -> list[Path]:
    import duckdb

    with suppress(duckdb.Error):
        rows = connection.execute("SELECT DISTINCT path FROM runs ORDER BY path").fetchall()
        return [places.resolved(str(path)) for (path,) in rows]
    return []


def _with_known_paths(roots: Sequence[Path], known: Sequence[Path], report: IngestReport) -> list[Path]:
    """The roots, and every known run that lies outside them; runs whose files are gone are reported."""
    resolved = [root.resolve() for root in roots]
    outside = [path for path in known if not any(path.is_relative_to(root) for root in resolved)]
    missing = [path for path in known if not path.exists()]
    report.rejected.extend(Rejection(path, "its files are gone: no longer on the board") for path in missing)
    return [*roots, *(path for path in outside if path.exists())]


make_callable(__name__, "leaderboard.ingest:ingest")
