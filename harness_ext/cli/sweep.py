"""`lm_eval sweep`: many models and recipes, cut into cells that run on this machine, a Ray cluster or Slurm."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness_ext.cli.exit_codes import CANNOT_TELL, CHECK_FAILED
from harness_ext.cli.secrecy import printable
from harness_ext.cli.terminal import add_form_arguments, terminal_style
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from harness_ext.progress import duration
from leaderboard.commands import command_about
from leaderboard.terminal.path_flags import local_path

if TYPE_CHECKING:
    from harness_ext.sweeps.plan import Expectation, SweepPlan
    from leaderboard.readers.sweep_state import SweepState
    from leaderboard.terminal.output import Form, Row

_NAMES = 5
ENGINES = ("local", "ray", "slurm")
EPILOG = """
examples:
  $ lm_eval sweep plan sweep.yaml
  $ lm_eval sweep run sweep.yaml --on local
  $ lm_eval sweep status sweep.yaml
  $ lm_eval sweep retry sweep.yaml
"""


class Sweep(RecipesCommand):
    """Plan, run and look at sweeps."""

    name = "sweep"
    logs = True
    summary = "Run many models and recipes, here or on a cluster"
    description = (
        "Run what a sweep file names: models by recipes, cut into cells, each an ordinary `lm_eval run` in a process of"
        " its own. What is done already is not done again, so that the same command goes on after anything."
    )
    epilog = EPILOG

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", required=True)
        for name, text, function in (
            ("plan", "Show cells, GPUs, expected hours and what is there already; loads nothing", _plan),
            ("run", "Run every cell that is not done, and take the results in as they come", _run),
            ("status", "Show what became of each cell, and why", _status),
            ("retry", "Run failed cells again", _retry),
        ):
            action = actions.add_parser(name, help=text, description=f"{text}.")
            action.add_argument("sweep", type=local_path, metavar="SWEEP.yaml", help="The sweep file")
            action.set_defaults(func=function)
            if name == "retry":
                action.add_argument(
                    "cells", nargs="*", metavar="CELL", help="Only these: a cell's name, or how it begins"
                )
            if name in ("plan", "run", "retry"):
                _add_engine_argument(action)
            if name in ("run", "retry"):
                _add_jobs_argument(action)
            if name in ("plan", "status"):
                add_form_arguments(action)
            if name == "status":
                action.add_argument("--all", action="store_true", help="List the cells that are done, too")


def _add_engine_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on",
        default="local",
        metavar="<engine>",
        help="Where cells run: local (processes of this machine), ray or slurm (default: local)",
    )


def _add_jobs_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="<n>",
        help="Cells at once: with local (default: one a GPU, or one), or ray (default: as many as it has room for)",
    )


def _check_jobs(jobs: int | None, on: str) -> None:
    if jobs is None:
        return
    if jobs < 1:
        raise UserError(f"--jobs {jobs} must be 1 or more")
    if on == "slurm":
        raise UserError(
            "--jobs is for --on local and ray: how many cells Slurm runs at once is said in the sweep file, as"
            f" `slurm: {{array_parallelism: {jobs}}}`"
        )


def _read(path: Path) -> SweepPlan:
    from harness_ext.sweeps.plan import plan_of
    from harness_ext.sweeps.sweep_file import read_sweep

    return plan_of(read_sweep(path), Path())


def _checked(args: argparse.Namespace) -> SweepPlan:
    """The plan of a sweep that can be run here. Raises UserError with every mistake of the file at once."""
    from harness_ext.errors import nearest
    from harness_ext.sweeps.on_this_machine import mistakes_here
    from harness_ext.sweeps.plan import plan_of
    from harness_ext.sweeps.sweep_file import read_sweep

    if args.on not in ENGINES:
        raise UserError(f"--on {args.on}: no such engine; {nearest(args.on, ENGINES)}")
    _check_jobs(getattr(args, "jobs", None), args.on)  # `plan` has none
    return plan_of(read_sweep(args.sweep, lambda data: mistakes_here(data, args.on)), Path())


def _plan(args: argparse.Namespace) -> None:
    from harness_ext.lm_eval_adapter.task_index import indexed_kinds
    from harness_ext.sweeps.engines import absence
    from harness_ext.sweeps.plan import expectations
    from harness_ext.sweeps.visible_gpus import visible_gpus

    plan = _checked(args)
    _say_what_is_left_alone(plan)
    lacking = absence(args.on)
    note = None if lacking is None else f"`sweep run --on {args.on}` would be refused here: {lacking}"
    on_gpu = any(cell.gpus for cell in plan.cells) and (args.on != "local" or bool(visible_gpus()))
    lines = expectations(plan, indexed_kinds(), on_gpu=on_gpu)
    rows: list[dict[str, Any]] = [
        {
            "model": line.model,
            "cells": line.cells,
            "done": line.done,
            "failed": line.failed,
            "to_run": line.to_run,
            "gpus": line.gpus,
            "variants": line.variants,
            "there": line.there,
            "hours": None
            if line.hours is None
            else float(f"{line.hours:.2g}" if line.by == "rough" else f"{line.hours:.3f}"),
            "hours_by": line.by,
            "note": note,
        }
        for line in lines
    ]
    if note is not None:
        _say(f"note: {note}")
    if args.form != "text":
        _print(args.form, rows, wrap=("model",))
        return
    for row in rows:
        del row["note"]
        if row.pop("hours_by") == "rough":
            row["hours"] = _about(row["hours"])
        elif not row["to_run"]:
            row["hours"] = "-"
    _print(args.form, rows, wrap=("model",))
    print(f"\n{_to_run_told(lines, plan.results, args.sweep)}")


def _to_run_told(lines: Sequence[Expectation], results: Path, sweep: Path) -> str:
    """How many cells are to run, and how long that takes: the plan's last line."""
    failed, to_run = sum(line.failed for line in lines), [line for line in lines if line.to_run]
    rest = f"; {failed} failed, which `{_command('sweep', 'retry', sweep)}` runs" if failed else ""
    counts = f"{sum(line.to_run for line in lines)} of {sum(line.cells for line in lines)} cells to run"
    return counts + (f": {_hours_told(to_run, results)}" if to_run else "") + rest


