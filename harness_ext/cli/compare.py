"""`lm_eval compare A B`: two runs, the second against the first, by the leaderboard's own statistics. Nothing is
stored.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from harness_ext.lm_eval_adapter.subcommand import RecipesCommand


class Compare(RecipesCommand):
    """Compare two run folders or results files."""

    name = "compare"
    summary = "Compare two runs with paired statistics"
    description = "Compare run B with run A, task by task: difference, interval, verdict."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "a", type=Path, metavar="A", help="The run to compare with: its folder or its results_*.json"
        )
        parser.add_argument("b", type=Path, metavar="B", help="The run to judge: its folder or its results_*.json")
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from harness_ext.cli.terminal import terminal_style
        from leaderboard.compare_runs import compare_paths, controls_beside
        from leaderboard.terminal.table import render, render_unshared

        style = terminal_style()
        compared = compare_paths(args.a, args.b)
        lines = render_unshared(compared.unshared, width=style.width)
        print(
            "\n".join([render(compared.cells, width=style.width, color=style.color), *([""] if lines else []), *lines])
        )
        controls = [control for control in controls_beside(args.b) if control.resolve() != args.a.resolve()]
        if controls:
            print(f"\ncontrol   lm_eval compare {shlex.join(map(str, (controls[0], args.b)))}")
