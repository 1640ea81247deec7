"""`lm_eval noise`: how many answers flip when only the batch size changes.

The unedited model is scored twice, by the very path that `run --recipe baseline` takes, with one model in memory: once
at each batch size. Both are run directories like any other, and the leaderboard shows beside every verdict how far a
recipe's flips exceed what these two differ in. All flags of `run` that concern the model and its tasks hold here too.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.cli.terminal import add_form_arguments, tell
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand, add_run_arguments

if TYPE_CHECKING:
    from harness_ext.lm_eval_adapter.config import RunConfig
    from harness_ext.runs.progress import ProgressReport
    from harness_ext.runs.session import VariantOutcome
    from leaderboard.store.noise_floor import Floor
    from leaderboard.terminal.output import Form

TIMES = 4
"""The other batch size, where none is given, in batch sizes."""


class Noise(RecipesCommand):
    """Score the unedited model at two batch sizes. The flags are those of lm-eval's `run`."""

    name = "noise"
    logs = True
    summary = "Measure how many answers flip when only the batch size changes"
    description = (
        "Score the unedited model at two batch sizes. What differs between the two is rounding, and a recipe's flips"
        " have to exceed it. Takes the flags of `run`."
    )

    epilog = """
examples:
  $ lm_eval noise --model_args pretrained=demo --tasks int_mult,int_sum --batch_size 8
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_run_arguments(parser)
        parser.add_argument(
            "--other_batch_size",
            type=int,
            default=None,
            metavar="<size>",
            help=f"The second batch size (default: {TIMES} times --batch_size)",
        )
        add_form_arguments(parser)
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from harness_ext.cli.config import Asked, read_config_file, run_config
        from harness_ext.runs.progress import report_for

        other, form = args.other_batch_size, args.form
        del args.other_batch_size, args.form
        from_file = read_config_file(args.config)
        config = run_config(args, Asked(("baseline",), (), in_file=False))
        first, second = _sizes(config, other)
        with redirect_stdout(sys.stderr):
            found = measure(config, first, second, report_for(args.verbosity or from_file.get("verbosity")))
        found.show(form)


def _sizes(config: RunConfig, other: int | None) -> tuple[int, int]:
    given = str(config.harness.batch_size)
    if not given.isdigit() or int(given) < 1:
        raise UserError(
            f"--batch_size {given} is no number of documents: the two sizes that are compared must be known, for"
            " example --batch_size 8 --other_batch_size 32"
        )
    second = TIMES * int(given) if other is None else other
    if second < 1 or second == int(given):
        raise UserError(f"--other_batch_size {second} must be a number of documents other than --batch_size {given}")
    return int(given), second


def measure(config: RunConfig, first: int, second: int, report: ProgressReport) -> MeasuredNoise:
    """Score at both sizes and store both runs; returns what differs. Raises UserError where a run failed, and
    LeaderboardError.
    """
    from harness_ext.runs.execution import DATABASE, check_database, session_for

    sessions = [session_for(_at_size(config, size), report) for size in (first, second)]
    database = sessions[0].root / DATABASE
    check_database(database)
    outcomes: list[VariantOutcome] = []
    for session, size in zip(sessions, (first, second), strict=True):
        if outcomes:
            session.take_model_of(sessions[0])
        report.line(f"batch size {size}:")
        (outcome,) = session.run()
        if outcome.run.failed:
            raise UserError(f"batch size {size}: {outcome.run.receipt['failure']['reason']}")
        outcomes.append(outcome)
    return _measured(database, outcomes, first, second)


def _at_size(config: RunConfig, size: int) -> RunConfig:
    harness = copy.copy(config.harness)
    harness.batch_size = size
    harness.model_args = dict(harness.model_args)
    return replace(config, harness=harness)


@dataclass(frozen=True)
class MeasuredNoise:
    """What differs between two runs that only their batch sizes tell apart. largest: difference of log-likelihoods."""

    database: Path
    first: int
    second: int
    floors: list[Floor]
    largest: float

    def show(self, form: Form) -> None:
        """Print it in the form asked for."""
        from leaderboard.terminal.output import written

        stored = f"stored in {self.database}: verdicts on this model now say what exceeds it"
        if form != "text":
            if text := written(form, self._rows(), None):
                print(text)
            tell([stored])
            return
        print(f"batch size {self.first} against {self.second}, nothing edited:")
        print(_lines(self.floors))
        print(f"log-likelihoods differ by up to {self.largest:.2g}")
        print(stored)

    def _rows(self) -> list[dict[str, Any]]:
        beside = {"batch_size": self.first, "other_batch_size": self.second, "largest_difference": self.largest}
        return [
            {
                "task": floor.task,
                "metric": floor.metric,
                "filter": floor.filter,
                "documents": floor.documents,
                "flips": floor.flips,
                "noise_floor": floor.rate,
                **beside,
            }
            for floor in self.floors
        ]


def _measured(database: Path, outcomes: list[VariantOutcome], first: int, second: int) -> MeasuredNoise:
    from harness_ext.runs.execution import PATIENCE_SECONDS
    from harness_ext.runs.identity_check import largest_difference
    from leaderboard.ingest import ingest
    from leaderboard.store import noise_floor
    from leaderboard.store.database import open_store
    from leaderboard.store.naming import find_run

    paths = [outcome.run.path for outcome in outcomes]
    for rejected in ingest(paths, database, timeout_s=PATIENCE_SECONDS).rejected:
        raise UserError(f"{rejected.path} was not stored: {rejected.reason}")
    with open_store(database, read_only=True, timeout_s=PATIENCE_SECONDS) as store:
        ours = {find_run(store, str(path)) for path in paths}
        floors = [
            floor
            for floors in noise_floor.floors(store).values()
            for floor in floors
            if {floor.run_id, floor.other_run_id} == ours
        ]
    largest = largest_difference(outcomes[0].run, outcomes[1].run)
    return MeasuredNoise(database, first, second, floors, largest)


def _lines(measured: Iterable) -> str:
    from leaderboard.terminal.format import percent, plain

    lines = [
        f"  {plain(floor.task)},"
        f" {floor.metric if floor.filter == 'none' else f'{plain(floor.metric)} ({plain(floor.filter)})'}:"
        f" {floor.flips} of {floor.documents:,} documents flipped, noise floor {percent(floor.rate)}"
        for floor in measured
    ]
    return "\n".join(lines) or "  no task here has scores of right or wrong, so there are no flips to count"
