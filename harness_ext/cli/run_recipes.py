"""`lm_eval run --recipe ...`: run the variants, put them into the store, print the verdicts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.cli.terminal import terminal_style, write_cells
from harness_ext.lm_eval_adapter.config import RunConfig
from harness_ext.runs import execution
from harness_ext.runs.execution import Execution
from harness_ext.runs.progress import ProgressReport

if TYPE_CHECKING:
    from leaderboard.board.cell import Cell
    from leaderboard.terminal.output import Form

EXIT_FAILED_VARIANT = 2


def execute(config: RunConfig, report: ProgressReport, form: Form = "text") -> None:
    """Do what was asked; leaves by SystemExit with 2 where a variant failed, after everything else is done and shown.
    form: of the table at the end, which is all that goes to standard output.

    Raises UserError and LeaderboardError. A database that cannot be used is told before anything is computed; one that
    is busy at the end costs only its own update.
    """
    with redirect_stdout(sys.stderr):
        executed = execution.execute(config, report)
    _show(executed, report, form)
    if executed.mistake is not None:
        raise executed.mistake
    if any(outcome.run.failed for outcome in executed.outcomes):
        sys.exit(EXIT_FAILED_VARIANT)


def _show(executed: Execution, report: ProgressReport, form: Form) -> None:
    """Print the table of this command's variants: from the store, or from their run directories alone where the store
    cannot be had.
    """
    from leaderboard.commands import ingest_command
    from leaderboard.errors import LeaderboardError

    paths, database = executed.paths, executed.database
    try:
        _print(execution.cells_from_store(paths, database, report), form)
    except LeaderboardError as trouble:
        _print(execution.cells_from_runs(paths), form)
        # A run that found no room in its place lies elsewhere.
        folders = list(dict.fromkeys(path.parent for path in paths))
        elsewhere = [folder for folder in folders if database.parent.resolve() not in folder.resolve().parents]
        command = ingest_command(database, *([database.parent, *elsewhere] if elsewhere else []))
        raise type(trouble)(
            f"{trouble}\nthe runs are safe in {' and '.join(map(str, folders))}: `{command}` puts them on the board"
        ) from None
    _next_steps(executed, report)


def _print(cells: Sequence[Cell], form: Form) -> None:
    from leaderboard.terminal.table import render

    if form != "text":
        write_cells(cells, form)
        return
    style = terminal_style()
    print(render(cells, width=style.width, color=style.color), flush=True)


def _next_steps(executed: Execution, report: ProgressReport) -> None:
    edited = [outcome.run.path for outcome in executed.outcomes if not outcome.recipe.is_baseline]
    baseline = executed.paths[0]
    report.line(f"\nruns      {baseline.parent}")
    if edited:
        report.line(f"compare   lm_eval compare {quoted(baseline, edited[0])}")
    for control, recipe in _control_pairs(executed)[:1]:
        report.line(f"control   lm_eval compare {quoted(control, recipe)}")
    report.line(f"browse    lm_eval leaderboard --database {quoted(executed.database)}")


def quoted(*paths: Path) -> str:
    """Paths for a command line that is to be pasted."""
    return shlex.join(map(str, paths))


def _control_pairs(executed: Execution) -> list[tuple[Path, Path]]:
    """(a control's run, the run of the recipe whose control it is), of those that were carried through."""
    complete = {outcome.recipe.recipe_id: outcome.run.path for outcome in executed.outcomes if not outcome.run.failed}
    return [
        (outcome.run.path, complete[outcome.recipe.control_of])
        for outcome in executed.outcomes
        if outcome.recipe.control_of in complete and not outcome.run.failed
    ]
