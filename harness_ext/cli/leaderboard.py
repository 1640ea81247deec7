"""`lm_eval leaderboard`: open the page, on this machine only unless told otherwise."""

from __future__ import annotations

import argparse

from harness_ext.cli.ingest import add_database_argument
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand


class Leaderboard(RecipesCommand):
    """Serve the leaderboard's page."""

    name = "leaderboard"
    summary = "Open the leaderboard in a browser"
    description = "Serve the leaderboard: recipes x tasks against the baseline, with verdicts. Ctrl-C ends it."

    epilog = """
examples:
  $ lm_eval leaderboard --open
  $ lm_eval leaderboard --database results/leaderboard.duckdb --port 8600
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_database_argument(parser)
        parser.add_argument(
            "--host",
            type=str,
            default="127.0.0.1",
            metavar="<address>",
            help="Address to listen on (default: 127.0.0.1; any other shows the results to that network)",
        )
        parser.add_argument(
            "--port", type=int, default=8501, metavar="<port>", help="Port to listen on (default: 8501)"
        )
        parser.add_argument("--open", action="store_true", help="Open a browser as well")
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from leaderboard.app.serve import serve

        serve(args.database, host=args.host, port=args.port, open_browser=args.open)
