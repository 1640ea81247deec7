"""`lm_eval publish --to postgres://...`: the board for a team, in a PostgreSQL. The work is the leaderboard's."""

from __future__ import annotations

import argparse

from harness_ext.cli.ingest import add_database_argument
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand


class Publish(RecipesCommand):
    """Write the board to a PostgreSQL."""

    name = "publish"
    summary = "Write the leaderboard to a PostgreSQL"
    description = (
        "Write the tables of the leaderboard, and what its views show, into a schema of a PostgreSQL, in one"
        " transaction; again, to bring it up to date. `lm_eval leaderboard --database postgres://...` shows it. Leave"
        " the password to PGPASSWORD or ~/.pgpass. Needs `pip install 'lm-eval-recipes[postgres]'`."
    )

    epilog = """
examples:
  $ lm_eval publish --to postgres://team@db.example.org/evaluations
  $ lm_eval publish --to postgres://team@db.example.org/evaluations --schema lm_eval_nightly
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_database_argument(parser)
        parser.add_argument(
            "--to", type=str, required=True, metavar="<address>", help="postgres://USER@HOST:PORT/DATABASE"
        )
        add_schema_argument(parser)
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from leaderboard.postgres.address import PostgresAddress
        from leaderboard.postgres.publish import publish

        address = PostgresAddress(args.to, args.schema)
        board = publish(args.database, address)
        print(
            f"{board.tables} tables with {board.rows:,} rows, {board.changed} of them changed: {address}, schema"
            f" {address.schema}"
        )


def add_schema_argument(parser: argparse.ArgumentParser) -> None:
    """The flag that names the schema in a PostgreSQL."""
    parser.add_argument(
        "--schema",
        type=str,
        default="lm_eval",
        metavar="<name>",
        help="Schema of the PostgreSQL that holds the board, and nothing else (default: lm_eval)",
    )
