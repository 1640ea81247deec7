"""JSON Lines that anybody may have written. Every failure is `Unreadable` with the file's name, the line's number and
the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from leaderboard.errors import Unreadable
from leaderboard.readers.safe_json import MAX_JSON_BYTES, parse_json

MAX_LINE_BYTES = 64 * 2**20
MAX_SAMPLES_BYTES = 8 * 2**30
# at a time: whoever waits for the disk lets another thread of Python go first, which may take its time
_BUFFER_BYTES = 2**18


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line of a JSON Lines file, one line in memory at a time. Raises `Unreadable`."""
    for number, line in read_lines(path):
        yield number, parse_line(line, path, number)


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, line as bytes) for each line that is not empty. Raises `Unreadable`.

    lm-eval 0.4.0 to 0.4.2 wrote one indented list under such a name, and tools that indent write values over several
    lines: a file of at most 256 MiB whose first line is no value, or is a list, is read whole; numbers are then those
    of its values, which come in place of lines.
    """
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            if os.fstat(file.fileno()).st_size > MAX_SAMPLES_BYTES:
                raise Unreadable(f"{path.name} has more than the {MAX_SAMPLES_BYTES // 2**30} GiB that are read")
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1 and (values := _indented(path, line)) is not None:
                    yield from enumerate(values, 1)
                    return
                if len(line) > MAX_LINE_BYTES:
                    raise Unreadable(f"{path.name} line {number} is longer than {MAX_LINE_BYTES // 2**20} MiB")
                if not line.isspace():
                    yield number, line
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from error


def _indented(path: Path, first: bytes) -> list[Any] | None:
    """The values of a file that is no JSON Lines, judged by its first line; None where it is."""
    if (
        first[:1] not in b"[{"
        or (first[:1] == b"{" and first.rstrip()[-1:] == b"}")
        or path.stat().st_size > MAX_JSON_BYTES
    ):
        return None
    decoder, values, position = json.JSONDecoder(), [], 0
    try:
        text = path.read_bytes().decode("utf-8").rstrip()
        while position < len(text):
            value, position = decoder.raw_decode(text, position)
            values.append(value)
            while position < len(text) and text[position] in " \t\r\n,":
                position += 1
    except (ValueError, RecursionError):  # what is wrong is told line by line
        return None
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def parse_line(line: Any, path: Path, number: int) -> Any:
    """The value of what `read_lines` gave. pydantic's parser takes half the time of Python's; what it refuses (a lone
    surrogate, which Python's takes, or an error to explain) Python's is asked about.
    """
    if not isinstance(line, bytes):
        return line
    try:
        return from_json(line, cache_strings="keys")
    except ValueError:
        pass
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path.name} line {number} is not UTF-8 text") from error
    return parse_json(text, f"{path.name} line {number}")
