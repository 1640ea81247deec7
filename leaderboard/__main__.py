"""`python -m leaderboard`: the page, or with `gate` or `report` first that, without the rest of the project."""

from __future__ import annotations

import argparse
import sys

from leaderboard.commands import DEFAULT_DATABASE
from leaderboard.errors import LeaderboardError
from leaderboard.terminal.path_flags import database_or_postgres


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve, or gate; returns the exit code (2 for an error of the user's)."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["gate"]:
        return _gate(words[1:])
    if words[:1] == ["report"]:
        return _report(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m leaderboard",
        description=(
            "Open the leaderboard's page on this machine. `python -m leaderboard gate --help`: judge a run."
            " `python -m leaderboard report --help`: write a board as one file."
        ),
    )
    parser.add_argument(
        "--database",
        type=database_or_postgres,
        default=str(DEFAULT_DATABASE),
        help="the DuckDB file (%(default)s), or postgres://USER@HOST/DATABASE of a published board",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; another than this machine's own shows the board to others",
    )
    parser.add_argument("--port", type=int, default=8501, help="(%(default)s)")
    parser.add_argument("--open", action="store_true", help="open a browser as well")
    given = parser.parse_args(arguments)
    from leaderboard.app.serve import serve_place

    try:
        serve_place(given.database, host=given.host, port=given.port, open_browser=given.open)
    except LeaderboardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _gate(arguments: list[str]) -> int:
    from leaderboard.gate.command import DESCRIPTION, add_arguments, execute
    from leaderboard.terminal.output import terminal_style

    parser = argparse.ArgumentParser(prog="python -m leaderboard gate", description=DESCRIPTION)
    add_arguments(parser)
    given = parser.parse_args(arguments)
    style = terminal_style()
    try:
        return execute(given, width=style.width, color=style.color)
    except LeaderboardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _report(arguments: list[str]) -> int:
    from leaderboard.report.command import DESCRIPTION, add_arguments, execute

    parser = argparse.ArgumentParser(prog="python -m leaderboard report", description=DESCRIPTION)
    add_arguments(parser)
    try:
        return execute(parser.parse_args(arguments))
    except LeaderboardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
