"""What the terminal can show: its width, and whether it wants colour."""

from __future__ import annotations

import os
import shutil
import sys
from typing import NamedTuple


class TerminalStyle(NamedTuple):
    """Columns of the terminal, and whether to colour."""

    width: int
    color: bool


def terminal_style() -> TerminalStyle:
    """The style of standard output: 120 columns and no colour where it is no terminal, or where `NO_COLOR` is set."""
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((120, 24)).columns
    return TerminalStyle(width, is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb")
