"""A run with recipes from its configuration to judged cells: variants scored and written, the store brought up to date.

The command line and Python both go through here; what is printed is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.config import RunConfig
from harness_ext.ranks.group import current
from harness_ext.runs.engine_scoring import EngineSession
from harness_ext.runs.identity_check import worst_deviation
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.session import ControlNotMade, Session, VariantOutcome

if TYPE_CHECKING:
    from leaderboard.board.cell import Cell
    from leaderboard.store.database import Store

DATABASE = "leaderboard.duckdb"
PATIENCE_SECONDS = 30.0
"""How long a busy database is waited for."""


@dataclass(frozen=True)
class Execution:
    """What came of a run: at least one outcome, the database beside the runs, the mistake that stopped the rest, if one
    did, the URL where the runs went, if they did, and the controls that cannot be ones of their recipes.
    """

    outcomes: tuple[VariantOutcome, ...]
    database: Path
    mistake: UserError | None
    remote: str | None = None
    not_made: tuple[ControlNotMade, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """The run folders, in the order of the variants."""
        return [outcome.run.path for outcome in self.outcomes]


def execute(config: RunConfig, report: ProgressReport, *, with_store: bool = True) -> Execution:
    """Score every variant that is not there already. with_store: whether the database will be asked for afterwards.

    Raises UserError where nothing could be done, and LeaderboardError, before anything is computed, for a database that
    cannot be used.
    """
    session = session_for(config, report)
    database = session.root / DATABASE
    ranks = current()
    if with_store:
        if ranks.first:
            check_database(database)
        ranks.exchange("the database can be used")  # else others were ahead, and told a mistake that all make
    outcomes: list[VariantOutcome] = []
    mistake: UserError | None = None
    try:
        for outcome in session.run():
            outcomes.append(outcome)  # noqa: PERF402 - what came before a mistake is kept
    except UserError as error:
        if not outcomes:
            raise
        mistake = error
    if ranks.first:
        _check_identity(outcomes, report)
    remote = config.remote.url if config.remote is not None else None
    return Execution(tuple(outcomes), database, mistake, remote, tuple(session.not_made))


def session_for(config: RunConfig, report: ProgressReport) -> Session:
    """The session of a command: of the backend that edits and scores, or of the engine that scores."""
    return (Session if config.engine is None else EngineSession)(config, report)


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
        worst = worst_deviation(baseline, outcome.run)
        if worst.explained:
            report.line(
                f"{outcome.recipe.label}: scores as the baseline, log-likelihoods within {worst.difference:.1g}"
                + (f"; rounding moved {worst.beyond} of them unusually far" if worst.beyond else "")
            )
            continue
        place = f", in {worst.task}, at a log-likelihood of {worst.log_likelihood:.3g}" if worst.task else ""
        report.warn(
            f"{outcome.recipe.label} changes a log-likelihood by {worst.difference:.2g}, more than rounding"
            f" ({worst.allowed:.2g}){place}: do not trust the other results of this machine"
        )


class JudgedRuns(NamedTuple):
    """Whole boards of the models of some runs, the ids of these runs, and these ids by what was asked (`spec_id`)."""

    board: Sequence[Cell]
    run_ids: frozenset[str]
    run_of: Mapping[str, str] = MappingProxyType({})

    @property
    def cells(self) -> list[Cell]:
        """Those of the runs alone."""
        return [cell for cell in self.board if cell.run_id in self.run_ids]


_RUNS = (
    "SELECT run_id, spec_id, model_key FROM runs JOIN variants USING (variant_id) WHERE run_id IN (SELECT unnest(?))"
)


def cells_from_store(paths: Sequence[Path], database: Path, report: ProgressReport) -> list[Cell]:
    """The cells of `judged_in_store`."""
    return judged_in_store(paths, database, report).cells


def judged_in_store(paths: Sequence[Path], database: Path, report: ProgressReport) -> JudgedRuns:
    """Put run folders into the database and judge them there, beside all other runs of the model. Raises
    LeaderboardError.
    """
    from leaderboard.commands import advised
    from leaderboard.ingest import ingest
    from leaderboard.store.database import open_store

    ingested = ingest(paths, database, timeout_s=PATIENCE_SECONDS)
    for rejected in ingested.rejected:
        report.warn(f"{rejected.path} is not on the board: {rejected.reason}")
    for path in ingested.deleted:
        listed = advised(database, "runs", "list", "--deleted")
        report.warn(f"{path} was taken off the board, and stays off: {listed} has the reason")
    ours = {*ingested.added, *ingested.known}
    with open_store(database, read_only=True, timeout_s=PATIENCE_SECONDS) as store:
        return _judged(store, ours)


def judged_alone(paths: Sequence[Path]) -> JudgedRuns:
    """Judge run folders by themselves, without a database."""
    store = store_of(paths)
    return _judged(store, {str(row["run_id"]) for row in store.rows("SELECT run_id FROM runs")})


def cells_from_runs(paths: Sequence[Path]) -> list[Cell]:
    """The cells of `judged_alone`."""
    return judged_alone(paths).cells


def _judged(store: Store, ours: set[str]) -> JudgedRuns:
    from leaderboard.board.board import board

    runs = store.rows(_RUNS, [sorted(ours)])
    run_of = {str(row["spec_id"]): str(row["run_id"]) for row in runs}
    return JudgedRuns(board(store, models={str(row["model_key"]) for row in runs}), frozenset(ours), run_of)


def store_of(paths: Sequence[Path]) -> Store:
    """A store in memory that holds these run folders."""
    from leaderboard.ingest import ingest

    store = ingest(paths, None).store
    assert store is not None
    return store
