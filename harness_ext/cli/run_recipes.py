"""`lm_eval run --recipe ...`: run the variants, put them into the store, print the verdicts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.cli.exit_codes import MISTAKE
from harness_ext.cli.secrecy import printable
from harness_ext.cli.terminal import board_look, terminal_style, write_cells
from harness_ext.editing.controls import RANDOM_SUBSPACE, SHUFFLED_LABELS, NoControl, control_recipe
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.config import RunConfig
from harness_ext.ranks.group import current
from harness_ext.runs import execution
from harness_ext.runs.execution import Execution, JudgedRuns
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.session import VariantOutcome
from harness_ext.runs.trackers import track, tracked_runs
from leaderboard.commands import command_about

if TYPE_CHECKING:
    from leaderboard.terminal.output import Form


def execute(
    config: RunConfig,
    report: ProgressReport,
    form: Form = "text",
    *,
    details: bool = False,
    manifest: Path | None = None,
    trackers: Sequence[str] = (),
) -> None:
    """Do what was asked; leaves by SystemExit with 2 where a variant failed, after everything else is done and shown.
    form: of the table at the end, which is all that goes to standard output. details: all of every row as well.
    manifest: a file that gets what came of it; then the database is left alone. trackers: told of the runs once they
    are judged.

    Raises UserError and LeaderboardError. A database that cannot be used is told before anything is computed; one that
    is busy at the end costs only its own update.
    """
    with redirect_stdout(sys.stderr):
        executed = _executed(config, report, manifest)
    if current().first:
        judged = _show(executed, report, form, details=details, stored=manifest is None)
        if trackers:
            with redirect_stdout(sys.stderr):
                runs = [outcome.run for outcome in executed.outcomes]
                track(trackers, tracked_runs(runs, judged, config.secrets), report)
        if form == "text" and manifest is None:
            _next_steps(executed, config, report)
    if executed.mistake is not None:
        raise executed.mistake
    if any(outcome.run.failed for outcome in executed.outcomes):
        sys.exit(MISTAKE)


def _executed(config: RunConfig, report: ProgressReport, manifest: Path | None) -> Execution:
    from harness_ext.runs.manifest import write_manifest

    if manifest is None:
        return execution.execute(config, report)
    try:
        executed = execution.execute(config, report, with_store=False)
    except UserError as error:
        if current().first:
            write_manifest(manifest, [], error)
        raise
    if current().first:
        write_manifest(manifest, executed.outcomes, executed.mistake, executed.not_made)
    return executed


def _show(executed: Execution, report: ProgressReport, form: Form, *, details: bool, stored: bool = True) -> JudgedRuns:
    """Print the table of this command's variants: from the store, or from their run directories alone where the store
    cannot be had, which is then raised, or is not to be touched.
    """
    if not stored or executed.remote is not None:
        # Many machines may write to a remote place; the board is made where the runs are brought together.
        judged = execution.judged_alone(executed.paths)
        _print(judged, executed.database, form, details=details)
        return judged
    from leaderboard.commands import ingest_command
    from leaderboard.errors import LeaderboardError

    paths, database = executed.paths, executed.database
    try:
        with report.progress.stage("comparing the runs with all others of the model"):
            judged = execution.judged_in_store(paths, database, report)
        _print(judged, database, form, details=details)
        return judged
    except LeaderboardError as trouble:
        _print(execution.judged_alone(paths), database, form, details=details)
        # A run that found no room in its place lies elsewhere.
        folders = list(dict.fromkeys(path.parent for path in paths))
        elsewhere = [folder for folder in folders if database.parent.resolve() not in folder.resolve().parents]
        command = ingest_command(database, *([database.parent, *elsewhere] if elsewhere else []))
        raise type(trouble)(
            f"{trouble}\nthe runs are safe in {' and '.join(map(str, folders))}: `{command}` puts them on the board"
        ) from None


def _print(judged: JudgedRuns, database: Path, form: Form, *, details: bool) -> None:
    """Print the table: recipes by tasks, ranked among all of the model's board, then everything of every row."""
    from leaderboard.terminal.board_table import render_board
    from leaderboard.terminal.table import render

    if form != "text":
        write_cells(judged.cells, form)
        return
    look, style = board_look(database), terminal_style()
    print(render_board(judged.board, look, shown=judged.run_ids), flush=True)
    if details:
        print(f"\n{render(judged.cells, width=style.width, color=style.color)}", flush=True)


def _next_steps(executed: Execution, config: RunConfig, report: ProgressReport) -> None:
    """Where the runs are, how to see more, what was asked for and is not there, and last the comparison that decides: a
    recipe with its control, or a control to run.
    """
    edited = [outcome for outcome in executed.outcomes if outcome.recipe.steps and outcome.recipe.control is None]
    database = quoted(executed.database)
    if executed.remote is not None:
        report.line(f"\nruns      {executed.remote}\nboard     lm_eval ingest {shlex.quote(executed.remote)}")
        return
    report.line(f"\nruns      {executed.paths[0].parent}")
    if edited:
        report.line(f"details   lm_eval show --database {database} {quoted(edited[0].run.path)}")
    report.line(f"browse    lm_eval leaderboard --database {database}")
    for sentence in report.left_out:
        report.line(f"left out  {sentence}")
    if pairs := _control_pairs(executed):
        report.line(f"control   {command_about(executed.database, 'compare', *map(str, pairs[0]))}")
    elif name := next((found for outcome in edited if (found := _possible_control(outcome))), None):
        report.line(f"control   none was run; the same with one:\n          {_with_control(config, name)}")


def _possible_control(outcome: VariantOutcome) -> str | None:
    """The control that says most about a recipe, of those that it can have."""
    for name in (RANDOM_SUBSPACE, "noise", SHUFFLED_LABELS):
        try:
            control_recipe(name, outcome.recipe, outcome.run.receipt)
        except (NoControl, UserError):
            continue
        return name
    return None


def _with_control(config: RunConfig, name: str) -> str:
    """The command with this control and no other, as it was started: by a launcher where there were several
    processes.
    """
    command, ranks = _without_controls(config.command), current().ranks
    if ranks > 1 and "run" in command:
        launcher = ["torchrun", "--nproc_per_node", str(ranks), "-m", "harness_ext"]
        command = [*launcher, *command[command.index("run") :]]
    return printable(shlex.join([*command, "--control", name]))


def _without_controls(command: Sequence[str]) -> list[str]:
    """A command without its flags `--control` and their names, of which none could be run."""
    left: list[str] = []
    inside = False
    for word in command:
        if word.startswith("-"):
            inside = word.partition("=")[0] == "--control"
        if not inside:
            left.append(word)
    return left


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
