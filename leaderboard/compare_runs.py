"""`compare A B`: two runs that may have nothing to do with a leaderboard, through a store in memory and the same code
path.

A is taken as the baseline, B as the recipe, whatever their models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from leaderboard.board.board import board
from leaderboard.board.cell import COMPARED, Cell, changed, with_collapsed_controls
from leaderboard.board.frame import cells_frame
from leaderboard.board.labels import stored_names
from leaderboard.compare.choice_shift import compare_choices
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.compare.run_diff import Unshared, unshared
from leaderboard.errors import LeaderboardError, Unreadable
from leaderboard.ingest import ingest
from leaderboard.metrics import DEFAULT_MARGIN
from leaderboard.readers.discovery import RECEIPT
from leaderboard.readers.receipt import read_receipt
from leaderboard.store import queries
from leaderboard.store.database import Store
from leaderboard.store.families import families
from leaderboard.store.noise_floor import floors_in

if TYPE_CHECKING:
    import pandas


PATIENCE_SECONDS = 30.0
"""How long a busy database is waited for."""


class RunComparison(NamedTuple):
    """One cell a task of B, and what only one of the two has."""

    cells: list[Cell]
    unshared: tuple[Unshared, Unshared]

    def to_frame(self) -> pandas.DataFrame:
        """A row a task of B, with A as the baseline: the columns of `leaderboard.board.frame.cells_frame`."""
        return cells_frame(self.cells)


class ControlledComparison(NamedTuple):
    """A comparison whose cells have controls. controls: the folders of those that B is held against."""

    cells: list[Cell]
    unshared: tuple[Unshared, Unshared]
    controls: tuple[Path, ...]


def compare_paths(a: Path, b: Path, *, margin: float = DEFAULT_MARGIN, database: Path | None = None) -> RunComparison:
    """Compare run directory or results file `b` with `a`. database: whose noise floors count, if it is there.

    Raises `LeaderboardError` where either path does not hold exactly one run, or both hold the same one.
    """
    report = ingest([Path(a), Path(b)], None)
    assert report.store is not None
    try:
        if report.rejected:
            raise LeaderboardError("; ".join(f"{path}: {reason}" for path, reason in report.rejected))
        if len(report.added) == 1:
            raise LeaderboardError(f"{a} and {b} hold the same run: there is nothing to compare")
        if len(report.added) != 2 or report.duplicates:
            raise LeaderboardError(
                f"{a} and {b} hold {len(report.added)} different runs: give two paths with one run each"
            )
        first, second = (
            report.store.rows("SELECT status FROM runs WHERE run_id = ?", [run])[0]["status"] for run in report.added
        )
        if first == "failed" or second == "failed":
            raise LeaderboardError(f"{a if first == 'failed' else b} holds a failed run: there is nothing to compare")
        cells = [
            cell
            for cell in board(
                report.store,
                baseline_run=report.added[0],
                margin=margin,
                floors=None if database is None else floors_in(database, PATIENCE_SECONDS),
            )
            if cell.run_id == report.added[1]
        ]
        return RunComparison(
            [_with_choices(report.store, cell) for cell in cells],
            _unshared(report.store, *report.added),
        )
    finally:
        report.store.connection.close()


def with_controls(
    compared: RunComparison, first: Path, run: Path, controls: Sequence[Path], database: Path | None = None
) -> ControlledComparison:
    """The comparison of a run with the first, each cell with what the run is against these controls of its recipe on
    its task, in the board's words: a run that collapsed beside the first is no better or worse than a control, but
    *collapsed*. Of a control that has several runs, those that were not asked the same stay out where another was.
    database: as of `compare_paths`.
    """
    pairs: dict[str, list[Cell]] = {}
    places: dict[str | None, Path] = {}
    collapsed: set[tuple[str, str]] = set()
    for control in controls:
        try:
            name = read_receipt(control / RECEIPT)[0].recipe.control
            found = compare_paths(control, run, database=database)
            beside = compare_paths(first, control, database=database)
        except LeaderboardError:  # a control that cannot be read says nothing of the run
            continue
        for cell in found.cells:
            pairs.setdefault(cell.task, []).append(changed(cell, control=name))
            places[cell.baseline_run] = control
        collapsed |= {(cell.run_id, cell.task) for cell in beside.cells if cell.verdict == COLLAPSED}
    held = {task: _asked_alike(own) for task, own in pairs.items()}
    cells = [changed(cell, against_controls=held.get(cell.task, ())) for cell in compared.cells]
    used = dict.fromkeys(places[pair.baseline_run] for own in held.values() for pair in own)
    cells = [with_collapsed_controls(cell, collapsed) for cell in cells]
    return ControlledComparison(cells, compared.unshared, tuple(used))


def _asked_alike(pairs: Sequence[Cell]) -> tuple[Cell, ...]:
    """Of each control those that can be compared, where one can."""
    alike = {pair.control for pair in pairs if pair.verdict in COMPARED}
    return tuple(pair for pair in pairs if pair.verdict in COMPARED or pair.control not in alike)


def controls_beside(run: Path) -> list[Path]:
    """The folders beside a run's that hold controls of its recipe on the same weights; none where it has no receipt or
    they lie elsewhere. A receipt that cannot be read is passed over.
    """
    folder = run if run.is_dir() else run.parent
    made = _made_by(folder / RECEIPT)
    others = (
        sorted((folder.parent if folder.name else folder.resolve().parent).glob(f"[!.]*/{RECEIPT}"))
        if made is not None and made.recipe_id
        else []
    )
    return [other.parent for other in others if (found := _made_by(other, of_control=True)) and found == made]


class _MadeBy(NamedTuple):
    """A recipe, the revisions of its methods where above 1, and the model: its name, its identity, and the digest of
    the weights that were edited, which another revision in the same folder, or another dtype, does not share.
    """

    recipe_id: str | None
    revisions: Mapping[str, int]
    model: tuple[str | None, ...]


def _made_by(path: Path, *, of_control: bool = False) -> _MadeBy | None:
    """What a complete run's receipt says that made it, or that the recipe whose control it is was made by; None where
    it cannot be read.
    """
    try:
        receipt, _ = read_receipt(path)
    except (OSError, Unreadable):
        return None
    recipe = receipt.recipe
    if receipt.status != "complete":
        return None
    model = (receipt.model.name, receipt.model.identity, receipt.weights.digest_before)
    if of_control:
        return _MadeBy(recipe.control_of, recipe.control_of_revisions, model)
    return _MadeBy(receipt.recipe_id, recipe.revisions, model)


def _unshared(store: Store, a: str, b: str) -> tuple[Unshared, Unshared]:
    """`unshared`, with what the runs are called beside each other; with their models where those differ."""
    names, runs = stored_names(store), {run.run_id: run for run in queries.runs(store)}
    if runs[a].model_key != runs[b].model_key:
        models = {model.model_key: model for model in families(store)}
        alike = runs[a].model_name == runs[b].model_name
        names = {
            run_id: f"{name} on {model.with_identity if alike else model.name}"
            for run_id, name in names.items()
            if (model := models[runs[run_id].model_key])
        }
    first, second = unshared(store, a, b)
    return first._replace(label=names[a]), second._replace(label=names[b])


def _with_choices(store: Store, cell: Cell) -> Cell:
    if cell.delta is None or cell.baseline_run is None or cell.unpaired:
        return cell
    return replace(cell, choices=compare_choices(store, cell.baseline_run, cell.run_id, cell.task, cell.filter))