def _hours_told(lines: Sequence[Expectation], results: Path) -> str:
    """The hours of all models together, and what they are known by. lines: of models with cells to run."""
    hours = sum(line.hours * max(line.gpus, 1) for line in lines if line.hours is not None)
    time = f"about {_gpu_time(hours, on_gpu=any(line.gpus for line in lines))}"
    rough, unknown = (sum(line.by == by for line in lines) for by in ("rough", None))
    if unknown == len(lines):
        return (
            "hours are unknown, since sizes of models or numbers of documents are: a first run in"
            f" {results} tells them, and so do models on this machine with `run: {{limit: N}}`"
        )
    if rough:
        told = (
            f"{time}; those of {rough} of {len(lines)} models are a rough estimate by size, ten"
            " times off either way, without edits and searches"
        )
    else:
        told = f"{time}, by the receipts in {results}"
    return told + (f"; {unknown} of {len(lines)} models are not known and not counted" if unknown else "")


def _command(*words: object) -> str:
    """A command of `lm_eval` that can be pasted."""
    return command_about(None, *map(str, words))


def _gpu_time(hours: float, *, on_gpu: bool = True) -> str:
    """`2 GPU minutes`, `2.5 GPU hours`, without the word on a CPU: as exact as an estimate deserves."""
    minutes, gpu = max(1, round(hours * 60)), "GPU " if on_gpu else ""
    if hours < 1.5:
        return f"{minutes} {gpu}minute{'' if minutes == 1 else 's'}"
    return f"{hours:.1f} {gpu}hours" if hours < 100 else f"{hours:,.0f} {gpu}hours"


def _about(hours: float) -> str:
    return f"about {max(hours, 0.01):.2g}"


def _run(args: argparse.Namespace) -> None:
    _drive(args, _checked(args))


def _retry(args: argparse.Namespace) -> None:
    from harness_ext.sweeps.driver import forget_failures, to_be_retried

    plan = _checked(args)
    _check_engine(args)
    if not to_be_retried(plan, args.cells):  # before anything is made or written
        _say_that_none_failed(plan, args.sweep)
        return
    _drive(args, plan, lambda: forget_failures(plan, args.cells))


def _say_that_none_failed(plan: SweepPlan, sweep: Path) -> None:
    waiting = sum(plan.settled(cell) is None for cell in plan.cells)
    _say(
        "no cell has failed"
        + (f"; `{_command('sweep', 'run', sweep)}` runs the {waiting} that are not done" if waiting else "")
    )
    if waiting:
        sys.exit(CANNOT_TELL)


def _check_engine(args: argparse.Namespace) -> None:
    """Raise UserError where the engine cannot run here, before anything is made or written."""
    from harness_ext.sweeps.engines import absence

    if lacking := absence(args.on):
        raise UserError(lacking)
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} must be 1 or more")


