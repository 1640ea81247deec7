"""The flags of `lm_eval report`, and what it does: shared with `python -m leaderboard report`, which needs no torch."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from contextlib import suppress
from pathlib import Path

from leaderboard.commands import DEFAULT_DATABASE, RUN_HELP
from leaderboard.errors import LeaderboardError
from leaderboard.terminal.path_flags import database_path, local_path

DESCRIPTION = (
    "Write the board of a model, or a comparison of runs, as one file that needs no server and no network: a table that"
    " sorts, plots, the numbers of every task, and how it was made."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="MODEL|RUN",
        help=(
            "A model of the leaderboard (default: the one edited last), or runs, of which the first is what the others"
            f" are compared with; a run is {RUN_HELP}"
        ),
    )
    parser.add_argument(
        "--out",
        type=local_path,
        metavar="<file>",
        help="Where to write (default: report.html; for --markdown the terminal)",
    )
    parser.add_argument("--markdown", action="store_true", help="Markdown instead, for a pull request or a model card")
    parser.add_argument("--open", action="store_true", help="Open the file in a browser")
    parser.add_argument(
        "--database",
        type=database_path,
        default=DEFAULT_DATABASE,
        metavar="<path>",
        help=f"The leaderboard's database (default: {DEFAULT_DATABASE})",
    )


def execute(args: argparse.Namespace) -> int:
    """Read, write, and say where; returns the exit code. Raises `LeaderboardError`."""
    from leaderboard.report.contents import read_report

    report = read_report(args.names, args.database)
    if args.markdown:
        from leaderboard.report.markdown import as_markdown_report

        text, out = as_markdown_report(report), args.out
    else:
        from leaderboard.report.html import as_html

        text, out = as_html(report), args.out or Path("report.html")
    if out is None:
        print(text, end="")
        return 0
    _write(out, text)
    print(f"{out}: {len(text.encode()) / 1000:,.0f} kB, {len(report.runs)} runs", file=sys.stderr)
    if args.open:
        webbrowser.open(out.resolve().as_uri())
    return 0


def _write(path: Path, text: str) -> None:
    """Write the whole file or none of it."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):  # a read-only disk refuses to remove even what is not there
            beside.unlink(missing_ok=True)
        raise LeaderboardError(f"--out {path} cannot be written: {error.strerror or error}") from None
