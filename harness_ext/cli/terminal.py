"""What standard output can show, in which form it is asked for, and what is said beside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leaderboard.board.cell import Cell
    from leaderboard.terminal.board_table import BoardLook
    from leaderboard.terminal.output import Form, TerminalStyle

FORMS = {
    "json": "Print JSON, a list of objects",
    "markdown": "Print a Markdown table",
    "csv": "Print CSV",
}


def terminal_style() -> TerminalStyle:
    """The style of standard output: see `leaderboard.terminal.output`."""
    from leaderboard.terminal import output

    return output.terminal_style()


def board_look(database: Path) -> BoardLook:
    """How standard output has a board of a database: as wide as the terminal, and in ASCII where it can write nothing
    else.
    """
    from leaderboard.terminal.board_table import BoardLook

    style = terminal_style()
    return BoardLook(style.width, style.color, ascii_only=not _writes_signs(), database=database)


def _encoding() -> str:
    return sys.stdout.encoding or "ascii"


def _writes_signs() -> bool:
    from leaderboard.terminal.board_table import SIGNS

    try:
        SIGNS.encode(_encoding())
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def add_form_arguments(parser: argparse._ActionsContainer, default: str = "text") -> None:
    """The flags `--json`, `--markdown` and `--csv`, of which one may be given: `form` of the parsed arguments.

    With one, standard output has the data and nothing else.
    """
    forms = parser.add_mutually_exclusive_group()
    for form, text in FORMS.items():
        forms.add_argument(f"--{form}", dest="form", action="store_const", const=form, default=default, help=text)


def write_cells(cells: Sequence[Cell], form: Form) -> None:
    """Print judged cells in a form for other programs."""
    from leaderboard.board.frame import cell_rows
    from leaderboard.terminal.output import cells_shown, written

    if text := written(form, cell_rows(cells), cells_shown(cells)):
        print(text, flush=True)


def tell(notes: Iterable[str]) -> None:
    """Say something beside the data, on standard error."""
    from leaderboard.terminal.format import plain

    for note in notes:
        print(f"note: {plain(note)}", file=sys.stderr)
