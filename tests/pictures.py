"""The two pictures of the README, made from a real run: `python tests/pictures.py --results DIR`, or `make pictures`.

`board.png` is the board of the model that was edited last, in a headless Chromium, 1280 pixels wide, in the light
theme; `terminal.svg` the table that a run prints, at 100 columns. Both are of what the database in DIR holds; with
`--tasks` they show these tasks alone, with the verdicts that they have on the whole board.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection
from io import StringIO
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PICTURES = ROOT / "leaderboard" / "pictures"
COLUMNS, HEIGHT = 100, 760
WAIT_MS = 60_000


def terminal(database: Path, tasks: Collection[str]) -> str:
    """The board as the terminal shows it, as SVG in the reader's own monospaced font: nothing is fetched."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    from leaderboard.board.board import board
    from leaderboard.store.database import open_store
    from leaderboard.terminal.board_table import BoardLook, render_board

    with open_store(database, read_only=True) as store:
        cells = [cell for cell in board(store) if not tasks or cell.task in tasks]
    console = Console(record=True, width=COLUMNS, file=StringIO(), color_system="truecolor", force_terminal=True)
    console.print(Text.from_ansi(render_board(cells, BoardLook(COLUMNS, color=True, ascii_only=False))), soft_wrap=True)
    svg = console.export_svg(title="lm_eval run --recipe ... --control ...", theme=MONOKAI, unique_id="table")
    return re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)


def photograph(database: Path, tasks: Collection[str], path: Path) -> None:
    """Write the board's page, as far as its table."""
    from tests.leaderboard.app.driving import chromium_page, serving

    with serving(database) as url, chromium_page(HEIGHT) as page:
        page.emulate_media(color_scheme="light")
        page.goto(f"{url}/board?{urlencode([('tasks', task) for task in tasks])}")
        page.locator("[data-testid=stDataFrame] canvas").first.wait_for(timeout=WAIT_MS)
        page.wait_for_timeout(3_000)  # the table settles
        page.screenshot(path=path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the pictures of the README.")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of a run, with its database")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="these tasks alone (default: all)")
    options = parser.parse_args()
    database = options.results / "leaderboard.duckdb"
    if not database.is_file():
        sys.exit(f"error: {database} is absent: `make demo` makes one")
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "terminal.svg").write_text(terminal(database, options.tasks), encoding="utf-8")
    photograph(database, options.tasks, PICTURES / "board.png")
    print(f"written: {PICTURES}")


if __name__ == "__main__":
    main()
