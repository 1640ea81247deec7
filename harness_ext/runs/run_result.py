"""What a run with recipes came to, from Python: run folders, judged cells, and both as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.errors import UserError, nearest
from harness_ext.runs.execution import Execution, JudgedRuns, judged_alone, judged_in_store

if TYPE_CHECKING:
    import pandas as pd

    from harness_ext.runs.progress import ProgressReport
    from harness_ext.storage.rundir import FinishedRun
    from leaderboard.board.cell import Cell


@dataclass(frozen=True)
class RunResult:
    """A run with recipes. runs: the finished folders, baseline first, then each recipe followed by its controls; each
    has `path` and `receipt`. cells: one run on one task, against the baseline, as on the board. database: the store
    that they are in. controls: the names of the controls that were asked for, in that order.
    """

    runs: tuple[FinishedRun, ...]
    cells: tuple[Cell, ...]
    database: Path
    controls: tuple[str, ...] = ()

    @property
    def against_controls(self) -> dict[str, tuple[Cell, ...]]:
        """By name of the control, each recipe's run against its own control, by task."""
        return {
            name: tuple(pair for cell in self.cells for pair in cell.against_controls if pair.control == name)
            for name in self.controls
        }

    @property
    def failed(self) -> dict[str, str]:
        """Recipes, as they were asked for, that could not be carried through, each with the reason."""
        return {
            run.receipt["recipe"]["label"]: str((run.receipt["failure"] or {})["reason"])
            for run in self.runs
            if run.failed
        }

    def to_frame(self, control: str | None = None) -> pd.DataFrame:
        """One row a task, recipe and metric, the `primary` one first; the baseline and the controls have rows too.
        control: the one that recipes are compared with, by default the first that was asked for.

        The columns are those of `leaderboard.board("results").to_frame()`: model, task, recipe, control (the name, in
        the row of a control's own run), metric, n (documents), baseline_score and score (in the metric's units), delta
        (score minus baseline_score) with its 95 % interval low to high, verdict (better, worse, collapsed, same,
        undecided, incomparable, failed, baseline), p, q (after Benjamini-Hochberg over the model), lost and gained
        (documents), run_id, unpaired, label, scored, documents_needed, needed_for, clipped_at (what one document
        counts for at most in low and high), primary, chance (the share of right answers that guessing gets, or always
        taking the same choice); and control_run, control_delta, control_low, control_high,
        control_verdict, control_p, control_q, control_unpaired, control_clipped_at: the recipe against its own
        control, corrected over all such comparisons of the model. Missing values are NA.

        Raises UserError for a control that was not asked for.
        """
        from leaderboard.board.frame import cells_frame_with_controls

        if control is not None and control not in self.controls:
            raise UserError(f"no control {control!r} was run: {nearest(control, self.controls)}")
        return cells_frame_with_controls(self.cells, control or next(iter(self.controls), None))


def judged_runs(executed: Execution, report: ProgressReport) -> JudgedRuns:
    """Put the runs into the store and judge them: against the baseline, and each recipe against its controls. A
    database that cannot be had costs only its own update, and a warning.
    """
    from leaderboard.errors import LeaderboardError

    paths = list(dict.fromkeys(executed.paths))
    try:
        judged = judged_in_store(paths, executed.database, report)
    except LeaderboardError as trouble:
        report.warn(f"{trouble}; the runs are safe in {paths[0].parent}")
        return judged_alone(paths)
    # Runs that were copied here are in the store under the path where it met them first.
    return judged_alone(paths) if len({cell.run_id for cell in judged.cells}) < len(paths) else judged


def run_result(executed: Execution, judged: JudgedRuns, controls: Sequence[str]) -> RunResult:
    """The result of judged runs. controls: the names that were asked for."""
    runs = tuple(outcome.run for outcome in executed.outcomes)
    return RunResult(runs, tuple(judged.cells), executed.database, tuple(dict.fromkeys(controls)))
