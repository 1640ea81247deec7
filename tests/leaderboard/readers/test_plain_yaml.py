"""YAML from anywhere: what is plain data, and what is refused, naming file and line."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from leaderboard.errors import Unreadable
from leaderboard.readers.plain_yaml import DEEPEST, LARGEST_FILE, LONGEST_TEXT, load_yaml, mistyped, parse_yaml, shown
from leaderboard.readers.safe_json import load_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1\nb: [1.5, -2, 0, true, no, ~, x, 1e-4]", {"a": 1, "b": [1.5, -2, 0, True, False, None, "x", "1e-4"]}),
        ("a: '1:30'\nb: \"010\"\nc: '2026-01-01'", {"a": "1:30", "b": "010", "c": "2026-01-01"}),
        ("1: x\ntrue: y", {"1": "x", "true": "y"}),
        ("a: 0x1F\nb: 1_000\nc: -8", {"a": 31, "b": 1000, "c": -8}),
        ("a: &anchor 1", {"a": 1}),
        ("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1), None),
    ],
)
def test_plain_data(text: str, value: Any) -> None:
    read = parse_yaml(text)
    assert read == value or (text.startswith("[[") and isinstance(read, list))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "'a' is given twice (line 2)"),
        ("b: {rank: 4, rank: 2}", "'rank' is given twice (line 1)"),
        ("1: x\n'1': y", "'1' is given twice (line 2)"),
        ("a:\n- 1:30", "YAML reads 1:30 as the number 90: write that, or put 1:30 in quotes (line 2)"),
        ("a: -1:30.5", "YAML reads -1:30.5 as the number"),
        ("a: 010", "YAML reads 010 as the number 8"),
        ("a: 0_7", "YAML reads 0_7 as the number 7"),
        ("a: 2026-01-01", "YAML reads 2026-01-01 as a date: put it in quotes (line 1)"),
        ("a: 2026-01-01 10:00:00", "as a date"),
        (f"a: {'9' * 5000}", "a number of 5,000 digits is too long (line 1)"),
        (f"a: 1.{'9' * 5000}", "a number of 5,002 digits is too long (line 1)"),
        (f"a: 0x{'f' * 5000}", "too long"),
        ("[" * 20000, f"nested more than {DEEPEST} deep (line 1)"),
        ("{a: " * 20000, "nested more than"),
        ("- " * 20000, "nested more than"),
        ("? " * 20000, "nested more than"),
        ("\n".join(" " * level + "a:" for level in range(100)), f"nested more than {DEEPEST} deep (line 50)"),
        ("a: &x [1]\nb: *x", "aliases (*name) are not allowed here: write the value out (line 2)"),
        ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
        ("a: &a {x: 1}\nb:\n  <<: {y: 1}", "a key must be plain text (line 3)"),
        ("? [a, b]\n: 1", "a key must be plain text (line 1)"),
        ("{a: 1}: 2", "a key must be plain text"),
        ("a: =", "the tag tag:yaml.org,2002:value is not allowed here (line 1)"),
        ("a: !!binary aGVsbG8=", "the tag tag:yaml.org,2002:binary is not allowed here"),
        ("a: !!set {x, y}", "the tag tag:yaml.org,2002:set is not allowed here"),
        ("a: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system is not"),
        ("a: !mine 1", "the tag !mine is not allowed here"),
        ("a: 1\n---\nb: 2", "but found another document (line 2)"),
        ("a: [1", "expected ',' or ']'"),
        ("a: \x00", "it holds the character"),
        (f"a: {'x' * (LONGEST_TEXT + 1)}", "characters is too long (line 1)"),
        (f"? {'x' * (LONGEST_TEXT + 1)}\n: 1", "characters is too long (line 1)"),
    ],
)
def test_what_is_no_plain_data(text: str, words: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_yaml(text)
    assert words in str(caught.value) and len(str(caught.value)) < 300


def folder(path: Path) -> None:
    """A folder of that name."""
    path.mkdir()


def loop(path: Path) -> None:
    """A link to itself."""
    path.symlink_to(path)


def link_to_device(path: Path) -> None:
    """A link to what never ends."""
    path.symlink_to("/dev/zero")


BAD_FILES: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "cannot be read: it is a pipe or a device, not a file; give another"),
    (link_to_device, "cannot be read: it is a pipe or a device, not a file; give another"),
    (folder, "cannot be read: Is a directory; give another"),
    (loop, "cannot be read: Too many levels of symbolic links; give another"),
    (lambda path: path, "cannot be read: No such file or directory; give another"),
    (lambda path: path.write_bytes(b"a: \xff"), "is not valid YAML: it is not UTF-8 text (byte 3)"),
    (lambda path: path.write_bytes("a: 1".encode("utf-16")), "is not valid YAML: it is not UTF-8 text (byte 0)"),
    (lambda path: path.write_bytes(b"\x7fELF\x01\x02"), "is not valid YAML: it holds the character"),
    (lambda path: path.write_bytes(b"#" * (LARGEST_FILE + 1)), "has more than 1 MiB: that is no thing"),
]


@pytest.mark.parametrize(("make", "words"), BAD_FILES)
def test_what_is_no_file_of_text(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "f.yaml"
    make(path)
    with pytest.raises(Unreadable) as caught:
        load_yaml(path, "thing", hint="give another")
    assert str(caught.value).startswith(f"thing {path} {words}")


def test_a_path_with_a_zero_byte_or_too_long_is_told() -> None:
    for name in ("a\0b.yaml", "x" * 5000):
        with pytest.raises(Unreadable, match="cannot be read: "):
            load_yaml(Path(name), "thing")


def test_a_mark_of_byte_order_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert load_yaml(tmp_path / "f.yaml", "thing") == {"a": 1}


def test_json_from_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    said: list[str] = []

    def read() -> None:
        with pytest.raises(Unreadable) as caught:
            load_json(tmp_path / "results.json")
        said.append(str(caught.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert said == ["results.json cannot be read: it is a pipe or a device, not a file"]


class Inner(BaseModel):
    """What a schema makes of numbers and booleans."""

    number: int | float = 0
    flag: bool = False
    text: str = ""
    each: tuple[int | str, ...] = ()
    named: dict[str, float] = {}


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({"number": True}, [("number", "should be a number (found true)")]),
        ({"each": [1, False]}, [("each.1", "should be a number (found false)")]),
        ({"named": {"a": True}}, [("named.a", "should be a number (found true)")]),
        ({"flag": 1}, [("flag", "should be true or false (found 1)")]),
        ({"flag": "yes"}, [("flag", "should be true or false (found yes)")]),
        ({"flag": True, "number": 1, "text": "true", "each": [0, 1], "named": {"a": 1}}, []),
    ],
)
def test_a_boolean_is_no_number_and_a_number_no_boolean(raw: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert list(mistyped(raw, Inner.model_validate(raw))) == found


def test_values_in_messages_are_short() -> None:
    assert shown("x" * 100) == "x" * 77 + "..." and shown(10**5000) == "a number of thousands of digits"
