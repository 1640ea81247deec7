"""The help of every command of ours, as harness_ext/cli/README.md shows it.

`python tests/cli_reference.py` prints the file, `--write` writes it; a test compares the two.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[1] / "harness_ext" / "cli" / "README.md"
COLUMNS = 80
INTRODUCTION = """# Command line reference

Every command of ours, as `--help` prints it at 80 columns. `lm_eval run` is lm-eval's own; the options that it gains
are shown. Written by `python tests/cli_reference.py --write`, kept equal to the commands by a test. What the commands
are for stands in [harness_ext/README.md](../README.md).
"""


def rendered() -> str:
    """The whole file."""
    from lm_eval._cli import HarnessCLI

    from harness_ext.cli import RecipesCLI

    lm_evals = HarnessCLI()._subparsers.choices
    commands = RecipesCLI()._subparsers.choices
    os.environ["COLUMNS"] = str(COLUMNS)  # argparse reads its width there
    parts = [INTRODUCTION, "## run\n", _block(_gained(commands["run"]))]
    for name, parser in commands.items():
        if name not in lm_evals:
            parts += [f"## {name}\n", *_helps(parser)]
    return "\n".join(parts)


def _gained(run: argparse.ArgumentParser) -> str:
    """The options that lm-eval's `run` has from us: lm-eval's own differ between its releases."""
    (group,) = [group for group in run._action_groups if group.title == "recipes"]
    formatter = run._get_formatter()
    formatter.start_section(group.title)
    formatter.add_arguments(group._group_actions)
    formatter.end_section()
    return formatter.format_help()


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def _helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The help of a command, and of the commands inside it."""
    yield _block(parser.format_help())
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _helps(inner)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if "--write" in sys.argv[1:]:
        REFERENCE.write_text(rendered(), encoding="utf-8")
    else:
        print(rendered(), end="")
