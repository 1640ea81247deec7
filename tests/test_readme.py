"""The READMEs say what the commands say."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from harness_ext.recipe.recipe import GROUPS, parse_recipe, shipped_names

from . import cli_reference

START, END = "<!-- recipes: kept equal to `lm_eval recipes` by a test -->\n", "<!-- end of recipes -->"
WORDS = 900


def recipe_table() -> str:
    """The recipes as the README names them, a line a group."""
    recipes = [parse_recipe(name) for name in shipped_names()]
    of_group = {group: [f"`{recipe.name}`" for recipe in recipes if recipe.group == group] for group in GROUPS if group}
    return "".join(f"- **{group}**: {' '.join(names)}\n" for group, names in of_group.items())


def source_table() -> str:
    """What the recipes do, their sources and caveats, as harness_ext/README.md lists them."""
    rows = [
        f"| `{recipe.name}` | {recipe.summary} | {recipe.source} | {recipe.caveats} |"
        for recipe in map(parse_recipe, shipped_names())
    ]
    return "\n".join(["| recipe | what it does | source | caveats |", "|---|---|---|---|", *rows]) + "\n"


@pytest.mark.parametrize(("file", "table"), [("README.md", recipe_table), ("harness_ext/README.md", source_table)])
def test_the_readmes_list_the_recipes(file: str, table, repository: Path) -> None:
    text = (repository / file).read_text(encoding="utf-8")
    listed = text[text.index(START) + len(START) : text.index(END)]
    assert listed == table(), f"paste this into {file}:\n" + table()


def test_the_readme_is_short(repository: Path) -> None:
    assert len((repository / "README.md").read_text(encoding="utf-8").split()) <= WORDS


def test_the_python_of_the_readme_is_python(repository: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(ast.parse(block).body) == 3


def test_lm_evals_own_function_runs_as_the_readme_says(repository: Path) -> None:
    text = (repository / "harness_ext" / "README.md").read_text(encoding="utf-8")
    (start,) = [
        number for number, line in enumerate(text.splitlines()) if line.startswith("    import harness_ext, lm_eval")
    ]
    *imports, call = [line.strip() for line in text.splitlines()[start : start + 3]]
    namespace: dict[str, Any] = {}
    exec("\n".join([*imports, f"results = {call}"]), namespace)
    assert namespace["results"]["config"]["recipe"] == "laser"


def test_every_command_of_ours_is_named(repository: Path) -> None:
    from lm_eval._cli import HarnessCLI

    from harness_ext.cli import RecipesCLI

    text = "".join((repository / name).read_text(encoding="utf-8") for name in ("README.md", "harness_ext/README.md"))
    ours = RecipesCLI()._subparsers.choices.keys() - HarnessCLI()._subparsers.choices.keys()
    assert [name for name in sorted(ours) if f" {name}" not in text] == []


def test_the_pictures_are_small_and_fetch_nothing(repository: Path) -> None:
    folder = repository / "leaderboard" / "pictures"
    assert (folder / "board.png").stat().st_size <= 300_000
    drawn = (folder / "terminal.svg").read_text(encoding="utf-8")
    assert "@font-face" not in drawn and "url(http" not in drawn


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="from 3.13 on, argparse writes a metavar once for two flags")
def test_the_command_line_reference_is_what_help_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    written = cli_reference.REFERENCE.read_text(encoding="utf-8")
    assert written == cli_reference.rendered(), "run `python tests/cli_reference.py --write`"


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "harness_ext/README.md",
        "harness_ext/cli/README.md",
        "leaderboard/README.md",
        "leaderboard/gate/README.md",
        "results/README.md",
        "tasks/README.md",
    ],
)
def test_links_lead_somewhere(file: str, repository: Path) -> None:
    path = repository / file
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
