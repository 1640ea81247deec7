"""What a run with recipes came to, from Python: run folders, judged cells, and both as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.errors import UserError, nearest
from harness_ext.runs.execution import Execution, cells_from_runs, cells_from_store, store_of

if TYPE_CHECKING:
    import pandas as pd

    from harness_ext.runs.progress import ProgressReport
    from harness_ext.runs.session import VariantOutcome
    from harness_ext.storage.rundir import FinishedRun
    from leaderboard.board.cell import Cell


@dataclass(frozen=True)
class RunResult:
    """A run with recipes. runs: the finished folders, baseline first, then each recipe followed by its controls; each
    has `path` and `receipt`. cells: one run on one task, against the baseline, as on the board. database: the store
    that they are in. against_controls: by name of the control, each recipe's run against its own control, by task.
    """

    runs: tuple[FinishedRun, ...]
    cells: tuple[Cell, ...]
    database: Path
    against_controls: dict[str, tuple[Cell, ...]] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, str]:
        """Recipes, as they were asked for, that could not be carried through, each with the reason."""
        return {
            run.receipt["recipe"]["label"]: str((run.receipt["failure"] or {})["reason"])
            for run in self.runs
            if run.failed
        }

    def to_frame(self, control: str | None = None) -> pd.DataFrame:
        """One row a task and recipe; the baseline and the controls have rows too. control: the one that recipes are
        compared with, by default the first that was asked for.

        The columns are those of `leaderboard.board("results").to_frame()`: model, task, recipe, control (the name, in
        the row of a control's own run), metric, n (documents), baseline_score and score (in the metric's units), delta
        (score minus baseline_score) with its 95 % interval low to high, verdict (better, worse, same, undecided,
        incomparable, failed, baseline), p, q (after Benjamini-Hochberg over the model), lost and gained (documents),
        run_id; and control_run, control_delta, control_low, control_high, control_verdict: the recipe against its own
        control. Missing values are NA.

        Raises UserError for a control that was not asked for.
        """
        from leaderboard.board.frame import cells_frame_with_controls

        against = {(cell.run_id, cell.task): cell for cell in self._against(control)}
        return cells_frame_with_controls(self.cells, against)

    def _against(self, control: str | None) -> tuple[Cell, ...]:
        if control is None:
            return next(iter(self.against_controls.values()), ())
        if control not in self.against_controls:
            raise UserError(f"no control {control!r} was run: {nearest(control, self.against_controls)}")
        return self.against_controls[control]


def judged_result(executed: Execution, controls: Sequence[str], report: ProgressReport) -> RunResult:
    """Put the runs into the store and judge them: against the baseline, and each recipe against its controls. A
    database that cannot be had costs only its own update, and a warning.
    """
    from leaderboard.errors import LeaderboardError

    paths = list(dict.fromkeys(executed.paths))
    cells: list[Cell] = []
    try:
        cells = cells_from_store(paths, executed.database, report)
    except LeaderboardError as trouble:
        report.warn(f"{trouble}; the runs are safe in {paths[0].parent}")
    # Runs that were copied here are in the store under the path where it met them first.
    if len({cell.run_id for cell in cells}) < len(paths):
        cells = cells_from_runs(paths)
    runs = tuple(outcome.run for outcome in executed.outcomes)
    return RunResult(runs, tuple(cells), executed.database, _against_controls(executed.outcomes, controls))


def _against_controls(outcomes: Sequence[VariantOutcome], controls: Sequence[str]) -> dict[str, tuple[Cell, ...]]:
    """Every recipe's run against its own control's, by name of the control; failed runs are left out."""
    from leaderboard.board.board import pair_board
    from leaderboard.store.queries import runs

    complete = [outcome for outcome in outcomes if not outcome.run.failed]
    of_recipe = {outcome.recipe.recipe_id: outcome for outcome in complete if outcome.recipe.control is None}
    pairs = [
        (outcome.recipe.control, outcome.run.path, of_recipe[outcome.recipe.control_of].run.path)
        for outcome in complete
        if outcome.recipe.control is not None and outcome.recipe.control_of in of_recipe
    ]
    against: dict[str, list[Cell]] = {control: [] for control in controls}
    if pairs:
        store = store_of([path for _, *both in pairs for path in both])
        ids = {Path(run.path).resolve(): run.run_id for run in runs(store)}
        for name, control, recipe in pairs:
            against[name] += pair_board(store, ids[control.resolve()], ids[recipe.resolve()])
    return {name: tuple(cells) for name, cells in against.items()}
