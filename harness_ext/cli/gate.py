"""`lm_eval gate`: may this run replace the last one? The work is the leaderboard's."""

from __future__ import annotations

import argparse
import sys

from lm_eval._cli.subcommand import SubCommand

from leaderboard.gate.command import DESCRIPTION, add_arguments


class Gate(SubCommand):
    """Judge a run by a policy."""

    def __init__(self, subparsers: argparse._SubParsersAction) -> None:
        self._parser = subparsers.add_parser(
            "gate", help="Judge a run by a policy: pass, warn, fail or undecided", description=DESCRIPTION
        )
        self._add_args()
        self._parser.set_defaults(func=self._execute)

    def _add_args(self) -> None:
        add_arguments(self._parser)

    @staticmethod
    def _execute(args: argparse.Namespace) -> None:
        from harness_ext.cli.terminal import terminal_style
        from leaderboard.gate.command import execute

        style = terminal_style()
        sys.exit(execute(args, width=style.width, color=style.color))
