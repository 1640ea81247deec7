"""`lm_eval leaderboard`: open the page, on this machine only unless told otherwise."""

from __future__ import annotations

import argparse

from lm_eval._cli.subcommand import SubCommand

from harness_ext.cli.ingest import add_database_argument


class Leaderboard(SubCommand):
    """Serve the leaderboard's page."""

    def __init__(self, subparsers: argparse._SubParsersAction) -> None:
        self._parser = subparsers.add_parser(
            "leaderboard",
            help="Open the leaderboard in a browser",
            description="Serve the leaderboard: recipes x tasks against the baseline, with verdicts. Ctrl-C ends it.",
        )
        self._add_args()
        self._parser.set_defaults(func=self._execute)

    def _add_args(self) -> None:
        add_database_argument(self._parser)
        self._parser.add_argument(
            "--host",
            type=str,
            default="127.0.0.1",
            metavar="<address>",
            help="Address to listen on (default: 127.0.0.1; any other shows the results to that network)",
        )
        self._parser.add_argument(
            "--port", type=int, default=8501, metavar="<port>", help="Port to listen on (default: 8501)"
        )
        self._parser.add_argument("--open", action="store_true", help="Open a browser as well")

    @staticmethod
    def _execute(args: argparse.Namespace) -> None:
        from leaderboard.app.serve import serve

        serve(args.database, host=args.host, port=args.port, open_browser=args.open)
