"""What people who know git and gh expect of a command line: `help COMMAND`, `--version`, the nearest word for a
mistyped one, and one line for a mistake.
"""

from __future__ import annotations

import argparse
import difflib
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from harness_ext.cli.exit_codes import MISTAKE
from harness_ext.cli.secrecy import printable
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand

PACKAGES = ("lm-eval-recipes", "lm_eval", "torch", "transformers", "datasets", "duckdb", "streamlit")
_INVALID = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)$", re.DOTALL)


EXAMPLES = """
recipes and results:
  # Edit a model's weights, score it, and compare it with the unedited model and with a random edit
  $ lm_eval run --model hf --model_args pretrained=demo --tasks int_mult --recipe laser --control random-subspace
  $ lm_eval compare demo/baseline demo/laser
  $ lm_eval show
  $ lm_eval runs
  $ lm_eval leaderboard --open
"""


class _RoomForCommands(argparse.RawDescriptionHelpFormatter):
    def add_argument(self, action: argparse.Action) -> None:
        """As argparse's, which forgets how far the names of commands are indented."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            longest = max(map(len, action.choices)) + self._current_indent + self._indent_increment
            self._action_max_length = max(self._action_max_length, longest)


class Help(RecipesCommand):
    """Print the help of a command."""

    name = "help"
    summary = "Print the help of a command"
    description = "Print the help of a command, as its --help does."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("words", nargs="*", metavar="COMMAND", help="The command, and an action of it")
        # its words are put before --help, as `without_help` says
        parser.set_defaults(func=lambda args: None)


class _Version(argparse.Action):
    """Print the versions and leave."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print("\n".join(version_lines()))
        sys.exit(0)


def without_help(words: Sequence[str]) -> list[str]:
    """The words of a command line, `help X` as `X --help`."""
    return [*words[1:], "--help"] if words[:1] == ["help"] else list(words)


def check_command(words: Sequence[str], commands: Iterable[str]) -> None:
    """Refuse a first word that is neither a command nor a flag (of lm-eval's old form without a command). Raises
    UserError.
    """
    names = list(commands)
    if words and not words[0].startswith("-") and words[0] not in names:
        meant = _meant(words[0], names)
        raise UserError(f"{words[0]!r} is not a command of lm_eval{meant}\n`lm_eval --help` lists them")


def add_habits(parser: argparse.ArgumentParser) -> None:
    """Give a command line its `--version`, room for long names, our examples below lm-eval's, and all its
    parsers short errors with the nearest word.
    """
    parser.formatter_class = _RoomForCommands
    parser.epilog = (parser.epilog or "") + EXAMPLES
    parser.add_argument(
        "--version",
        nargs=0,
        action=_Version,
        dest=argparse.SUPPRESS,
        help="print the versions of all that scores depend on",
    )
    _with_short_errors(parser, parser)


def version_lines() -> list[str]:
    """Ours, then each package that scores and pages depend on, as installed; none is imported."""
    import harness_ext

    lines = [f"{'lm-eval-recipes':<16} {harness_ext.__version__}"]
    for name in PACKAGES[1:]:
        try:
            lines.append(f"{name.replace('_', '-'):<16} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name.replace('_', '-'):<16} not installed")
    return [*lines, f"{'python':<16} {platform.python_version()}"]


def _with_short_errors(parser: argparse.ArgumentParser, top: argparse.ArgumentParser) -> None:
    def error(message: str) -> NoReturn:
        used = _used(top, sys.argv[1:]) if parser is top else parser
        print(f"error: {printable(_with_nearest(message, used))}", file=sys.stderr)
        print(f"see `{used.prog.replace('lm-eval', 'lm_eval', 1)} --help`", file=sys.stderr)
        sys.exit(MISTAKE)

    parser.error = error  # type: ignore[method-assign]
    for inner in _inner(parser).values():
        _with_short_errors(inner, top)


def _inner(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return actions[0].choices if actions else {}


def _used(parser: argparse.ArgumentParser, words: Iterable[str]) -> argparse.ArgumentParser:
    """The innermost parser that the words lead to."""
    for word in words:
        parser = _inner(parser).get(word, parser)
    return parser


def _with_nearest(message: str, parser: argparse.ArgumentParser) -> str:
    if found := _INVALID.search(message):
        return message + _meant(found[1], re.findall(r"[^\s,']+", found[2]))
    if message.startswith("unrecognized arguments: "):
        flags = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        flag = next(iter(flags), "")
        named = [action.metavar for action in parser._actions if not action.option_strings]
        if flag[2:].upper() in named:
            return f"{message}; {flag[2:].upper()} is given without a flag"
        return message + (_meant(flag, parser._option_string_actions) if flag else "")
    return message


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
