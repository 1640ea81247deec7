"""Lists in a recipe's settings multiply: `svd-llm:keep.param_fraction=[0.8,0.6]` is two recipes.

A list multiplies only where the setting itself takes none: `laser:layers=[0,1]` stays one recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product

from harness_ext.errors import RecipeError
from harness_ext.recipe.overrides import split_outside_brackets, split_specification
from harness_ext.recipe.recipe import parse_recipe
from leaderboard.readers.plain_yaml import shown

MOST = 10_000
"""Recipes that one entry may become."""


@lru_cache(maxsize=4096)
def multiplied(specification: str) -> tuple[str, ...]:
    """The recipes that an entry stands for, in the order in which they are written. Raises RecipeError for more than
    `MOST`; whether each can be used is not looked at.
    """
    head, colon, changes = split_specification(specification)
    parts = split_outside_brackets(changes) if colon else []
    choices = [(part, _elements(part)) for part in parts]
    if not any(elements for _, elements in choices):
        return (specification,)
    values = [elements if elements and not _takes_lists(head, part) else [part] for part, elements in choices]
    count = 1
    for one in values:
        count *= max(len(one), 1)
    if count > MOST:
        raise RecipeError(f"recipe {specification[:80]!r}: its lists multiply to {count:,} recipes: at most {MOST:,}")
    return tuple(f"{head}:{','.join(chosen)}" for chosen in product(*values))


def readable(specification: str) -> tuple[str, ...]:
    """The recipes that an entry stands for; none where they are too many."""
    try:
        return multiplied(specification)
    except RecipeError:
        return ()


def recipe_mistakes(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What is wrong with entries, given with their keys: each mistake of a recipe is a sentence of its own, and so is
    a recipe that does what an earlier one does.
    """
    first: dict[str, tuple[str, str]] = {}
    for place, entry in entries:
        try:
            for one in multiplied(entry):
                yield from (f"{place}: {sentence}" for sentence in _of_recipe(place, one, first))
        except RecipeError as error:
            yield f"{place}: {error}"


def _of_recipe(place: str, recipe: str, first: dict[str, tuple[str, str]]) -> Iterator[str]:
    try:
        does = parse_recipe(recipe).recipe_id
    except RecipeError as error:
        opening, *mistakes = str(error).split("\n  - ")
        yield from (f"{shown(recipe)!r}, {mistake}" for mistake in mistakes) if mistakes else (opening,)
        return
    if does in first:
        same, where = first[does]
        what = "stands" if same == recipe else f"does the same as {same}, which stands"
        yield f"{recipe} {what} in {where} already: leave one of them out"
    else:
        first[does] = recipe, place


def _elements(part: str) -> list[str]:
    """`key=value` once for each element, where the value is a list that is not empty; else nothing."""
    key, equals, value = part.partition("=")
    value = value.strip()
    if not equals or not (value.startswith("[") and value.endswith("]")):
        return []
    return [f"{key}={element.strip()}" for element in split_outside_brackets(value[1:-1])]


def _takes_lists(head: str, part: str) -> bool:
    try:
        parse_recipe(f"{head}:{part}")
    except RecipeError:
        return False
    return True
