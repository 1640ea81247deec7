"""Lists in a recipe's settings multiply: `svd-llm:keep.param_fraction=[0.8,0.6]` is two recipes.

A list multiplies only where the setting itself takes none: `laser:layers=[0,1]` stays one recipe.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

from harness_ext.errors import RecipeError
from harness_ext.recipe.overrides import split_outside_brackets, split_specification
from harness_ext.recipe.recipe import parse_recipe

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
