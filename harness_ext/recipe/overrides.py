"""Changes to a recipe on the command line: `NAME:key=value,key=value`. Values are YAML; a nested key has dots; a bare
key is set in every step whose method knows it, `steps.0.key` in one; `heal.KEY` is set in the recipe's `heal`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness_ext.errors import RecipeError, located
from harness_ext.recipe.mistakes import key_paths, meant
from harness_ext.recipe.schema import known_methods, step_model
from harness_ext.recipe.settings import HEAL, Heal
from leaderboard.errors import Unreadable
from leaderboard.readers.plain_yaml import WIDEST_PATH, parse_yaml, shown

_BESIDE_MEASURES = ("keep.align", "keep.format")
"""Keys of a budget that go with any measure."""


def split_specification(specification: str) -> tuple[str, str, str]:
    """What names the recipe, the colon if there is one, and the changes."""
    # A Windows path may hold a colon after its drive letter; the changes never start with a path separator.
    head, colon, tail = specification.partition(":")
    if colon and tail.startswith(("\\", "/")):
        inner, colon, tail = tail.partition(":")
        head = f"{head}:{inner}"
    return head, colon, tail


# An asterisk at the start of a value is YAML's sign for an alias, which one line can have no use for, and anybody
# else's for a glob; likewise `-2:`, a mapping's key there and a range of layers here.
_GLOB_OR_RANGE = re.compile(r"(^\s*|[\[,]\s*)(\*[^\],\s]*|-?\d*:(?:-?\d+)?(?=\s*(?:[\],]|$)))")


def parse_changes(specification: str, text: str) -> dict[str, Any]:
    """The changed keys and their values. Raises RecipeError."""
    changes: dict[str, Any] = {}
    recipe = f"recipe {shown(specification, WIDEST_PATH)!r}"
    for item in split_outside_brackets(text):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise RecipeError(f"{recipe}: {shown(item)!r} is not key=value")
        if key in changes:
            raise RecipeError(f"{recipe}: {shown(key)} is given twice")
        try:
            changes[key] = parse_yaml(_GLOB_OR_RANGE.sub(r'\1"\2"', value))
        except Unreadable as error:
            raise RecipeError(
                f"{recipe}: the value of {shown(key)} is not valid YAML: {shown(value)!r}: {error}"
            ) from None
    for key in changes:
        if (whole := next((other for other in changes if key.startswith(f"{other}.")), None)) is not None:
            raise RecipeError(f"{recipe}: {shown(key)} is a part of {shown(whole)}, and both are given: leave one out")
    return changes


def split_outside_brackets(text: str, separators: str = ",") -> list[str]:
    """The parts of a text, none of them blank; what stands in brackets is one part."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character in separators and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def with_changes(data: dict[str, Any], changes: Mapping[str, Any], specification: str) -> dict[str, Any]:
    """Set the changed keys. A budget on the command line replaces the file's, whichever measure that had; `keep.align`
    and `keep.format` go with either.
    """
    recipe = f"recipe {shown(specification, WIDEST_PATH)!r}"
    if not isinstance(data.get("steps") or [], list):
        return data  # its schema says that this is no list
    steps = [dict(step) if isinstance(step, dict) else step for step in data.get("steps") or []]
    if not steps:
        raise RecipeError(f"{recipe}: it has no steps, so there is nothing to change: name another one")
    replaced: set[int] = set()
    whole = dict(data)
    known = [HEAL, *(path for step in steps for path in _known_paths(step))]
    if HEAL in data:
        known += [f"{HEAL}.{name}" for name in Heal.model_fields]
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if head == HEAL:
            with located(f"{recipe}: "):
                _set(whole, key.split("."), value)
            continue
        # `steps=` alone may mean those of training.
        if head == "steps" and (rest or not any(path.endswith(".steps") for path in known)):
            number, _, path = rest.partition(".")
            if number not in map(str, range(len(steps))) or not path:
                raise RecipeError(f"{recipe}: {shown(key)} names no step; it has steps.0 to steps.{len(steps) - 1}")
            targets = [int(number)]
        else:
            targets, path = [index for index, step in enumerate(steps) if _knows(step, head)], key
        if not targets:
            raise RecipeError(f"{recipe}: unknown key {shown(key)!r}, {meant(key, known)}")
        for index in targets:
            if path.startswith("keep.") and path not in _BESIDE_MEASURES and index not in replaced:
                steps[index]["keep"] = _without_measure(steps[index].get("keep"))
                replaced.add(index)
            with located(f"{recipe}: "):
                _set(steps[index], path.split("."), value)
    return {**whole, "steps": steps}


def _without_measure(keep: Any) -> dict[str, Any]:
    beside = [path.removeprefix("keep.") for path in _BESIDE_MEASURES]
    return {name: keep[name] for name in beside if name in keep} if isinstance(keep, dict) else {}


def _known_paths(step: Any) -> list[str]:
    name = step.get("method") if isinstance(step, dict) else None
    known = key_paths(step_model(str(name))) if name in known_methods() else []
    return [path for path in known if path != "method"]


def _knows(step: Any, key: str) -> bool:
    return key in _known_paths(step)


def _set(target: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = target.get(part)
        if inner is not None and not isinstance(inner, dict):
            raise RecipeError(f"{shown('.'.join(path))} goes through {shown(part)!r}, which is a plain value")
        target[part] = dict(inner or {})
        target = target[part]
    target[path[-1]] = value
