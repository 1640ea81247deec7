"""`lm_eval baseline`: choose the run that a model's others, or later ones of a recipe, are measured against, and list
the choices.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness_ext.cli.ingest import add_database_argument
from harness_ext.cli.terminal import add_form_arguments, tell
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from leaderboard.commands import RUN_HELP

if TYPE_CHECKING:
    from leaderboard.store.pins import Pin


class Baseline(RecipesCommand):
    """Choose baselines and list the choices."""

    name = "baseline"
    summary = "Choose the run that others are compared with"
    description = (
        "Choose the runs that others are measured against. An unedited run becomes its model's baseline;"
        " without one, a model's latest unedited run of the same task and settings stands in. An edited run is"
        " blessed: `lm_eval gate` compares later runs of its recipe with it. Alone it lists."
    )

    epilog = """
examples:
  $ lm_eval baseline
  $ lm_eval baseline set gemma-2b/baseline --reason "of the new machine"
  $ lm_eval baseline set gemma-2b/laser --reason "the release"
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="[ACTION]")
        chosen = actions.add_parser(
            "set",
            help=(
                "Pin an unedited run as its model's baseline, or bless an edited one for its recipe; earlier choices"
                " stay on record"
            ),
        )
        chosen.add_argument("run", metavar="RUN", help=f"{RUN_HELP[0].upper()}{RUN_HELP[1:]}")
        chosen.add_argument("--reason", required=True, metavar="<text>", help="Why this run; kept on record")
        chosen.add_argument(
            "--base",
            action="store_true",
            help="Make an edited run, too, the baseline that its model's others are compared with",
        )
        listed = actions.add_parser(
            "list", help="List all choices, earliest first; the last of a model, or of a model and recipe, counts"
        )
        add_database_argument(chosen, inner=True)
        chosen.set_defaults(func=self._set)
        for action, inner in ((parser, False), (listed, True)):
            add_database_argument(action, inner=inner)
            add_form_arguments(action, default=argparse.SUPPRESS if inner else "text")
            action.set_defaults(func=self._list)

    @staticmethod
    def _set(args: argparse.Namespace) -> None:
        from leaderboard.board.named_runs import resolve_in
        from leaderboard.store.pins import choose

        if not args.reason.strip():
            raise UserError("a choice needs a reason: say in --reason why this run")
        found = resolve_in(args.database, args.run)
        tell(found.notes)
        chosen = choose(args.database, found.run.run_id, args.reason, as_base=args.base)
        print(f"{'blessed' if chosen.blessed else 'pinned'}: {_line(chosen)}")

    @staticmethod
    def _list(args: argparse.Namespace) -> None:
        from leaderboard.store.pins import pins
        from leaderboard.terminal.output import written

        choices = pins(args.database)
        none = "no baseline is pinned: a model's latest unedited run of the same task and settings stands in"
        if args.form != "text":
            if not choices:
                tell([none])
            print(written(args.form, [entry._asdict() for entry in choices]))
            return
        for entry in choices:
            print(f"{'* ' if entry.current else '  '}{'blessed' if entry.blessed else 'pinned '} {_line(entry)}")
        print("* counts now" if choices else none)


def _line(pin: Pin) -> str:
    from leaderboard.terminal.format import plain

    recipe = pin.recipe or "(no longer in the leaderboard)"
    return plain(f"{pin.run_id[:12]} {recipe} on {pin.model}, {pin.pinned_at:%Y-%m-%d %H:%M} UTC: {pin.reason}")
