"""A log of bounded size: the beginning and the end of what a command prints, readable at any moment."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

HEAD_BYTES = 256 * 1024
TAIL_BYTES = 1024 * 1024


class BoundedLog:
    """A file that holds the head and the tail of what is written to it, never above `head + 2 tail` bytes and a line.

    secrets: texts that become `***`. head, tail: bytes. A file that cannot be written is given up, so that whoever
    prints is not held up; what a disk refuses is lost.
    """

    def __init__(self, path: Path, secrets: Iterable[str] = (), head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> None:
        self._path = path
        self._secrets = [secret.encode() for secret in sorted(secrets, key=len, reverse=True)]
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)))
        self._carried = b""
        self._head, self._tail = head, tail
        self._left_out = 0
        self._marker = b""
        with suppress(OSError):
            path.write_bytes(b"")

    def write(self, block: bytes) -> None:
        """Add bytes. Those that may be the beginning of a secret wait for the next."""
        if not self._secrets:
            self._put(block)
            return
        text = self._carried + block
        cut = len(text) - max(_overlap(text, secret) for secret in self._secrets)
        cut = min([cut, *(match.start() for match in self._pattern.finditer(text) if match.end() > cut)])
        self._carried = text[cut:]
        self._put(self._pattern.sub(b"***", text[:cut]))

    def close(self) -> None:
        """Write what waits, and cut the file to its head and tail."""
        if self._carried:
            self._put(self._pattern.sub(b"***", self._carried))
        self._carried = b""
        with suppress(OSError):
            if self._path.stat().st_size > self._head + len(self._marker) + self._tail:
                self._cut()

    def empty(self) -> None:
        """Give the room on the disk back."""
        with suppress(OSError):
            self._path.write_bytes(b"")

    def _put(self, text: bytes) -> None:
        with suppress(OSError):
            with self._path.open("ab") as file:
                file.write(text)
                size = file.tell()
            if size > self._head + len(self._marker) + 2 * self._tail:
                self._cut()

    def _cut(self) -> None:
        whole = self._path.read_bytes()
        start = self._head + len(self._marker)
        self._left_out += len(whole) - start - self._tail
        self._marker = b"\n... %d bytes left out ...\n" % self._left_out
        new = self._path.with_name(f".{self._path.name}")
        new.write_bytes(whole[: self._head] + self._marker + whole[len(whole) - self._tail :])
        new.replace(self._path)


def _overlap(text: bytes, secret: bytes) -> int:
    """How many bytes at the end of a text are the beginning of a secret."""
    return next((size for size in range(min(len(secret) - 1, len(text)), 0, -1) if text.endswith(secret[:size])), 0)
