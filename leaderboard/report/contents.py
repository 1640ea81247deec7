"""What a report is made of, read from a store once: the board in rows, and how its runs were made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.board.board import board, pair_board
from leaderboard.board.cell import Cell, changed
from leaderboard.board.labels import stored_names
from leaderboard.board.named_runs import board_baselines, place_of
from leaderboard.board.standings import Standings, standings
from leaderboard.commands import advised
from leaderboard.compare.run_diff import unshared
from leaderboard.errors import LeaderboardError, MissingDatabase, UnknownRun
from leaderboard.ingest import ingest
from leaderboard.readers.records import BASELINE
from leaderboard.readers.safe_json import mapping
from leaderboard.store import queries
from leaderboard.store.database import Store, open_store
from leaderboard.store.families import Meant, families, last_part, meant
from leaderboard.store.naming import resolve
from leaderboard.store.queries import RunRow
from leaderboard.terminal.format import counted

_PATIENCE_SECONDS = 30.0
_SAID_OF_A_RUN = (
    "SELECT run_id, command, versions, settings, model_type, coalesce(parameters_before, parameters) AS parameters"
    " FROM runs JOIN variants USING (variant_id) WHERE run_id IN (SELECT unnest($1))"
)


class ReportedRun(NamedTuple):
    """A run of the report and how it was made. command: as it was typed, empty where it is not recorded; limit: of
    documents, None where all were scored; versions: package -> version.
    """

    row: RunRow
    command: tuple[str, ...]
    versions: Mapping[str, str]
    limit: str | None
    model_type: str | None
    parameters: int | None


@dataclass(frozen=True)
class Report:
    """A board and what it needs in order to stand alone.

    title: plain text. cells: of every run and task. runs: all runs that have cells, the earliest first. baseline: what
    the rows are compared with, in words. compared: whether it is some runs that were named, instead of a model's board.
    remarks: sentences on what was chosen, and on what only some of the runs have. made: in UTC.
    """

    title: str
    model: str
    baseline: str
    cells: tuple[Cell, ...]
    runs: tuple[ReportedRun, ...]
    made: datetime
    compared: bool = False
    remarks: tuple[str, ...] = ()

    @cached_property
    def standings(self) -> Standings:
        """The rows in their order."""
        return standings(self.cells)

    def primary_cells(self, task: str) -> list[Cell]:
        """A task's cells in the order of the board, each row followed by its controls."""
        return [row.cells[task] for row in self.standings.listed(controls=True) if task in row.cells]


def read_report(names: Sequence[str], database: Path) -> Report:
    """The report of a model (its name, or of the one edited last where nothing is named), or of runs: the first is what
    the others are compared with; one alone is compared with its baseline.

    Raises `LeaderboardError`.
    """
    if len(names) > 1:
        return _of_runs(names, database)
    try:
        with open_store(database, read_only=True, timeout_s=_PATIENCE_SECONDS) as store:
            found = _the_model(store, names[0] if names else None)
            if found is not None:
                return _of_model(store, *found)
    except LeaderboardError:
        if not names or not Path(names[0]).exists():
            raise
    return _of_one_run(names[0], database)


def _the_model(store: Store, name: str | None) -> tuple[str, tuple[str, ...]] | None:
    """The key of the model meant, with remarks; None where no model is called so. Without a name it is the one edited
    last; of several of a name the newest.
    """
    runs = queries.runs(store)
    if not runs:
        takes_in = f"{advised(store.path, 'ingest', 'PATH')} takes results in"
        raise LeaderboardError(f"this leaderboard holds no run: {takes_in}")
    if name is None:
        last = max(runs, key=lambda run: (not run.may_be_baseline, run.started is not None, run.started or 0))
        return last.model_key, ()
    models = families(store)
    found = meant(name, models)
    if found.model is None:
        found = Meant(*next(((one, ()) for one in models if one.name.rpartition("/")[2] == name), (None, ())))
    if found.model is None:
        return None
    others = ", ".join(other.with_identity for other in found.others)
    remark = f"{len(found.others) + 1} models bear the name {name}: this is the newest; the others are {others}"
    return found.model.model_key, (remark,) if others else ()


def _of_model(store: Store, key: str, remarks: tuple[str, ...] = ()) -> Report:
    cells = board(store, models=[key])
    if not cells:
        raise LeaderboardError("none of this model's runs has a score or a failure to show")
    model = last_part(cells[0].model)
    return Report(
        f"{model}: recipes against their baseline",
        cells[0].model,
        "the unedited model",
        tuple(cells),
        _runs(store, cells),
        datetime.now(timezone.utc),
        remarks=remarks,
    )


def _of_one_run(name: str, database: Path) -> Report:
    """A run against the baseline that its board has for it, with its controls beside."""
    with open_store(database, read_only=True, timeout_s=_PATIENCE_SECONDS) as store:
        run, notes = _in_store(store, name)
        cells = board(store, models=[run.model_key])
        own = {run.run_id} | {
            other
            for cell in cells
            if cell.run_id == run.run_id
            for other in (cell.baseline_run, *(pair.baseline_run for pair in cell.against_controls))
            if other is not None
        }
        shown = [cell for cell in cells if cell.run_id in own]
        label = next((cell.name for cell in shown if cell.run_id == run.run_id), run.recipe_label)
        return Report(
            f"{label} on {last_part(run.model_name)}",
            run.model_name,
            "the unedited model",
            tuple(shown),
            _runs(store, shown),
            datetime.now(timezone.utc),
            compared=True,
            remarks=notes,
        )


