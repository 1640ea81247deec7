"""`lm_eval ingest PATH...`: take run folders, or plain lm-eval output, into the leaderboard's database."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness_ext.cli.exit_codes import CHECK_FAILED, MISTAKE
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from harness_ext.progress import progress_for
from harness_ext.storage.remote import is_remote
from leaderboard.commands import DEFAULT_DATABASE, advised
from leaderboard.readers.addresses import is_postgres
from leaderboard.terminal.path_flags import database_path, local_path

if TYPE_CHECKING:
    from leaderboard.ingest import IngestReport
    from leaderboard.readers.records import Rejection

_FOREIGN_SECONDS = 2.0
"""How long a busy database is waited for, to name the harnesses of foreign runs."""
_NAMED_PLACES = 5
_MODELS_NAMED = 3


def add_database_argument(parser: argparse.ArgumentParser, *, inner: bool = False) -> None:
    """The flag that names the database, the same for every command that reads or writes it. inner: for an action of a
    command that has the flag too, so that it may stand before the action's name.
    """
    parser.add_argument(
        "--database",
        type=database_path,
        default=argparse.SUPPRESS if inner else DEFAULT_DATABASE,
        metavar="<path>",
        help=f"The leaderboard's database (default: {DEFAULT_DATABASE}, wherever the results lie)",
    )


class Ingest(RecipesCommand):
    """Add results to the leaderboard."""

    name = "ingest"
    summary = "Add results to the leaderboard"
    description = (
        "Add run folders, or the output of plain lm-eval from any machine, to the leaderboard. What it holds"
        " already is left alone. The database is the one that --database names, also where PATH holds another."
        " Files below a folder that are no runs are told and refused; a PATH that is not there, or is refused itself,"
        " is an error, after the others have been taken."
    )

    epilog = """
examples:
  $ lm_eval ingest results
  $ lm_eval ingest ~/old_results /mnt/cluster/results --strict
  $ lm_eval ingest s3://bucket/results
  $ lm_eval ingest --rebuild
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "paths",
            type=_place,
            nargs="*",
            metavar="PATH",
            help=(
                "Folders (searched to the bottom), results_*.json files, or URLs (s3://bucket/results), whose new runs"
                " are brought into the database's folder first; default: that folder"
            ),
        )
        add_database_argument(parser)
        parser.add_argument(
            "--rebuild",
            action="store_true",
            help="Make the database anew from the paths; the run folders are the truth, it is an index",
        )
        parser.add_argument(
            "--strict", action="store_true", help="End with 1 where a file anywhere below the paths was refused"
        )
        parser.add_argument(
            "--watch",
            type=float,
            nargs="?",
            const=5.0,
            default=None,
            metavar="<seconds>",
            help="Keep looking for new runs, every so many seconds (default: 5), until Ctrl-C",
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=30.0,
            metavar="<seconds>",
            help="How long to wait for another writer (default: 30)",
        )
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from leaderboard.ingest import ingest

        left_out: dict[str, str] = {}
        if args.watch is not None and any(isinstance(place, str) for place in args.paths):
            raise UserError("--watch looks at folders: ingest URLs without it, as often as you like")
        paths = _brought(args.paths, args.database.parent, left_out) if args.paths else [args.database.parent]
        if args.watch is not None:
            _watch(paths, args)
        below = ", ".join(map(str, paths)) if len(paths) <= _NAMED_PLACES else f"{len(paths):,} folders"
        with progress_for(quiet=False).stage(f"reading what lies below {below}"):
            report = ingest(paths, args.database, rebuild=args.rebuild, timeout_s=args.timeout)
        wrong = _mistaken(report, [place for place in args.paths or paths if isinstance(place, Path)])
        _tell(report, args.database, wrong)
        if wrong:
            sys.exit(MISTAKE)
        if (report.rejected or left_out) and args.strict:
            sys.exit(CHECK_FAILED)


def _place(text: str) -> Path | str:
    """A path, or a URL as it is."""
    return text if is_remote(text) and not is_postgres(text) else local_path(text)


def _brought(places: Sequence[Path | str], folder: Path, left_out: dict[str, str]) -> list[Path]:
    """The places as paths: new runs of URLs are brought into a folder, and all runs of theirs that are there stand for
    them. left_out: gets what was not taken, and why.
    """
    from harness_ext.storage.remote import RemoteResults

    paths: list[Path] = []
    for place in places:
        if isinstance(place, Path):
            paths.append(place)
            continue
        remote = RemoteResults(place)
        with progress_for(quiet=False).stage(f"bringing runs from {remote.url}"):
            pulled = remote.pull(folder)
        print(f"{len(pulled.new)} brought from {remote.url} into {folder}", flush=True)
        for name, reason in pulled.left_out.items():
            left_out[f"{remote.url}/{name}"] = reason
        paths += pulled.here
    for url, reason in left_out.items():
        print(f"rejected: {url}: {reason}", file=sys.stderr)
    return list(dict.fromkeys(paths))


def _mistaken(report: IngestReport, paths: Sequence[Path]) -> list[Rejection]:
    """What was refused and is no mere file in a tree: a path that was named itself, or files that are gone."""
    named = {path.resolve() for path in paths}
    return [item for item in report.rejected if item.path.resolve() in named or not os.path.exists(item.path)]


def _watch(paths: list[Path], args: argparse.Namespace) -> NoReturn:
    from leaderboard.watch import Watch

    if args.rebuild or args.watch <= 0:
        raise UserError("--watch takes a number of seconds above 0, and goes without --rebuild")
    print(f"watching {', '.join(map(str, paths))}; Ctrl-C ends it", file=sys.stderr)
    watch = Watch(paths, args.database, lambda report: _tell(report, args.database), timeout_s=args.timeout)
    try:
        watch.run(args.watch)
    except KeyboardInterrupt:
        sys.exit(0)
    raise AssertionError("it watches until it is interrupted")


def _tell(report: IngestReport, database: Path, wrong: Sequence[Rejection] = ()) -> None:
    from leaderboard.terminal.format import plain

    listed = advised(database, "runs", "list", "--deleted")
    deleted = f", {len(report.deleted)} left out since deleted ({listed})" if report.deleted else ""
    print(
        f"{len(report.added)} added, {len(report.duplicates)} known already, {len(report.rejected)} rejected{deleted};"
        f" database: {database}",
        flush=True,
    )
    for line in [*_foreign(report, database), *report.notes]:
        print(plain(line), flush=True)
    for rejected in report.rejected:
        word = "error" if rejected in wrong else "rejected"
        print(plain(f"{word}: {rejected.path}: {rejected.reason}"), file=sys.stderr)


def _foreign(report: IngestReport, database: Path) -> Iterator[str]:
    """A line for each other harness, and each service, that the runs are of."""
    from leaderboard.errors import Busy
    from leaderboard.store.database import open_store
    from leaderboard.store.queries import foreign_runs

    ids = [*report.added, *report.known]
    if not ids:
        return
    try:
        with open_store(database, read_only=True, timeout_s=_FOREIGN_SECONDS) as store:
            found = foreign_runs(store, ids)
    except Busy:
        return  # what was taken is told already, and the board says it too
    for scorer, models, runs in found:
        more = f" and {len(models) - _MODELS_NAMED} more" if len(models) > _MODELS_NAMED else ""
        names = f"{', '.join(models[:_MODELS_NAMED])}{more}"
        yield f"{runs} of them {'is' if runs == 1 else 'are'} of {scorer}: {names}"
