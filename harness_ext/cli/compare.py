"""`lm_eval compare A B`: two runs, the second against the first, by the leaderboard's own statistics. Nothing is
stored.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness_ext.cli.ingest import add_database_argument
from harness_ext.cli.terminal import add_form_arguments, tell, terminal_style, write_cells
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from leaderboard.commands import RUN_HELP, command_about

if TYPE_CHECKING:
    from leaderboard.compare_runs import ControlledComparison


class Compare(RecipesCommand):
    """Compare two runs."""

    name = "compare"
    summary = "Compare two runs with paired statistics"
    description = (
        "Compare run B with run A, task by task: difference, interval, verdict. Nothing is stored, and the exit code is"
        " 0 whatever the verdicts say: `lm_eval gate` decides."
    )
    epilog = """
examples:
  $ lm_eval compare gemma-2b/baseline gemma-2b/laser
  $ lm_eval compare results/demo/baseline-78195ceb92 4f0c
  $ lm_eval compare demo/base demo/laser --json | jq -r '.[] | [.task, .verdict] | @tsv'
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("a", metavar="A", help=f"The run to compare with: {RUN_HELP}")
        parser.add_argument("b", metavar="B", help=f"The run to judge: {RUN_HELP}")
        add_database_argument(parser)
        add_form_arguments(parser)
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from leaderboard.board.named_runs import places_of_two
        from leaderboard.compare_runs import compare_paths, controls_beside, with_controls

        first, second = places_of_two(args.a, args.b, args.database)
        tell([*first.notes, *second.notes])
        pair = compare_paths(first.path, second.path, database=args.database)
        controls = [path for path in controls_beside(second.path) if path.resolve() != first.path.resolve()]
        compared = with_controls(pair, first.path, second.path, controls, args.database)
        if args.form == "text":
            _print(compared)
            if compared.controls:
                words = ("compare", str(compared.controls[0]), str(second.path))
                print(f"\ncontrol   {command_about(args.database, *words)}")
        else:
            tell(sentence for only in compared.unshared for sentence in only.sentences())
            write_cells(compared.cells, args.form)


def _print(compared: ControlledComparison) -> None:
    from leaderboard.terminal.format import plain
    from leaderboard.terminal.table import render, render_unshared

    style = terminal_style()
    table = render(compared.cells, width=style.width, color=style.color, of_pair=True)
    lines = render_unshared(compared.unshared, width=style.width)
    first, second = (plain(only.label) for only in compared.unshared)
    print(f"A is {first}, B is {second}; delta is B minus A")
    print("\n".join([table, *([""] if lines else []), *lines]))