def _in_store(store: Store, name: str) -> tuple[RunRow, tuple[str, ...]]:
    """The run that a name means."""
    try:
        found = resolve(store, name, shown=stored_names)
    except UnknownRun as error:
        models = ", ".join(sorted({run.model_name for run in queries.runs(store)})[:5])
        raise UnknownRun(f"{error}; nor is it a model: the leaderboard has {models}") from None
    return next(run for run in queries.runs(store) if run.run_id == found.run.run_id), found.notes


def _of_runs(names: Sequence[str], database: Path) -> Report:
    """Runs against the first of them. Where the database does not know them all, they are read from their files."""
    try:
        with open_store(database, read_only=True, timeout_s=_PATIENCE_SECONDS) as store:
            others = [resolve(store, name, shown=stored_names) for name in names[1:]]
            base = resolve(
                store,
                names[0],
                shown=stored_names,
                preferred=lambda store, _: board_baselines(store, [one.run for one in others]),
            )
            found = [base, *others]
            notes = tuple(note for one in found for note in one.notes)
            return _comparison(store, names, [one.run.run_id for one in found], notes)
    except (MissingDatabase, UnknownRun):
        places = [place_of(name, database) for name in names]
    with _in_memory([place.path for place in places]) as (store, ids):
        return _comparison(store, names, ids, tuple(note for place in places for note in place.notes))


def _comparison(store: Store, names: Sequence[str], ids: Sequence[str], remarks: tuple[str, ...]) -> Report:
    runs = {run.run_id: run for run in queries.runs(store)}
    if len(set(ids)) < len(ids):
        raise LeaderboardError(f"{', '.join(names)} name {len(set(ids))} different runs: name each once")
    for run_id, name in zip(ids, names):
        if runs[run_id].status == "failed":
            raise LeaderboardError(f"{name} is a failed run: there is nothing to compare")
    paired = [cell for run_id in ids for cell in pair_board(store, ids[0], run_id)]
    cells = _told_apart(_with_controls(store, paired, runs), runs)
    first = next((cell.name for cell in cells if cell.run_id == ids[0]), names[0])
    alone = (unshared(store, ids[0], run_id) for run_id in ids[1:])
    return Report(
        f"{counted(len(ids) - 1, 'run', 'runs')} against {first}",
        " and ".join(dict.fromkeys(runs[run_id].model_name for run_id in ids)),
        first,
        tuple(cells),
        _runs(store, cells),
        datetime.now(timezone.utc),
        compared=True,
        remarks=remarks
        + (tuple(said for both in alone for only in both for said in only.sentences()) if len(ids) == 2 else ()),
    )


def _with_controls(store: Store, cells: Sequence[Cell], runs: Mapping[str, RunRow]) -> list[Cell]:
    """The cells of named runs with what each is against its own controls in the store, as its board has it."""
    models = list(dict.fromkeys(runs[cell.run_id].model_key for cell in cells))
    known = {(cell.run_id, cell.task): cell.against_controls for cell in board(store, models=models)}
    return [
        cell
        if cell.verdict == BASELINE or not (pairs := known.get((cell.run_id, cell.task)))
        else changed(cell, against_controls=tuple(one for one in pairs if one.baseline_run != cell.baseline_run))
        for cell in cells
    ]


@contextmanager
def _in_memory(paths: Sequence[Path]) -> Iterator[tuple[Store, list[str]]]:
    """A store of these runs alone, and their ids in this order."""
    report = ingest(paths, None)
    assert report.store is not None
    try:
        if report.rejected:
            raise LeaderboardError("; ".join(f"{path}: {reason}" for path, reason in report.rejected))
        if len(report.added) != len(paths) or report.duplicates:
            raise LeaderboardError(
                f"{', '.join(map(str, paths))} hold {len(report.added)} different runs: name {len(paths)} runs, each"
                " once and by itself"
            )
        yield report.store, list(report.added)
    finally:
        report.store.connection.close()


def _told_apart(cells: Sequence[Cell], runs: Mapping[str, RunRow]) -> list[Cell]:
    """The cells, with the model or the id in the names of runs that are called the same."""
    names = {cell.run_id: cell.name for cell in cells}
    for tell in (
        lambda run: f" on {last_part(runs[run].model_name)}",
        lambda run: f" ({run[:8]})",
    ):
        often = Counter(names.values())
        names = {run: name if often[name] == 1 else f"{name}{tell(run)}" for run, name in names.items()}
    return [changed(cell, label=names[cell.run_id]) for cell in cells]


def _runs(store: Store, cells: Sequence[Cell]) -> tuple[ReportedRun, ...]:
    wanted = {cell.run_id for cell in cells}
    said = {row["run_id"]: row for row in store.rows(_SAID_OF_A_RUN, [sorted(wanted)])}
    return tuple(_run(run, said[run.run_id]) for run in queries.runs(store) if run.run_id in wanted)


def _run(row: RunRow, said: Mapping[str, Any]) -> ReportedRun:
    command = _json(said["command"])
    versions = mapping(_json(said["versions"]))
    limit = mapping(_json(said["settings"])).get("limit")
    return ReportedRun(
        row,
        tuple(map(str, command)) if isinstance(command, list) else (command,) if isinstance(command, str) else (),
        {str(name): str(version) for name, version in versions.items() if version is not None}
        or ({"lm_eval": row.lm_eval_version} if row.lm_eval_version else {}),
        None if limit in (None, "", 0) else f"{limit:g}" if isinstance(limit, (int, float)) else str(limit),
        said["model_type"],
        said["parameters"],
    )


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return text
