"""stub"""
from __future__ import annotations
import argparse
from lm_eval._cli.subcommand import SubCommand
class Doctor(SubCommand):
    """Check the installation."""
    def __init__(self, subparsers: argparse._SubParsersAction) -> None:
        self._parser = subparsers.add_parser("doctor", help="Check the installation")
    def _add_args(self) -> None:
        pass
