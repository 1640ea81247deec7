"""`lm_eval recipes`: list the recipes, show one, or plan one for a model."""

from __future__ import annotations

import argparse

from lm_eval._cli.subcommand import SubCommand


class Recipes(SubCommand):
    """List, show and plan recipes."""

    def __init__(self, subparsers: argparse._SubParsersAction) -> None:
        self._parser = subparsers.add_parser("recipes", help="List, show and plan recipes")
        self._add_args()
        self._parser.set_defaults(func=self._execute)

    def _add_args(self) -> None:
        pass

    def _execute(self, args: argparse.Namespace) -> None:
        self._parser.print_help()
