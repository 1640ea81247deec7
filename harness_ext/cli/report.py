"""`lm_eval report`: the board of a model, or a comparison, as one file. The work is the leaderboard's."""

from __future__ import annotations

import argparse
import sys

from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from leaderboard.report.command import DESCRIPTION, add_arguments


class ReportCommand(RecipesCommand):
    """Write a report."""

    name = "report"
    summary = "Write a model's board or a comparison as one HTML file"
    description = DESCRIPTION

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_arguments(parser)
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from leaderboard.report.command import execute

        sys.exit(execute(args))
