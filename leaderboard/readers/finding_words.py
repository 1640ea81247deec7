"""What is wrong with a value of a YAML file, in the words of such files: pydantic's findings speak of Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leaderboard.readers.plain_yaml import shown

_LISTS = frozenset({"list", "tuple", "set", "frozen_set"})
_KINDS = {
    **{f"{name}_type": "a list" for name in _LISTS},
    **{f"{name}_type": "a mapping" for name in ("dict", "mapping", "model", "model_attributes", "dataclass")},
    **{f"string_{what}": "a text" for what in ("type", "unicode")},
    **{f"int_{what}": "a whole number" for what in ("type", "parsing", "from_float", "parsing_size")},
    **{f"float_{what}": "a number" for what in ("type", "parsing")},
    **{f"bool_{what}": "true or false" for what in ("type", "parsing")},
}
"""Pydantic's name of a finding -> what the value should be."""
_COUNTS = {"too_short": "at least {min_length}", "too_long": "at most {max_length}"}
_ENTRIES = {"Dictionary": "mapping", "Mapping": "mapping"}
"""Pydantic's names of what holds entries -> ours; the others are lists."""
ANY = "VALUE"


def trouble(item: Mapping[str, Any], examples: Mapping[str, str] | None = None) -> str:
    """One of pydantic's findings without its key, as the end of a sentence: `should be a list: write [int_mult]`.

    examples: by a key or the name of a schema, how a list or a mapping is written there; `ANY` in it stands for a text
    that was given in its place.
    """
    kind, value = item["type"], item.get("input")
    if (wanted := _KINDS.get(kind)) is not None:
        return f"should be {wanted}{_way_out(item, wanted, examples or {})}"
    if kind in _COUNTS:
        return _counted(kind, item["ctx"])
    message = str(item["msg"]).removeprefix("Value error, ")
    if message.startswith("String "):
        message = message.replace("String", "text", 1)
    return f"{message[0].lower()}{message[1:]}{_found(value) if _is_bare(value) else ''}"


def _way_out(item: Mapping[str, Any], wanted: str, examples: Mapping[str, str]) -> str:
    """How to write it, as far as the value shows what was meant; else what was found."""
    value = item.get("input")
    names = (str(item["loc"][-1]) if item["loc"] else "", str(item.get("ctx", {}).get("class_name")))
    example = next((examples[name] for name in names if name in examples), None)
    if wanted in ("a list", "a mapping") and example is not None:
        if isinstance(value, str) and ANY in example:
            return f": write {example.replace(ANY, shown(value))}"
        return f", such as {example}{_found(value)}"
    if wanted == "a list" and _is_bare(value):
        return f": write [{_as_yaml(value)}]"
    if wanted == "a text" and type(value) in (int, float):
        return f': write "{_as_yaml(value)}"'
    return _found(value)


def _counted(kind: str, said: Mapping[str, Any]) -> str:
    least = _COUNTS[kind].format_map(said)
    number = said["min_length" if kind == "too_short" else "max_length"]
    holds = said.get("actual_length")
    many = f", and has {'none' if holds == 0 else holds}" if holds is not None else ""
    return f"{_ENTRIES.get(said['field_type'], 'list')} should have {least} {'item' if number == 1 else 'items'}{many}"


def _found(value: Any) -> str:
    if value is None:
        return " (found nothing)"
    if isinstance(value, (list, tuple, Mapping)):
        what = "mapping" if isinstance(value, Mapping) else "list"
        return f" (found {'a' if value else 'an empty'} {what})"
    return f" (found {_as_yaml(value) if isinstance(value, bool) else shown(repr(value))})"


def _is_bare(value: Any) -> bool:
    return isinstance(value, (str, int, float))


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)
