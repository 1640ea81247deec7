"""Reading JSON that anybody may have written: bounded, typed, and never a traceback.

Notable choices:
- `NaN` and `Infinity` are accepted by the parser, because lm-eval writes them, and become "not finite" where a number is
  asked for: they are stored as NULL beside their text and never take part in arithmetic.
- Text is made storable (unpaired surrogates and NUL replaced) but otherwise kept as it is: whoever shows it shows it as text.
- Every failure is `Unreadable` with the file's name and the reason.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from leaderboard.errors import Unreadable

MAX_JSON_BYTES = 256 * 2**20
MAX_LINE_BYTES = 64 * 2**20
MAX_SAMPLES_BYTES = 8 * 2**30
_LARGEST_INTEGER = 2**63 - 1
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)  # made once: `json.dumps` with settings makes one a call
_DOCUMENT = json.JSONEncoder(ensure_ascii=False)


def load_json(path: Path) -> Any:
    """The value in a JSON file of at most 256 MiB. Raises `Unreadable`."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise Unreadable(f"{path.name} has {size / 2**20:.0f} MiB, more than the {MAX_JSON_BYTES // 2**20} MiB that are read")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path.name} is not UTF-8 text (byte {error.start})") from error
    return parse_json(text, path.name)


def parse_json(text: str, where: str) -> Any:
    """Parse one JSON text; `where` opens the message. Raises `Unreadable`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = "is empty" if not text.strip() else f"is not JSON, or is cut off: {error.msg} at line {error.lineno}"
        raise Unreadable(f"{where} {what}") from error
    except RecursionError as error:
        raise Unreadable(f"{where} is nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise Unreadable(f"{where} holds a number that cannot be read: {error}") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line of a JSON Lines file, one line in memory at a time. Raises `Unreadable`.

    lm-eval 0.4.0 to 0.4.2 wrote one indented list under such a name, and tools that indent write values over several lines: a file of at most 256 MiB whose first line is no value, or is a
    list, is read whole, and numbers are then those of its values.
    """
    try:
        if path.stat().st_size > MAX_SAMPLES_BYTES:
            raise Unreadable(f"{path.name} has more than the {MAX_SAMPLES_BYTES // 2**30} GiB that are read")
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1 and (values := _indented(path, line)) is not None:
                    yield from enumerate(values, 1)
                    return
                if len(line) > MAX_LINE_BYTES:
                    raise Unreadable(f"{path.name} line {number} is longer than {MAX_LINE_BYTES // 2**20} MiB")
                if not line.isspace():
                    yield number, _parse_line(line, path, number)
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from error


def _indented(path: Path, first: bytes) -> list[Any] | None:
    """The values of a file that is no JSON Lines, judged by its first line; None where it is."""
    if first[:1] not in b"[{" or (first[:1] == b"{" and first.rstrip()[-1:] == b"}") or path.stat().st_size > MAX_JSON_BYTES:
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


def _parse_line(line: bytes, path: Path, number: int) -> Any:
    """One line by pydantic's parser, which takes half the time; what it refuses (a lone surrogate, which Python's takes, or an error to explain) by Python's."""
    try:
        return from_json(line, cache_strings="keys")
    except ValueError:
        pass
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path.name} line {number} is not UTF-8 text") from error
    return parse_json(text, f"{path.name} line {number}")


@contextmanager
def no_collection() -> Iterator[None]:
    """Leave Python's cycle collector out for a while: JSON has no cycles, and it would go over a million new values again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def clean(text: str) -> str:
    """`text` with what UTF-8 or SQL cannot hold replaced."""
    if text.isascii():
        return text.replace("\x00", "\N{REPLACEMENT CHARACTER}") if "\x00" in text else text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\N{REPLACEMENT CHARACTER}")


def optional_text(value: Any) -> str | None:
    """A string or number as clean text; None for everything else."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return None


def finite(value: Any) -> float | None:
    """A finite number (or a boolean, as 0 or 1) as float; None for everything else."""
    if not isinstance(value, (bool, int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def integer(value: Any) -> int | None:
    """A whole number that fits 64 bits; None for everything else."""
    if type(value) is int and abs(value) < 2**53:  # nearly all, and there are millions
        return value
    number = finite(value)
    if number is None or isinstance(value, bool) or number != int(number) or abs(number) > _LARGEST_INTEGER / 2:
        return None
    return int(number)


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def canonical(value: Any) -> str:
    """The one text of a JSON value: keys sorted, no spaces. Equal values have equal texts."""
    return clean(_CANONICAL.encode(value))


def document_text(value: Any) -> str:
    """A document as JSON in the order of its own keys."""
    return _DOCUMENT.encode(value)


def digest(value: Any) -> str:
    """SHA-256 of `canonical(value)` in hex."""
    return hashlib.sha256(canonical(value).encode("utf-8")).hexdigest()
