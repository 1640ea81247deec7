"""`lm_eval leaderboard`: open the page, on this machine only unless told otherwise."""

from __future__ import annotations

import argparse

from harness_ext.cli.publish import add_schema_argument
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from leaderboard.commands import DEFAULT_DATABASE
from leaderboard.terminal.path_flags import database_or_postgres


class Leaderboard(RecipesCommand):
    """Serve the leaderboard's page."""

    name = "leaderboard"
    summary = "Open the leaderboard in a browser"
    description = "Serve the leaderboard: recipes x tasks against the baseline, with verdicts. Ctrl-C ends it."

    epilog = """
examples:
  $ lm_eval leaderboard --open
  $ lm_eval leaderboard --database results/leaderboard.duckdb --port 8600
  $ lm_eval leaderboard --database postgres://team@db.example.org/evaluations
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--database",
            type=database_or_postgres,
            default=DEFAULT_DATABASE,
            metavar="<path>",
            help=(
                f"The leaderboard's database (default: {DEFAULT_DATABASE}, wherever the results lie), or"
                " postgres://USER@HOST/DATABASE for one that `lm_eval publish` wrote"
            ),
        )
        add_schema_argument(parser)
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
        from leaderboard.app.serve import serve_place

        serve_place(args.database, schema=args.schema, host=args.host, port=args.port, open_browser=args.open)
