"""The command line: lm-eval's own commands plus ours, in one parser.

lm-eval has no hook for flags, so its command line is subclassed: it builds its own parsers first, then `run` gains our
flags, and our commands are added beside its own. `exit_codes` has what each command ends with.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from contextlib import suppress

from harness_ext.cli.completion import ASK, Completion, answer
from harness_ext.cli.exit_codes import INTERRUPTED, MISTAKE
from harness_ext.cli.habits import Help, add_habits, check_command, without_help
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import CommandLine, RecipesCommand

EXIT_USER_ERROR = MISTAKE


class RecipesCLI(CommandLine):
    """lm-eval's command line, `run` extended, our commands beside its own."""

    def __init__(self) -> None:
        super().__init__()
        from harness_ext.cli.run import add_recipes

        choices = self.commands.choices
        add_recipes(choices["run"])
        _index_tasks_of(choices["ls"], listing=True)
        _index_tasks_of(choices["validate"], listing=False)
        for command in _commands():
            command(self.commands)
        add_habits(self.parser)

    def parse_args(self) -> argparse.Namespace:
        """See lm-eval's. Raises UserError for a command that is none."""
        sys.argv[1:] = without_help(sys.argv[1:])
        check_command(sys.argv[1:], self.commands.choices)
        return super().parse_args()


def _commands() -> list[type[RecipesCommand]]:
    from harness_ext.cli.audit import Audit
    from harness_ext.cli.baseline import Baseline
    from harness_ext.cli.claims import Claims
    from harness_ext.cli.compare import Compare
    from harness_ext.cli.doctor import Doctor
    from harness_ext.cli.export import Export
    from harness_ext.cli.gate import Gate
    from harness_ext.cli.ingest import Ingest
    from harness_ext.cli.leaderboard import Leaderboard
    from harness_ext.cli.noise import Noise
    from harness_ext.cli.publish import Publish
    from harness_ext.cli.recipes import Recipes
    from harness_ext.cli.report import ReportCommand
    from harness_ext.cli.runs import Runs
    from harness_ext.cli.show import Show
    from harness_ext.cli.sweep import Sweep

    return [
        *(Recipes, Export, Sweep, Show, Compare, Gate, Noise, Ingest, Runs, Baseline, Leaderboard, Publish, Claims),
        Audit,
        *(ReportCommand, Doctor, Completion, Help),
    ]


def _index_tasks_of(parser: argparse.ArgumentParser, *, listing: bool) -> None:
    """Let a command of lm-eval's read the task files from the index; otherwise it stays as it is."""
    execute = parser.get_default("func")

    def with_index(args: argparse.Namespace) -> None:
        from harness_ext.lm_eval_adapter.task_index import installed

        with installed(listing=listing):
            execute(args)

    parser.set_defaults(func=with_index)


def main() -> None:
    """Run the command in `sys.argv`; leaves by `SystemExit` with the codes of `exit_codes`."""
    if sys.argv[1:2] == [ASK]:
        with suppress(BrokenPipeError):
            answer(RecipesCLI().parser, sys.argv[2:])
        return
    from harness_ext.cli import secrecy

    secrecy.install()
    try:
        cli = RecipesCLI()
        args = _parsed(cli)
        if vars(args).pop("logs", True):  # some commands hand all that is left to lm-eval
            _log_as_lm_eval()
        cli.execute(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough of it; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except Exception as error:
        if (message := message_of(error)) is None:
            raise
        print(f"error: {secrecy.printable(message)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def _log_as_lm_eval() -> None:
    from lm_eval.utils import setup_logging

    from harness_ext.cli import secrecy

    setup_logging()
    secrecy.install()  # again: now there are handlers to hide secrets from


def _parsed(cli: RecipesCLI) -> argparse.Namespace:
    """The command line, read. Raises UserError for settings that lm-eval cannot read, such as JSON that is none."""
    try:
        return cli.parse_args()
    except ValueError as error:
        raise UserError(str(error)) from None


def _of_the_disk(error: Exception) -> str | None:
    """A sentence about a disk that is full, over its quota, read-only or broken, wherever that was noticed; None for
    any other error. Where it is our own output that finds no room, the interpreter must not try to flush the rest.
    """
    from harness_ext.storage.disk import disk_trouble, is_of_the_disk

    if not is_of_the_disk(error):
        return None
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    named = getattr(error, "filename", None)
    read_only = getattr(error, "errno", None) == errno.EROFS
    cure = (
        "name another folder" if read_only else "make room (in TMPDIR and ~/.cache too) and run the same command again"
    )
    return f"{named or 'a file'} cannot be written or read: {disk_trouble(error)}; {cure}"


def message_of(error: Exception) -> str | None:
    """All that a user sees of an exception; None for one that is a bug and keeps its traceback."""
    return str(error) if is_for_the_user(error) else _of_the_disk(error)


def is_for_the_user(error: Exception) -> bool:
    """Whether an exception's message is meant to be all that a user sees."""
    from leaderboard.errors import LeaderboardError

    return isinstance(error, (UserError, LeaderboardError))
