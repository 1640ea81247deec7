"""`lm_eval show [RUN|MODEL]`: a model's board in the terminal, or everything about one run on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.cli.ingest import add_database_argument
from harness_ext.cli.terminal import add_form_arguments, board_look, tell, terminal_style, write_cells
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from leaderboard.commands import RUN_HELP

if TYPE_CHECKING:
    from leaderboard.board.cell import Cell
    from leaderboard.store.database import Store
    from leaderboard.store.naming import KnownRun


class _Meant(NamedTuple):
    """What is to be shown: a model's board, and of it one run, or all. notes: what was chosen among several."""

    model_key: str
    run_id: str | None = None
    notes: tuple[str, ...] = ()


class Show(RecipesCommand):
    """Show a model's board, or a run."""

    name = "show"
    summary = "Show a model's board, or a run in detail"
    description = (
        "Show the board of a model, recipes by tasks, best first, as the pages do; or with a run everything about it:"
        " every metric, interval and note. Without a name it is the board of the newest run's model."
    )
    epilog = """
examples:
  $ lm_eval show
  $ lm_eval show gemma-2b --controls
  $ lm_eval show gemma-2b/laser
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", metavar="MODEL|RUN", help=f"A model's name, or a run: {RUN_HELP}")
        parser.add_argument("--controls", action="store_true", help="Show controls under their recipe")
        parser.add_argument("--details", action="store_true", help="Everything of every row below the table")
        parser.add_argument(
            "--by", default="", metavar="TASK", help="Rank on this task (default: on all that all rows have)"
        )
        add_database_argument(parser)
        add_form_arguments(parser)
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from leaderboard.board.board import board
        from leaderboard.store import queries
        from leaderboard.store.database import open_store
        from leaderboard.terminal.format import plain

        with open_store(args.database, read_only=True) as store:
            meant = _meant(store, args.name)
            if meant is None:
                print("No results to show yet.")
                return
            cells = board(store, models=[meant.model_key])
            made = queries.ran_on(store, [meant.run_id]) if meant.run_id else {}
        tell(meant.notes)
        shown = [cell for cell in cells if meant.run_id in (None, cell.run_id)]
        if args.form != "text":
            write_cells(shown, args.form)
            return
        _check_task(args.by, cells)
        _print(cells, shown, args)
        if where := " ".join(ran_on.in_words() for ran_on in made.values()):
            print(f"\nmade on   {plain(where)}")


def _print(cells: Sequence[Cell], shown: Sequence[Cell], args: argparse.Namespace) -> None:
    from leaderboard.terminal.board_table import render_board
    from leaderboard.terminal.table import render

    only = None if len(shown) == len(cells) else {cell.run_id for cell in shown}
    # A run that was named is shown, also where it is a control.
    controls = args.controls or (only is not None and any(cell.control for cell in shown))
    print(render_board(cells, board_look(args.database), shown=only, controls=controls, by=args.by))
    if args.details or only is not None:
        style = terminal_style()
        print(f"\n{render(shown, width=style.width, color=style.color)}")
    if kept := retained_lines(shown, terminal_style().width):
        print("\n" + "\n".join(kept))


def retained_lines(cells: Sequence[Cell], width: int) -> list[str]:
    """LowRankArena's retained quality and its five ratios, of the edited runs that have all, under a headline; else
    nothing. width: columns of the terminal.
    """
    from leaderboard.board.retained_quality import retained_qualities
    from leaderboard.readers.records import BASELINE
    from leaderboard.terminal.listing import listed

    names = {cell.run_id: cell.name for cell in cells if cell.verdict != BASELINE}
    found = {run: retained for run, retained in retained_qualities(cells).items() if run in names}
    broken = any(retained.collapsed for retained in found.values())
    rows = []
    for run, retained in sorted(found.items(), key=lambda one: -one[1].quality):
        ratios = zip(("wikitext2", "c4", "choices", "mathqa", "mmlu"), retained.parts, strict=True)
        rows.append(
            {"Q. Ret.": f"{retained.quality:.3f}", **{part: f"{ratio:.3f}" for part, ratio in ratios}}
            | {"recipe": names[run]}
            | ({"collapsed on": ", ".join(retained.collapsed) or "-"} if broken else {})
        )
    if not rows:
        return []
    return [
        "retained quality: LowRankArena's Q. Ret., the mean of five ratios of edited and unedited, without an interval",
        listed(rows, width, wrap=("recipe", "collapsed on")),
    ]


def _meant(store: Store, name: str | None) -> _Meant | None:
    """What a name means; None in a store without runs. Raises `UnknownRun`."""
    from leaderboard.errors import UnknownRun
    from leaderboard.store.naming import known_runs, last_part, of_model, resolve

    runs = known_runs(store)
    if name is None:
        return _newest([run for run in runs if run.model == runs[0].model]) if runs else None
    called = [run for run in runs if name in (run.model, last_part(run.model))]
    if called:
        return _newest(called)
    try:
        found = resolve(store, name)
    except UnknownRun:
        begun = of_model(runs, name)
        if len({run.model for run in begun}) != 1:
            raise
        return _newest(begun)
    return _Meant(found.run.model_key, found.run.run_id, found.notes)


def _newest(runs: Sequence[KnownRun]) -> _Meant:
    """The identity of a model that the newest run is of; the runs come newest first."""
    from leaderboard.store.naming import last_part

    others = list(dict.fromkeys(run.identity for run in runs if run.model_key != runs[0].model_key))
    if not others:
        return _Meant(runs[0].model_key)
    named = f"{runs[0].model} has {len(others) + 1} identities: the one with the newest run is shown"
    return _Meant(runs[0].model_key, None, (f'{named}; "{last_part(runs[0].model)} ({others[0]})" is another',))


def _check_task(task: str, cells: Sequence[Cell]) -> None:
    from harness_ext.errors import UserError, nearest

    tasks = {cell.task for cell in cells if cell.metric}
    if task and task not in tasks:
        raise UserError(f"--by {task}: the board has no such task: {nearest(task, tasks)}")