def _drive(args: argparse.Namespace, plan: SweepPlan, first: Callable[[], object] = lambda: None) -> None:
    from harness_ext.sweeps.driver import Driver
    from harness_ext.sweeps.engines import EngineOptions, engine

    _check_engine(args)
    _say_what_is_left_alone(plan)
    ingest = _ingest_of(plan)
    options = EngineOptions(jobs=args.jobs, slurm=plan.sweep.slurm)
    driver = Driver(plan, engine(args.on, options), _say, ingest, first, holds=args.on != "slurm")
    all_done = driver.run()
    _show(plan, args.on)
    if not all_done:
        sys.exit(CHECK_FAILED)


def _say_what_is_left_alone(plan: SweepPlan) -> None:
    """Tell of models of which `exclude` takes every recipe away: the baseline alone is run."""
    sweep = plan.sweep
    alone = [model.pretrained for model in sweep.models if sweep.all_recipes and not sweep.recipes_of(model)]
    if alone:
        more = f" and {len(alone) - _NAMES} more" if len(alone) > _NAMES else ""
        _say(f"note: `exclude` takes every recipe from {', '.join(alone[:_NAMES])}{more}: the baseline alone is run")


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def _ingest_of(plan: SweepPlan) -> Callable[[Sequence[Path]], bool]:
    """What takes run folders into the database beside them. One that somebody else holds is asked again later.

    Raises UserError where the place of the results cannot be used: every cell would find that out.
    """
    from harness_ext.runs.execution import DATABASE
    from harness_ext.storage.remote import RemoteResults, is_remote
    from leaderboard.errors import Busy
    from leaderboard.ingest import ingest

    remote = RemoteResults(plan.output) if is_remote(plan.output) else None
    if remote is not None:
        remote.check_writable()

    def take_in(paths: Sequence[Path]) -> bool:
        if remote is not None:
            for name, reason in remote.pull(plan.results).left_out.items():
                _say(f"{remote.url}/{name} is not taken: {reason}")
        there = [path for path in paths if path.is_dir()]
        try:
            report = ingest(there, plan.results / DATABASE) if there else None
        except Busy as busy:
            _say(f"{str(busy).rstrip('.')}; {len(there)} run folders wait, and nothing of them is lost")
            return False
        for rejected in report.rejected if report is not None else ():
            _say(f"{rejected.path} is not on the board: {rejected.reason}")
        plan.undo_damaged([rejected.path for rejected in report.rejected] if report is not None else ())
        return True

    return take_in


def _status(args: argparse.Namespace) -> None:
    from leaderboard.readers.sweep_state import State, rows

    plan = _read(args.sweep)
    state = plan.state(_say)
    if state is None:
        raise UserError(f"{plan.folder} has no sweep yet: `{_command('sweep', 'run', args.sweep)}` begins it")
    wanted: tuple[State, ...] = get_args(State) if args.all or args.form != "text" else ("failed", "lost", "running")
    _print(args.form, rows(state, wanted, blocked=True), wrap=("model", "recipes", "cell", "reason"))
    if args.form == "text":
        left = state.seconds_left
        print(f"{state.summary}{'' if left is None else f'; about {duration(left)} left'}")
        _print_not_made(state)
        begin = f"; start `{_command('sweep', 'run', args.sweep)}` again" if state.dead else ""
        print(f"driver: {state.driver or state.dead or 'none'}{begin}; files: {state.folder}")
    if state.count("done") < len(state.cells):
        sys.exit(CHECK_FAILED if state.count("failed") else CANNOT_TELL)


def _show(plan: SweepPlan, engine: str) -> None:
    from leaderboard.readers.sweep_state import rows, sweep_state

    state = sweep_state(plan.folder)
    if state is None:
        return
    _print("text", rows(state, ("failed",), blocked=True), wrap=("model", "recipes", "cell", "reason"))
    print(state.summary)
    _print_not_made(state)
    from harness_ext.runs.execution import DATABASE

    print(f"browse    {_command('leaderboard', '--database', plan.results / DATABASE)}", file=sys.stderr)


def _print_not_made(state: SweepState) -> None:
    for sentence in state.not_made:
        print(printable(f"control not made: {sentence}"))


_HIDDEN = ("log", "seconds", "not_made")


def _print(form: Form, rows: Sequence[Row], wrap: tuple[str, ...]) -> None:
    from leaderboard.terminal.listing import listed
    from leaderboard.terminal.output import written

    if form != "text":
        if text := written(form, rows):
            print(printable(text))
    elif rows:
        texts = [{key: _short(value) for key, value in row.items() if key not in _HIDDEN} for row in rows]
        print(printable(listed(texts, terminal_style().width, wrap)))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return "?" if value is None else str(value)
