"""`lm-eval-recipes doctor`: check the installation, and say how to mend it. Exit code 0 where it is whole, else 1."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import NamedTuple

from harness_ext.cli.exit_codes import CHECK_FAILED
from harness_ext.cli.habits import PACKAGES
from harness_ext.cli.ingest import add_database_argument
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand


class Finding(NamedTuple):
    """One line of the report; `level` is `ok`, `note` (nothing to do) or `FAIL`."""

    level: str
    text: str


class Doctor(RecipesCommand):
    """Check the installation."""

    name = "doctor"
    logs = True
    summary = "Check the installation"
    description = (
        "Check the installation: versions, scripts, entry points, the parts of lm-eval that are relied on, the task"
        " index, the database. Exit code 1 where something needs mending."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_database_argument(parser)
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        failed = False
        for finding in findings(args.database):
            print(f"{finding.level:<5} {finding.text}", flush=True)
            failed |= finding.level == "FAIL"
        if failed:
            sys.exit(CHECK_FAILED)


def findings(database: Path) -> Iterator[Finding]:
    """All checks, in the order in which a user would need them."""
    yield from _versions()
    yield from _scripts()
    yield from _entry_points()
    yield from _model_and_tasks()
    yield from borrowed_names()
    yield _task_index()
    yield _database(database)


def _versions() -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()} at {sys.prefix}")
    for name in PACKAGES:
        try:
            yield Finding("ok", f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding("FAIL", f"{name} is not installed in this environment: pip install {name}")


def _scripts() -> Iterator[Finding]:
    from harness_ext.cli.installation import environment_scripts, mend_command, path_script

    scripts = environment_scripts()
    for item in scripts:
        if item.path is None:
            yield Finding(
                "note",
                f"no script {item.name} in this environment; `lm-eval-recipes` and `python -m harness_ext` do the same",
            )
        elif item.owner == "ours":
            yield Finding("ok", f"{item.path} is ours")
        else:
            yield Finding("FAIL", f"{item.path} was taken back by lm-eval and knows no --recipe: {mend_command()}")
    on_path = path_script()
    if on_path.path is None:
        yield Finding(
            "note",
            "this environment's scripts are not on PATH: activate it, or call"
            f" {scripts[0].path or 'python -m harness_ext'}",
        )
    elif scripts[0].path and not on_path.path.samefile(scripts[0].path):
        yield Finding(
            "FAIL" if on_path.owner != "ours" else "note",
            f"PATH finds another lm_eval first ({on_path.path}, {on_path.owner}): activate this environment, or call"
            f" {scripts[0].path}",
        )


def _entry_points() -> Iterator[Finding]:
    from harness_ext import BACKEND, BACKEND_TARGET
    from harness_ext.cli.installation import mend_command

    declared = [point.value for point in entry_points(group="lm_eval.models", name=BACKEND)]
    if BACKEND_TARGET in declared:
        yield Finding("ok", f"entry point lm_eval.models: {BACKEND}")
    else:
        yield Finding(
            "FAIL",
            f"the entry point {BACKEND} is not declared, so that later versions of lm-eval will not find it:"
            f" {mend_command()}",
        )


def _model_and_tasks() -> Iterator[Finding]:
    from harness_ext.demo import demo_path
    from harness_ext.lm_eval_adapter.task_index import tasks_root

    weights = demo_path() / "model.safetensors"
    yield (
        Finding("ok", f"embedded model at {demo_path()}")
        if weights.is_file()
        else Finding(
            "FAIL", f"the embedded model is missing ({weights}): reinstall, or `make demo-model` in a checkout"
        )
    )
    files = list(tasks_root().rglob("*.yaml"))
    yield (
        Finding("ok", f"{len(files)} task files at {tasks_root()}")
        if files
        else Finding("FAIL", f"our task files are missing ({tasks_root()}): reinstall")
    )


def borrowed_names() -> Iterator[Finding]:
    """Whether lm-eval still has what this package relies on; the part that takes a while, since it loads torch."""
    from harness_ext.lm_eval_adapter.borrowed import BORROWED, problem
    from harness_ext.lm_eval_adapter.fast_import import quick_imports

    with quick_imports():
        problems = {entry: text for entry in BORROWED if (text := problem(entry))}
    for entry, text in problems.items():
        mend = "without it starts are slow" if entry.optional else "install a version of lm-eval that has it"
        yield Finding("note" if entry.optional else "FAIL", f"{text}: {mend}")
    if not problems:
        yield Finding("ok", f"lm-eval has all {len(BORROWED)} names that this package relies on")


def _task_index() -> Finding:
    import lm_eval

    from harness_ext.lm_eval_adapter import task_cache
    from harness_ext.lm_eval_adapter.task_index import default_root, find_seam, tasks_root

    if find_seam() is None:
        return Finding(
            "note",
            f"lm-eval {lm_eval.__version__} finds tasks in a way this version does not know: starts are slow, and our"
            f" tasks need --include_path {tasks_root()}",
        )
    root = default_root()
    path = task_cache.cache_file(root, lm_eval.__version__)
    if path is None:
        return Finding(
            "note",
            "no task index: there is no home folder for it, so every start parses all task files; set"
            " LM_EVAL_RECIPES_CACHE",
        )
    if not path.is_file():
        return Finding("note", f"no task index yet at {path}: the first run makes it")
    if task_cache.read(path, task_cache.fingerprint(root)) is None:
        return Finding("note", f"the task index at {path} is stale: the next run makes it anew")
    return Finding("ok", f"task index at {path}")


def _database(path: Path) -> Finding:
    from leaderboard.errors import LeaderboardError
    from leaderboard.store.database import open_store

    if not path.exists():
        return Finding("note", f"no database at {path}: the first run with --recipe makes it")
    try:
        with open_store(path, read_only=True, timeout_s=5.0):
            return Finding("ok", f"database at {path}")
    except LeaderboardError as error:
        return Finding("FAIL", str(error))
