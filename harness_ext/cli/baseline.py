"""`lm_eval baseline`: pin the run that a model's others are measured against, and list the pins."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lm_eval._cli.subcommand import SubCommand

from harness_ext.cli.ingest import add_database_argument

if TYPE_CHECKING:
    from leaderboard.pins import Pin


class Baseline(SubCommand):
    """Pin baselines and list the pins."""

    def __init__(self, subparsers: argparse._SubParsersAction) -> None:
        self._parser = subparsers.add_parser(
            "baseline",
            help="Choose the run that others are compared with",
            description="Pin a run as its model's baseline, or list the pins. Without a pin, a model's earliest unedited run of the same settings stands in.",
        )
        self._add_args()

    def _add_args(self) -> None:
        actions = self._parser.add_subparsers(metavar="ACTION", required=True)
        chosen = actions.add_parser("set", help="Make a run the baseline of its model; earlier pins stay on record")
        chosen.add_argument("run", metavar="RUN", help="The run's folder or results file, or the beginning of its id")
        chosen.add_argument("--reason", required=True, metavar="<text>", help="Why this run; kept beside the pin")
        listed = actions.add_parser("list", help="List all pins, earliest first; the last of a model counts")
        for parser, function in ((chosen, self._set), (listed, self._list)):
            add_database_argument(parser)
            parser.set_defaults(func=function)

    @staticmethod
    def _execute(args: argparse.Namespace) -> None:
        """Never reached: an action is required."""

    @staticmethod
    def _set(args: argparse.Namespace) -> None:
        from leaderboard.pins import pin

        print(f"pinned: {_line(pin(args.database, args.run, args.reason))}")

    @staticmethod
    def _list(args: argparse.Namespace) -> None:
        from leaderboard.pins import pins

        found = pins(args.database)
        for entry in found:
            print(f"{'* ' if entry.current else '  '}{_line(entry)}")
        print("* counts now" if found else "no baseline is pinned: a model's earliest unedited run of the same settings stands in")


def _line(pin: Pin) -> str:
    from leaderboard.wording import plain

    recipe = pin.recipe or "(no longer in the leaderboard)"
    return plain(f"{pin.run_id[:12]} {recipe} on {pin.model}, {pin.pinned_at:%Y-%m-%d %H:%M} UTC: {pin.reason}")
