"""What `leaderboard.board`, `leaderboard.compare` and `leaderboard.gate` do when they are called from Python.

Scores, deltas, margins and intervals are in the metric's own units: a share of documents for accuracies (0 to 1),
whatever lm-eval reports for others. Every error is a `LeaderboardError`, whose text says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.board.board import board as board_cells
from leaderboard.board.cell import Cell
from leaderboard.board.frame import cells_frame_with_controls
from leaderboard.commands import DEFAULT_DATABASE
from leaderboard.compare_runs import RunComparison, compare_paths
from leaderboard.errors import LeaderboardError, MissingDatabase
from leaderboard.gate.policy import Policy, load_policy
from leaderboard.gate.report import GateReport, judge_candidate
from leaderboard.gate.runs import read_named
from leaderboard.ingest import Rejection, ingest
from leaderboard.metrics import DEFAULT_MARGIN
from leaderboard.readers.addresses import local_database
from leaderboard.store.database import Store, open_store

if TYPE_CHECKING:
    import pandas

_REASONS_SHOWN = 3


@dataclass(frozen=True)
class Board:
    """Every run and task against its baseline.

    cells: by model, task and recipe, the baseline first, each of a task's primary metric; `further` of each holds those
    of its other metrics, `against_controls` what it is against the controls of its own.
    """

    cells: tuple[Cell, ...]

    @property
    def against_control(self) -> dict[tuple[str, str], Cell]:
        """Each recipe that has a control on the same settings against the first of them by name, by (run_id, task);
        corrected over all such comparisons of the model.
        """
        return {(cell.run_id, cell.task): cell.against_controls[0] for cell in self.cells if cell.against_controls}

    def to_frame(self) -> pandas.DataFrame:
        """A row a metric, a task's primary one (`primary`) before its further ones: model, task, recipe, control,
        metric, n (documents), baseline_score, score, delta (score minus baseline_score), low and high (its 95 %
        interval, not corrected), verdict, p, q (after Benjamini-Hochberg over the primary metrics of the model, or over
        the further ones), lost and gained (documents), run_id, label (the recipe, with what tells the run from others
        of its model), scored (which documents, in words); and control_run, control_delta, control_low, control_high,
        control_verdict, control_p, control_q of the recipe against its control; unpaired and control_unpaired: whether
        the difference is of two scores by themselves; documents_needed, needed_for (of an undecided row), clipped_at
        and control_clipped_at (where one is given, low and high are of the mean change in which no document counts for
        more); chance (the share of right answers that guessing gets, or always taking the same choice). Missing values
        are NA.
        """
        return cells_frame_with_controls(self.cells)


def board(path: str | Path, model: str | None = None) -> Board:
    """The board of a results folder or of a database file; nothing is written.

    A folder's database (`leaderboard.duckdb`) is read as it is; where there is none, the run folders are read into
    memory. model: a model's name or key; all models unless given.

    Raises `LeaderboardError`: `MissingDatabase` where there is nothing at the path, `NotADatabase`, `Busy`; and where
    the folder holds no run, or the board has no such model.
    """
    with _opened(local_database(path)) as store:
        cells = board_cells(store, models=None if model is None else [model])
        if model is not None and not cells:
            names = sorted({cell.model for cell in board_cells(store)})
            raise LeaderboardError(f"there is no model {model!r} on the board of {path}; it has {', '.join(names)}")
        return Board(tuple(cells))


@contextmanager
def _opened(path: Path) -> Iterator[Store]:
    if not path.exists():
        raise MissingDatabase(f"there is nothing at {path}: give a results folder, or its database")
    database = path / DEFAULT_DATABASE.name if path.is_dir() else path
    if database.exists() or not path.is_dir():
        with open_store(database) as store:
            yield store
        return
    report = ingest(path, None)
    assert report.store is not None
    try:
        if not report.added:
            raise LeaderboardError(f"{path} holds no run{_reasons(report.rejected)}")
        yield report.store
    finally:
        report.store.connection.close()


def _reasons(rejected: Sequence[Rejection]) -> str:
    """Why nothing could be read, by the first few paths."""
    told = [f"{place}: {reason}" for place, reason in rejected[:_REASONS_SHOWN]]
    more = len(rejected) - len(told)
    return f" that can be read ({'; '.join(told)}{f'; and {more} more' if more else ''})" if told else ""


def compare(
    a: str | Path, b: str | Path, *, margin: float = DEFAULT_MARGIN, database: str | Path | None = None
) -> RunComparison:
    """Compare run folder or results file `b` with `a`, whatever their models. margin: the largest difference that
    counts as the same, for scores between 0 and 1. database: the leaderboard's database whose noise floors count, as
    `--database` of `lm_eval compare`: with the noise of both measured, runs of two GPUs or engines are compared. Unless
    it is given, or where there is no such file, only what the two runs hold counts.

    Raises `LeaderboardError` where either path does not hold exactly one complete run, or both hold the same one.
    """
    return compare_paths(
        Path(a), Path(b), margin=margin, database=None if database is None else local_database(database)
    )


def gate(
    policy: str | Path | Policy,
    candidate: str | Path,
    *,
    baselines: Sequence[str | Path] = (),
    database: str | Path = DEFAULT_DATABASE,
) -> GateReport:
    """Decide whether a run may replace the last one, as `lm_eval gate` does; nothing is recorded.

    policy: a file, or a policy. candidate: a run, by a folder or results file, or by an id or MODEL/RECIPE of the
    database. baselines: runs, `"base"` or `"blessed"`; the latter two unless given. The report's `verdict` and
    `exit_code` are those of the command.

    Raises `PolicyError` for a policy that cannot be used, and `LeaderboardError` where there is nothing to compare.
    """
    rules = policy if isinstance(policy, Policy) else load_policy(Path(policy))
    run = read_named(str(candidate), local_database(database), "candidate")
    return judge_candidate(run, rules, [str(name) for name in baselines], local_database(database))
