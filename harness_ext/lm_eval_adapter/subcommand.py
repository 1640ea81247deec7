"""The parts of lm-eval's command line that our commands build on."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from harness_ext.lm_eval_adapter.borrowed import HarnessCLI, MergeDictAction, Run
from harness_ext.lm_eval_adapter.flag_values import in_plain_words

__all__ = [
    "CommandLine",
    "MergeDictAction",
    "RecipesCommand",
    "add_model_args",
    "add_run_arguments",
    "run_without_recipes",
]


class CommandLine(HarnessCLI):
    """lm-eval's command line: `parse_args` reads `sys.argv`, `execute` runs what was parsed."""

    @property
    def commands(self) -> Any:
        """The action to which commands are added; its `choices` holds the parser of each, by name."""
        return self._subparsers

    @property
    def parser(self) -> argparse.ArgumentParser:
        """The parser of the whole command line."""
        return self._parser


class _HelpWithExamples(argparse.HelpFormatter):
    """Help whose text is wrapped, and whose examples stand as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text.strip("\n") if text.lstrip().startswith("examples:") else super()._fill_text(text, width, indent)


class RecipesCommand(ABC):
    """A command of ours beside lm-eval's: a subclass states its texts, adds its arguments and sets `func`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """Its line in `lm_eval --help`."""
    description: ClassVar[str]
    epilog: ClassVar[str | None] = None
    """Examples below the arguments, printed as they are."""
    logs: ClassVar[bool] = False
    """Whether it logs as lm-eval does, which takes a quarter of a second to set up."""

    def __init__(self, commands: Any) -> None:
        parser = commands.add_parser(
            self.name,
            help=self.summary,
            description=self.description,
            epilog=self.epilog,
            formatter_class=_HelpWithExamples,
        )
        parser.set_defaults(logs=self.logs)
        self.add_arguments(parser)

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments, and set `func` to what is called with the parsed ones."""


class _RunArguments(Run):
    """lm-eval's `run` as far as it adds arguments to a parser that exists."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._add_args()


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments of lm-eval's `run` to a parser."""
    _RunArguments(parser)
    in_plain_words(parser)


def add_model_args(parser: argparse.ArgumentParser, help: str, *, required: bool = True) -> None:
    """Add `--model_args`, read as lm-eval's `run` reads it."""
    parser.add_argument(
        "--model_args",
        "-a",
        nargs="+",
        action=MergeDictAction,
        default=None,
        required=required,
        metavar="<arg>",
        help=help,
    )


def run_without_recipes(args: argparse.Namespace) -> None:
    """Run lm-eval's own `run` with the namespace that it would have parsed."""
    Run._execute(args)
