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

`-h` or `lm_eval help COMMAND` prints the same, `lm_eval --version` all versions, `lm_eval completion SHELL` a script
that completes commands, flags, recipes, tasks and runs. Data goes to standard output, everything else to standard
error. `--json`, `--markdown` and `--csv` print a table for other programs: JSON is a list of objects, numbers are
numbers, and what is missing is null. Colour is for terminals, never with `NO_COLOR` set, and always with
`CLICOLOR_FORCE=1`. A list is as wide as the terminal; in a pipe its columns are parted by tabs, whole and without a
headline.

## How a run is named

RUN, A and B are one of these, in every command:

- a **folder** of a run, or a results file;
- an **id**, or its beginning (`lm_eval runs` shows them), or the digits at the end of a run folder's name;
- **MODEL/RECIPE**: `google/gemma-2b/laser:layers=3`. MODEL is the model's name or its last part, RECIPE the label in
  tables; either may be cut short where only one fits (`gemma/las`), and RECIPE alone will do where one model has it.
  Controls (`laser+noise`) are only taken where nothing else begins so. What tables call a run (`laser [limit 20]`)
  works as RECIPE, what pages call one of several models of a name (`gpt2 (607a30d7)`) as MODEL, and the name of a run's
  folder from anywhere.

Of several runs of one recipe on one model the newest complete one is taken, and a note on standard error says which; so
where several identities share the model's name. `runs delete` asks for the id then. What fits several recipes or models
is refused, with at most ten candidates. A path that exists comes before a name that is only completed; if a word is a
path and, letter by letter, another run's name, it is refused: `./NAME` is the path.

## Exit codes

{exit_codes}

A gate that is called by `python -m leaderboard gate` ends with the same codes.
"""


def rendered() -> str:
    """The whole file."""
    from lm_eval._cli import HarnessCLI

    from harness_ext.cli import RecipesCLI
    from harness_ext.cli.exit_codes import exit_table

    lm_evals = HarnessCLI()._subparsers.choices
    commands = RecipesCLI()._subparsers.choices
    os.environ["COLUMNS"] = str(COLUMNS)  # argparse reads its width there
    parts = [INTRODUCTION.replace("{exit_codes}", exit_table()), "## run\n", _block(_gained(commands["run"]))]
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
