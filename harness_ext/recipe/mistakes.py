"""What pydantic finds wrong in a recipe, in sentences that name the key, the trouble and the nearest known key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from harness_ext.errors import closest, nearest
from harness_ext.methods.budget import MEASURES
from harness_ext.recipe.schema import Step
from harness_ext.recipe.settings import HEAL, NESTED, Heal
from leaderboard.readers.finding_words import ANY, trouble
from leaderboard.readers.plain_yaml import shown

_EXAMPLES = {"steps": f"[{{method: {ANY}}}]"}
"""How what is no bare value is written, by key."""


def key_paths(model: type[Step]) -> list[str]:
    """The keys of a step, and with dots those that lie in them: `keep`, `keep.rank`."""
    paths = []
    for name, own in model.model_fields.items():
        nested = NESTED[name].model_fields if own.annotation is NESTED.get(name) else ()
        paths += [name, *(f"{name}.{key}" for key in nested)]
    return paths


def meant(key: str, paths: Sequence[str]) -> str:
    """A phrase about an unknown key (`rank`, `calibration.rank`): which of the known ones was meant, at whatever level,
    or why there is none of that name.
    """
    last = key.rpartition(".")[2]
    by_last: dict[str, str] = {}
    for path in paths:
        by_last.setdefault(path.rpartition(".")[2], path)
    if last not in by_last and (owner := next((own for own in NESTED if last in NESTED[own].model_fields), None)):
        if owner == "healing":
            return f"did you mean '{HEAL}.{last}'?"
        return f"which belongs to `{owner}`, and this method takes no `{owner}`"
    close = last if last in by_last else closest(last, by_last)
    if close is None:
        return nearest(last, (path for path in paths if "." not in path))
    is_beside = by_last[close].rpartition(".")[0] == key.rpartition(".")[0]
    return f"did you mean {(close if is_beside else by_last[close])!r}?"


def _nearest_to(location: Sequence[str], model: type[BaseModel]) -> str:
    """Which key was meant by one that the model does not know."""
    if issubclass(model, Step):
        return meant(".".join(location), [path for path in key_paths(model) if path != "method"])
    return nearest(location[-1], (Heal if location[0] == HEAL and len(location) > 1 else model).model_fields)


def sentences(error: ValidationError, where: str, model: type[BaseModel]) -> list[str]:
    """All of pydantic's findings but those that follow from others: a list whose entries are wrong is not too short as
    well.
    """
    found = _without_alternatives(error.errors())
    inside = {item["loc"][:length] for item in found for length in range(len(item["loc"]))}
    return [
        _sentence(item, where, model) for item in found if not (item["type"] == "too_short" and item["loc"] in inside)
    ]


def _without_alternatives(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pydantic's findings, with one of a value that may be of several kinds: it has one for each, with the kind's name
    in its place. What is wrong inside such a value goes before its being of another kind, and a word that it might be
    goes along.
    """
    grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for item in found:
        place = next((place for place, part in enumerate(item["loc"]) if _is_kind(part)), None)
        grouped.setdefault(item["loc"][:place], []).append(item)
    return [one for place, items in grouped.items() for one in _the_likeliest(place, items)]


def _is_kind(part: int | str) -> bool:
    return part in ("str", "bool") or str(part).startswith(("constrained-", "literal[", "tuple[", "function-"))


def _the_likeliest(place: tuple[Any, ...], items: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The findings at one place; where they are of several kinds, those inside the value, else one for all."""
    if len(items[0]["loc"]) == len(place):
        yield from items
        return
    inside = [item for item in items if len(item["loc"]) > len(place) + 1]
    ours = [item for item in items if item["type"] == "value_error"]
    words = [item["ctx"]["expected"] for item in items if str(item["loc"][len(place)]).startswith("literal[")]
    for item in inside or ours or items[:1]:
        yield {**item, "loc": (*place, *item["loc"][len(place) + 1 :]), **({"word": words[0]} if words else {})}


def _sentence(item: Mapping[str, Any], where: str, model: type[BaseModel]) -> str:
    """Turn one of pydantic's findings into a sentence that names the key, the trouble and the nearest known key."""
    location = [str(part) for part in item["loc"]]
    key = where + ".".join(location)
    match item["type"]:
        case "extra_forbidden":
            return f"{shown(key)}: unknown key, {_nearest_to(location, model)}"
        case "missing":
            hint = f"; give one of {', '.join(MEASURES)}" if location[-1] == "keep" else ""
            return f"{key}: is missing{hint}"
        case "model_type" if location[-1] in NESTED or location == [HEAL]:
            own = ", ".join(NESTED.get(location[-1], Heal).model_fields)
            return f"{shown(key)}: holds keys of its own, {own}: write {location[-1]}.KEY=VALUE, or a mapping in a file"
        case _:
            told, found, value = trouble(item, _EXAMPLES).partition(" (found ")
            word = f", or {item['word']}" if "word" in item else ""
            return f"{shown(key)}: {told}{word}{found}{value}"
