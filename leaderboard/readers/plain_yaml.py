"""Reading YAML that anybody may have written, as plain data: policies, recipes, configurations of runs.

Refused, with the line: aliases, which can make a small file enormous; keys given twice, of which YAML silently takes
the last; nesting, texts and numbers beyond any use; tags; and what YAML 1.1 reads as something else than it looks like:
`1:30` (the number 90), `010` (the number 8) and dates. The values are None, booleans, numbers, texts, lists and
mappings whose keys are texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from leaderboard.errors import Unreadable
from leaderboard.readers.safe_json import opened

LARGEST_FILE = 2**20
DEEPEST = 50
LONGEST_TEXT = 2**18
_MOST_DIGITS = 40
_WIDEST = 80
WIDEST_PATH = 1_000
"""How much of a path is shown: its end tells which file is meant."""
_CORE = "tag:yaml.org,2002:"
_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


def load_yaml(path: Path, what: str, *, hint: str = "", largest: int = LARGEST_FILE) -> Any:
    """The value in a YAML file of at most `largest` bytes; None for an empty one.

    what: the kind of file, which opens the message. hint: what to do about a file that cannot be read.

    Raises `Unreadable`.
    """
    try:
        with opened(path) as file:
            content = file.read(largest + 1)
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(f"{what} {path} cannot be read: {reason}{'; ' if hint else ''}{hint}") from None
    if len(content) > largest:
        raise Unreadable(f"{what} {path} has more than {largest >> 20} MiB: that is no {what}")
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"{what} {path} is not valid YAML: it is not UTF-8 text (byte {error.start})") from None
    except Unreadable as error:
        raise Unreadable(f"{what} {path} is not valid YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """The value of one YAML text. Raises `Unreadable` with the reason and the line."""
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.reader.ReaderError as error:
        raise Unreadable(f"it holds the character {error.character!r}, which text does not have") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        words = " ".join(str(getattr(error, "problem", None) or error).split()) or "nested too deeply"
        raise Unreadable(shown(words, 2 * _WIDEST) + (_line(mark) if mark else "")) from None


def mistyped(raw: Any, read: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Where a schema (of pydantic) took a boolean for a number or text, or the other way round: keys and sentences.

    raw: plain data. read: what the schema made of it, models and their values.
    """
    if isinstance(raw, bool) and read is not None and read is not raw:
        yield place, f"should be {'a text' if isinstance(read, str) else 'a number'} (found {str(raw).lower()})"
    elif isinstance(read, bool) and isinstance(raw, (int, float, str)) and read is not raw:
        yield place, f"should be true or false (found {shown(raw)})"
    elif isinstance(raw, Mapping):
        for key, value in raw.items():
            inner = read.get(key) if isinstance(read, Mapping) else getattr(read, str(key), None)
            yield from mistyped(value, inner, f"{place}.{key}" if place else str(key))
    elif isinstance(raw, (list, tuple)) and isinstance(read, (list, tuple)):
        for number, (value, inner) in enumerate(zip(raw, read, strict=False)):
            yield from mistyped(value, inner, f"{place}.{number}")


def shown(value: object, width: int = _WIDEST) -> str:
    """A value for a message: at most so many characters; texts as they are, anything else as Python writes it."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= width else f"{text[: width - 3]}..."


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader for plain data only."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, deep nesting and long texts."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases (*name) are not allowed here: write the value out", event.start_mark)
        if self._depth >= DEEPEST:
            raise _refused(f"nested more than {DEEPEST} deep", event.start_mark)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_TEXT:
            raise _refused(f"a text of {len(event.value):,} characters is too long", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is given twice, or is no text."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == f"{_CORE}merge" or not isinstance(key, yaml.ScalarNode):
                raise _refused("a key must be plain text", key.start_mark)
            if key.value in seen:
                raise _refused(f"{shown(key.value)!r} is given twice", key.start_mark)
            seen.add(key.value)
        return {str(key.value): self.construct_object(value, deep=True) for key, value in node.value}

    def construct_number(self, node: Any) -> int | float:
        """Refuse numbers that YAML reads in another base, and absurd ones."""
        text: str = node.value
        if len(text) > _MOST_DIGITS:
            raise _refused(f"a number of {len(text):,} digits is too long", node.start_mark)
        if _SEXAGESIMAL.fullmatch(text) or _OCTAL.fullmatch(text):
            number = self.construct_yaml_float(node) if "." in text else self.construct_yaml_int(node)
            raise _refused(
                f"YAML reads {text} as the number {number}: write that, or put {text} in quotes", node.start_mark
            )
        is_float = node.tag == f"{_CORE}float"
        return self.construct_yaml_float(node) if is_float else self.construct_yaml_int(node)

    def refuse_date(self, node: Any) -> None:
        """Refuse what YAML reads as a date."""
        raise _refused(f"YAML reads {shown(node.value)} as a date: put it in quotes", node.start_mark)

    def refuse_tag(self, node: Any) -> None:
        """Refuse every other tag, known or not."""
        raise _refused(f"the tag {shown(node.tag)} is not allowed here", node.start_mark)


_PlainLoader.yaml_constructors = {
    **{
        f"{_CORE}{kind}": yaml.SafeLoader.yaml_constructors[f"{_CORE}{kind}"] for kind in ("null", "bool", "str", "seq")
    },
    f"{_CORE}map": lambda loader, node: loader.construct_mapping(node, deep=True),
    **dict.fromkeys((f"{_CORE}int", f"{_CORE}float"), _PlainLoader.construct_number),
    f"{_CORE}timestamp": _PlainLoader.refuse_date,
    None: _PlainLoader.refuse_tag,
}


def _refused(reason: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=mark)


def _line(mark: Any) -> str:
    return f" (line {mark.line + 1})"


def listed(mistakes: Iterable[str], most: int = 20) -> str:
    """Mistakes as lines of a message, each once, the first so many."""
    found = list(dict.fromkeys(mistakes))
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return "".join(f"\n  - {mistake}" for mistake in [*found[:most], *more])
