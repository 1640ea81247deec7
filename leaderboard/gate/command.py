"""The command `gate`, for `lm_eval gate` and for `python -m leaderboard gate`, which needs neither torch nor
lm-eval.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.commands import DEFAULT_DATABASE, RUN_HELP
from leaderboard.errors import LeaderboardError
from leaderboard.terminal.path_flags import database_path, local_path

if TYPE_CHECKING:
    from leaderboard.gate.policy import Policy
    from leaderboard.gate.report import GateReport

DESCRIPTION = (
    "May this run replace the last one? Compares it, task by task, with the unedited model and with the last blessed"
    " run of its recipe, by a policy file. Every row decides, unless the policy names one margin for the weighted mean"
    " of its tasks (`overall`): then that decides, beside critical tasks and sure losses of any task. Exit codes: 0"
    " pass or warn, 1 fail, 2 incomparable or an error, 3 undecided. Two folders are enough: without a database, name"
    " the other with --baseline."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "--policy",
        type=local_path,
        required=True,
        metavar="FILE",
        help="The policy, a YAML file: tasks, margins, floors, suites, overall",
    )
    parser.add_argument(
        "--candidate",
        required=True,
        metavar="RUN",
        help=f"The run to judge: {RUN_HELP}",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="RUN",
        help=(
            f"What to compare with: a run ({RUN_HELP}), `base` (the unedited model) or `blessed` (the last blessed"
            " run of the recipe); repeatable; base and blessed unless given"
        ),
    )
    parser.add_argument(
        "--database",
        type=database_path,
        default=DEFAULT_DATABASE,
        metavar="<path>",
        help=f"The leaderboard's database, if there is one (default: {DEFAULT_DATABASE})",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="Print the report as JSON")
    form.add_argument("--markdown", action="store_true", help="Print the report as Markdown, for a pull request")
    parser.add_argument("--junit", type=local_path, metavar="FILE", help="Write a JUnit XML file as well")


def execute(args: argparse.Namespace, *, width: int, color: bool) -> int:
    """Gate, print, record; returns the exit code. Raises `LeaderboardError`, of which the JUnit file tells too."""
    from leaderboard.gate import formats, table
    from leaderboard.gate.policy import load_policy
    from leaderboard.gate.report import record

    try:
        policy = load_policy(args.policy)
        report = _judged(args, policy)
    except LeaderboardError as error:
        if args.junit is not None:
            _write(args.junit, formats.junit_of_error(str(error)))
        raise
    if args.junit is not None:
        _write(args.junit, formats.junit(report))
    if args.json:
        print(report.to_json())
    elif args.markdown:
        print(formats.markdown(report), end="")
    else:
        print(table.render(report, width=width, color=color))
    sys.stdout.flush()
    if trouble := record(report, policy, args.database):
        print(f"note: {trouble}", file=sys.stderr)
    return report.exit_code


def _judged(args: argparse.Namespace, policy: Policy) -> GateReport:
    from leaderboard.gate.report import judge_candidate
    from leaderboard.gate.runs import read_named
    from leaderboard.terminal.format import plain

    chosen: list[str] = []
    candidate = read_named(args.candidate, args.database, "candidate", chosen)
    for note in chosen:
        print(f"note: {plain(note)}", file=sys.stderr)
    return judge_candidate(candidate, policy, args.baseline, args.database)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LeaderboardError(f"--junit {path} cannot be written: {error.strerror or error}") from None
