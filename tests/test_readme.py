"""The README says what the commands say."""

from __future__ import annotations

from pathlib import Path

from harness_ext.recipe.recipe import parse_recipe, shipped_names

START, END = "<!-- recipes: kept equal to `lm_eval recipes` by a test -->\n", "<!-- end of recipes -->"


def recipe_table() -> str:
    """The recipes as the README lists them."""
    rows = [
        f"| `{recipe.name}` | {recipe.summary} | {recipe.source} |" for recipe in map(parse_recipe, shipped_names())
    ]
    return "\n".join(["| recipe | what it does | source |", "|---|---|---|", *rows]) + "\n"


def test_the_readme_lists_the_recipes(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    listed = text[text.index(START) + len(START) : text.index(END)]
    assert listed == recipe_table(), "paste this into README.md:\n" + recipe_table()


def test_the_python_of_the_readme_runs(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    (start,) = [number for number, line in enumerate(text.splitlines()) if line.startswith("    import harness_ext")]
    block = text.splitlines()[start : start + 3]
    namespace: dict[str, object] = {}
    code = "\n".join(line.strip() for line in block[:2]) + "\nresults = " + block[2].strip()
    exec(code, namespace)
    assert namespace["results"]["config"]["recipe"] == "laser"  # type: ignore[index]


def test_every_command_of_ours_is_in_the_readme(repository: Path) -> None:
    from lm_eval._cli import HarnessCLI

    from harness_ext.cli import RecipesCLI

    text = (repository / "README.md").read_text(encoding="utf-8")
    ours = RecipesCLI()._subparsers.choices.keys() - HarnessCLI()._subparsers.choices.keys()
    assert [name for name in sorted(ours) if f" {name}" not in text] == []
