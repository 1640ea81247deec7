"""`lm_eval run --recipe ...`: run the variants, put them into the store, print the verdicts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness_ext.cli.config import RunConfig
from harness_ext.cli.terminal import terminal_style
from harness_ext.identity_check import largest_difference, tolerance
from harness_ext.report import Report, report_for
from harness_ext.session import Outcome, Session

DATABASE = "leaderboard.duckdb"


def execute(config: RunConfig) -> None:
    """Do what was asked; leaves by SystemExit with 2 where a variant failed, after everything else is done and shown."""
    report = report_for(config.harness.verbosity)
    session = Session(config, report)
    outcomes: list[Outcome] = list(session.run())
    _check_identity(outcomes, report)
    _show(session.root, outcomes, report)
    if any(outcome.run.failed for outcome in outcomes):
        sys.exit(2)


def _check_identity(outcomes: Sequence[Outcome], report: Report) -> None:
    baseline = outcomes[0].run
    for outcome in outcomes:
        methods = {step.method for step in outcome.recipe.steps}
        if methods != {"identity"} or outcome.run.failed or baseline.failed:
            continue
        difference, allowed = largest_difference(baseline, outcome.run), tolerance(outcome.run)
        if difference > allowed:
            report.warn(f"{outcome.recipe.label} changes log-likelihoods by up to {difference:.2g}, more than rounding ({allowed:g}): do not trust this machine's other results")
        else:
            report.line(f"{outcome.recipe.label}: scores as the baseline, log-likelihoods within {difference:.1g}")


def _show(root: Path, outcomes: Sequence[Outcome], report: Report) -> None:
    """The table of this command's variants, from the store; from their run directories alone where the store cannot be had."""
    from leaderboard.board import board
    from leaderboard.errors import LeaderboardError
    from leaderboard.ingest import ingest
    from leaderboard.store import open_store
    from leaderboard.table import render

    style = terminal_style()
    paths = [outcome.run.path for outcome in outcomes]
    runs = set()
    trouble: LeaderboardError | None = None
    database = root / DATABASE
    try:
        done = ingest(paths, database)
        for rejected in done.rejected:
            report.warn(f"{rejected.path} is not on the board: {rejected.reason}")
        with open_store(database, read_only=True) as store:
            cells = board(store)
    except LeaderboardError as error:
        trouble = error
        raise
    print(render(cells, width=style.width, color=style.color))
