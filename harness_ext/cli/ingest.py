"""`lm_eval ingest PATH...`: take run folders, or plain lm-eval output, into the leaderboard's database."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lm_eval._cli.subcommand import SubCommand

from leaderboard.advice import DEFAULT_DATABASE


def add_database_argument(parser: argparse.ArgumentParser) -> None:
    """The flag that names the database, the same for every command that reads or writes it."""
    parser.add_argument(
        "--database", type=Path, default=DEFAULT_DATABASE, metavar="<path>", help=f"The leaderboard's database (default: {DEFAULT_DATABASE}, wherever the results lie)"
    )


class Ingest(SubCommand):
    """Add results to the leaderboard."""

    def __init__(self, subparsers: argparse._SubParsersAction) -> None:
        self._parser = subparsers.add_parser(
            "ingest",
            help="Add results to the leaderboard",
            description="Add run folders, or the output of plain lm-eval from any machine, to the leaderboard. What it holds already is left alone. "
            "The database is the one that --database names, also where PATH holds another.",
        )
        self._add_args()
        self._parser.set_defaults(func=self._execute)

    def _add_args(self) -> None:
        self._parser.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="Folders (searched to the bottom) or results_*.json files; default: the database's folder")
        add_database_argument(self._parser)
        self._parser.add_argument("--rebuild", action="store_true", help="Make the database anew from the paths; the run folders are the truth, it is an index")
        self._parser.add_argument("--timeout", type=float, default=30.0, metavar="<seconds>", help="How long to wait for another writer (default: 30)")

    @staticmethod
    def _execute(args: argparse.Namespace) -> None:
        from leaderboard.ingest import ingest

        paths = args.paths or [args.database.parent]
        report = ingest(paths, args.database, rebuild=args.rebuild, timeout_s=args.timeout)
        print(f"{len(report.added)} added, {len(report.duplicates)} known already, {len(report.rejected)} rejected: {args.database}")
        for rejected in report.rejected:
            print(f"rejected: {rejected.path}: {rejected.reason}", file=sys.stderr)
        if report.rejected:
            sys.exit(1)
