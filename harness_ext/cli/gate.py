"""`lm_eval gate`: may this run replace the last one? The work is the leaderboard's."""

from __future__ import annotations

import argparse
import sys

from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from leaderboard.gate.command import DESCRIPTION, add_arguments


class Gate(RecipesCommand):
    """Judge a run by a policy."""

    name = "gate"
    summary = "Judge a run by a policy: pass, warn, fail or undecided"
    description = DESCRIPTION
    epilog = """
examples:
  $ lm_eval gate --policy gate.yaml --candidate gemma-2b/laser
  $ lm_eval gate --policy gate.yaml --candidate new/demo/laser-2 --baseline old/demo/laser-1
  $ lm_eval gate --policy gate.yaml --candidate 4f0c --markdown >> "$GITHUB_STEP_SUMMARY"
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_arguments(parser)
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from harness_ext.cli.terminal import terminal_style
        from leaderboard.gate.command import execute

        style = terminal_style()
        sys.exit(execute(args, width=style.width, color=style.color))
