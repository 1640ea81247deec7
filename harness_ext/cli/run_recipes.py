"""`lm_eval run --recipe ...`: run the variants, put them into the store, print the verdicts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.cli.terminal import terminal_style
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.config import RunConfig
from harness_ext.runs.identity_check import largest_difference, tolerance
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.session import Session, VariantOutcome

if TYPE_CHECKING:
    from leaderboard.board.board import Cell

DATABASE = "leaderboard.duckdb"
EXIT_FAILED_VARIANT = 2
PATIENCE_SECONDS = 30.0
"""How long a busy database is waited for."""


def execute(config: RunConfig, report: ProgressReport) -> None:
    """Do what was asked; leaves by SystemExit with 2 where a variant failed, after everything else is done and shown.

    Raises UserError and LeaderboardError. A database that cannot be used is told before anything is computed; one that
    is busy at the end costs only its own update.
    """
    session = Session(config, report)
    database = session.root / DATABASE
    check_database(database)
    outcomes, mistake = _run(session)
    if not outcomes:
        assert mistake is not None
        raise mistake
    _check_identity(outcomes, report)
    _show(database, outcomes, report)
    if mistake is not None:
        raise mistake
    if any(outcome.run.failed for outcome in outcomes):
        sys.exit(EXIT_FAILED_VARIANT)


def _run(session: Session) -> tuple[list[VariantOutcome], UserError | None]:
    """What was finished, and the mistake that stopped the rest, if one did: what is there is still shown and stored."""
    outcomes: list[VariantOutcome] = []
    try:
        for outcome in session.run():
            outcomes.append(outcome)  # noqa: PERF402 - what came before a mistake is kept
    except UserError as mistake:
        return outcomes, mistake
    return outcomes, None


def check_database(database: Path) -> None:
    """Find out before anything is computed that the database cannot be used. One that is busy or old may be in order by
    the end. Raises LeaderboardError.
    """
    from leaderboard.errors import Busy, OlderDatabase
    from leaderboard.store.database import open_store

    if not database.exists():
        return
    try:
        with open_store(database, read_only=True, timeout_s=0):
            pass
    except (Busy, OlderDatabase):
        return


def _check_identity(outcomes: Sequence[VariantOutcome], report: ProgressReport) -> None:
    baseline = outcomes[0].run
    for outcome in outcomes:
        methods = {step.method for step in outcome.recipe.steps}
        if methods != {"identity"} or outcome.run.failed or baseline.failed:
            continue
        difference, allowed = largest_difference(baseline, outcome.run), tolerance(outcome.run)
        if difference > allowed:
            report.warn(
                f"{outcome.recipe.label} changes log-likelihoods by up to {difference:.2g}, more than rounding"
                f" ({allowed:g}): do not trust the other results of this machine"
            )
        else:
            report.line(f"{outcome.recipe.label}: scores as the baseline, log-likelihoods within {difference:.1g}")


def _show(database: Path, outcomes: Sequence[VariantOutcome], report: ProgressReport) -> None:
    """Print the table of this command's variants: from the store, or from their run directories alone where the store
    cannot be had.
    """
    from leaderboard.commands import ingest_command
    from leaderboard.errors import LeaderboardError

    paths = [outcome.run.path for outcome in outcomes]
    try:
        _print(_cells_from_store(paths, database, report))
    except LeaderboardError as trouble:
        _print(_cells_from_runs(paths))
        raise type(trouble)(
            f"{trouble}\nthe runs are safe in {paths[0].parent}: `{ingest_command(database)}` puts them on the board"
        ) from None
    _next_steps(database, outcomes, report)


def _cells_from_store(paths: Sequence[Path], database: Path, report: ProgressReport) -> list[Cell]:
    from leaderboard.board.board import board
    from leaderboard.ingest import ingest
    from leaderboard.store.database import open_store
    from leaderboard.store.queries import runs

    for rejected in ingest(paths, database, timeout_s=PATIENCE_SECONDS).rejected:
        report.warn(f"{rejected.path} is not on the board: {rejected.reason}")
    wanted = {path.resolve() for path in paths}
    with open_store(database, read_only=True, timeout_s=PATIENCE_SECONDS) as store:
        ours = {run.run_id for run in runs(store) if Path(run.path).resolve() in wanted}
        return [cell for cell in board(store) if cell.run_id in ours]


def _cells_from_runs(paths: Sequence[Path]) -> list[Cell]:
    from leaderboard.board.board import board
    from leaderboard.ingest import ingest

    store = ingest(paths, None).store
    assert store is not None
    return board(store)


def _print(cells: Sequence[Cell]) -> None:
    from leaderboard.terminal.table import render

    style = terminal_style()
    print(render(cells, width=style.width, color=style.color), flush=True)


def _next_steps(database: Path, outcomes: Sequence[VariantOutcome], report: ProgressReport) -> None:
    edited = [outcome.run.path for outcome in outcomes if not outcome.recipe.is_baseline]
    report.line(f"\nruns      {outcomes[0].run.path.parent}")
    if edited:
        report.line(f"compare   lm_eval compare {outcomes[0].run.path} {edited[0]}")
    report.line(f"browse    lm_eval leaderboard --database {database}")
