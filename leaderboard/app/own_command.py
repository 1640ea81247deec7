"""The command that makes one run alone, from the command that made it among others.

Notable choices:
- All other flags stay as they were typed, so that the run is asked the same.
- A control's run needs its recipe: both are named, and both are run.
- A recipe from a YAML file is known by the file's `name`, which the command does not tell. Where more than one file
  could be meant, there is no command rather than a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from leaderboard.readers.records import BASELINE

_RECIPE, _CONTROL = "--recipe", "--control"
_FILES = (".yaml", ".yml")


class _Parts(NamedTuple):
    """A command: all words but those about recipes, and these."""

    rest: list[str]
    recipes: list[str]
    controls: list[str]


def own_command(words: Sequence[str], label: str, control: str | None) -> list[str] | None:
    """The words of the command for the run of this label (as in its receipt) alone; None where they cannot be told.
    control: the name of the control that the run is, None for recipes and the baseline.
    """
    parts = _parts(words)
    if control is None:
        recipe = BASELINE if label == BASELINE else _meant(parts.recipes, label)
        return None if recipe is None else [*parts.rest, _RECIPE, recipe]
    found = {
        (recipe, name)
        for name in parts.controls
        if label.endswith(f"+{name}")
        for recipe in [_meant(parts.recipes, label.removesuffix(f"+{name}"))]
        if recipe is not None
    }
    if len(found) != 1:
        return None
    ((recipe, name),) = found
    return [*parts.rest, _RECIPE, recipe, _CONTROL, name]


def is_own(words: Sequence[str], own: Sequence[str]) -> bool:
    """Whether the command made nothing else."""
    one, other = _parts(words), _parts(own)
    return (one.recipes, one.controls) == (other.recipes, other.controls)


def _parts(words: Sequence[str]) -> _Parts:
    parts = _Parts([], [], [])
    into = parts.rest
    for word in words:
        flag, equals, value = word.partition("=")
        into = {_RECIPE: parts.recipes, _CONTROL: parts.controls}.get(_flag(flag) or "", into)
        if _flag(flag):
            if equals:
                into.append(value)
                into = parts.rest
        elif word.startswith("-"):
            into = parts.rest
            into.append(word)
        else:
            into.append(word)
    return parts


def _flag(word: str) -> str | None:
    """The flag of ours that a word is, shortened as the parser allows."""
    return next((flag for flag in (_RECIPE, _CONTROL) if len(word) > 4 and flag.startswith(word)), None)


def _meant(recipes: Sequence[str], label: str) -> str | None:
    """The one of `recipes`, as typed, that has this label. A command that takes its recipes from a configuration file
    names none: then the label itself, which is what would be typed.
    """
    if label in recipes:
        return label
    files = {recipe for recipe in recipes if recipe.partition(":")[0].endswith(_FILES)}
    changes = label.partition(":")[2]
    fitting = [file for file in files if file.partition(":")[2] == changes]
    if len(fitting) == 1:
        return fitting[0]
    return label if not recipes else None
