"""`lm_eval runs`: what the leaderboard holds, and taking a run off it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness_ext.cli.ingest import add_database_argument
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand

if TYPE_CHECKING:
    from leaderboard.store.queries import RunRow


class Runs(RecipesCommand):
    """List runs, delete one, or take a deletion back."""

    name = "runs"
    summary = "List the leaderboard's runs, or take one off it"
    description = (
        "List what the leaderboard holds, or take a run off it. The run's files are never touched; it is"
        " remembered that ingest must leave them out."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", required=True)
        listed = actions.add_parser("list", help="List all runs, or those that were deleted")
        listed.add_argument("--deleted", action="store_true", help="Those that are off the board, with the reasons")
        gone = actions.add_parser("delete", help="Take a run off the board; its files stay")
        gone.add_argument("run", metavar="RUN", help="The run's folder or results file, or the beginning of its id")
        gone.add_argument("--reason", required=True, metavar="<text>", help="Why; kept on record")
        back = actions.add_parser("restore", help="Let a deleted run back in at the next ingest")
        back.add_argument("run", metavar="ID", help="The beginning of its id, from `runs list --deleted`")
        for action, function in ((listed, self._list), (gone, self._delete), (back, self._restore)):
            add_database_argument(action)
            action.set_defaults(func=function)

    @staticmethod
    def _list(args: argparse.Namespace) -> None:
        from leaderboard.board.labels import stored_names
        from leaderboard.store import queries
        from leaderboard.store.database import open_store
        from leaderboard.store.deletions import deletions
        from leaderboard.terminal.format import plain

        if args.deleted:
            for entry in deletions(args.database):
                print(plain(f"{entry.run_id[:12]}  {entry.logged_at:%Y-%m-%d %H:%M} UTC  {entry.path}: {entry.reason}"))
            return
        with open_store(args.database) as store:
            names = stored_names(store)
            for run in queries.runs(store):
                print(_line(run, names[run.run_id]))

    @staticmethod
    def _delete(args: argparse.Namespace) -> None:
        from leaderboard.store.deletions import delete

        entry = delete(args.database, args.run, args.reason)
        print(
            f"{entry.run_id[:12]} is off the board; its files stay in {entry.path}. `lm_eval runs restore"
            f" {entry.run_id[:12]}` takes this back"
        )

    @staticmethod
    def _restore(args: argparse.Namespace) -> None:
        from leaderboard.commands import ingest_command
        from leaderboard.store.deletions import take_back

        entry = take_back(args.database, args.run)
        print(f"{entry.run_id[:12]} may come back: `{ingest_command(args.database, str(entry.path))}`")


def _line(run: RunRow, name: str) -> str:
    from leaderboard.terminal.format import plain

    started = f"{run.started:%Y-%m-%d %H:%M}" if run.started else "unknown date    "
    return plain(f"{run.run_id[:12]}  {started}  {run.status:8}  {name} on {run.model_name}  {run.path}")
