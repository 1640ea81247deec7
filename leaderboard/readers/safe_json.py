"""Reading JSON that anybody may have written: bounded, typed, and never a traceback.

Notable choices:
- `NaN` and `Infinity` are accepted by the parser, because lm-eval writes them, and become "not finite" where a number
  is asked for: they are stored as NULL beside their text and never take part in arithmetic.
- Text is made storable (unpaired surrogates and NUL replaced) but otherwise kept as it is: whoever shows it shows it as
  text.
- Every failure is `Unreadable` with the file's name and the reason.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from leaderboard.errors import Unreadable

MAX_JSON_BYTES = 256 * 2**20
_LARGEST_INTEGER = 2**63 - 1
# made once: `json.dumps` with settings makes one a call
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
_BOUNDARY = uuid4().hex  # between values that are encoded in one go: nobody can have written it into a file
_DOCUMENT = json.JSONEncoder(ensure_ascii=False)


def opened(path: Path) -> BinaryIO:
    """A file to read from. Raises OSError, also for a pipe or a device, whose reading may never end."""
    kind = path.stat().st_mode
    if stat.S_ISREG(kind):
        # It may be another by now, so that opening it must not wait either.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        kind = os.fstat(handle).st_mode
        if stat.S_ISREG(kind):
            return os.fdopen(handle, "rb")
        os.close(handle)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))


def load_json(path: Path) -> Any:
    """The value in a JSON file of at most 256 MiB. Raises `Unreadable`."""
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            raise Unreadable(
                f"{path.name} has {size / 2**20:.0f} MiB, more than the {MAX_JSON_BYTES // 2**20} MiB that are read"
            )
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


@contextmanager
def no_collection() -> Iterator[None]:
    """Leave Python's cycle collector out for a while: JSON has no cycles, and it would go over a million new values
    again and again.
    """
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


def canonical_each(values: Sequence[Any]) -> list[str]:
    """`canonical` of many values in one go, which takes half the time."""
    parts: list[Any] = [_BOUNDARY] * (2 * len(values))
    parts[::2] = values
    return clean(_CANONICAL.encode(parts)[1:-1] + ",").split(f',"{_BOUNDARY}",')[:-1]


def document_text(value: Any) -> str:
    """A document as JSON in the order of its own keys."""
    return _DOCUMENT.encode(value)


def digest(value: Any) -> str:
    """SHA-256 of `canonical(value)` in hex."""
    return hashlib.sha256(canonical(value).encode("utf-8")).hexdigest()
