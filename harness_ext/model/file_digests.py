"""SHA-256 of large files, worked out once: in a process, and across processes from a file in the cache folder.

A digest is kept beside all of a file's stamp: device, inode, size, and the times of the last change of its contents and
of its status, of which the latter cannot be set by hand. A file that changed less than two seconds before it was read
could change again within the same tick of its clock, so its digest is not kept (git's rule for its index), and neither
is that of a file that changed while it was read. What is kept can be thrown away at any time: an entry that is missing,
damaged or foreign costs the time of hashing. Every path has an entry of its own, written whole, so processes do not
disturb each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from harness_ext.errors import UserError
from harness_ext.storage.paths import cache_folder, keep_text

FORMAT = 1
THREADS = 4
"""Files hashed at once."""
_BLOCK = 1 << 22
_SMALLEST = 1 << 20
"""Files below are hashed as fast as they are looked up."""
_SETTLED_NS = 2_000_000_000
_MOST_ENTRIES = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileStamp(NamedTuple):
    """What changes when a file does. The time of the last change of its status cannot be set by hand, as the time of
    its contents can.
    """

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """The stamp of a file by its status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def settled(self, now_ns: int) -> bool:
        """Whether a change from `now_ns` on must show in the times."""
        return now_ns - max(self.modified_ns, self.changed_ns) > _SETTLED_NS


class FileDigests:
    """Digests of files; safe to use from several threads, each file hashed by the first that asks for it."""

    def __init__(self) -> None:
        self._digests: dict[tuple[Path, FileStamp], Future[str]] = {}
        self._lock = threading.Lock()
        self._begun: dict[Path, FileStamp] = {}

    def begin(self, paths: Iterable[Path]) -> None:
        """Note the stamps of files, and start to hash them beside what else is done, the largest first. A file that
        cannot be read is left to whoever asks for it.
        """
        for path in paths:
            with suppress(OSError):
                self._begun[path] = FileStamp.of(path.stat())
        waiting = sorted(self._begun, key=lambda path: self._begun[path].size)

        def work() -> None:
            with suppress(IndexError):
                while True:
                    path = waiting.pop()
                    with suppress(UserError):
                        self.digest(path)

        for number in range(min(THREADS, len(waiting))):
            # Whoever gives up need not wait for them.
            threading.Thread(target=work, daemon=True, name=f"hashing files {number}").start()

    @property
    def busy(self) -> bool:
        """Whether a file that `begin` named is not hashed yet."""
        with self._lock:
            done = {key for key, future in self._digests.items() if future.done()}
        return any(item not in done for item in self._begun.items())

    def changed(self) -> list[Path]:
        """The files whose contents are, or may be, others than when `begin` noted them."""
        return [path for path, stamp in self._begun.items() if not self._is_still(path, stamp)]

    def _is_still(self, path: Path, stamp: FileStamp) -> bool:
        try:
            if FileStamp.of(path.stat()) == stamp:
                return True
        except OSError:
            return False
        hashed = self._digests.get((path, stamp))
        return hashed is not None and hashed.result() == self.digest(path)

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's contents; of a file that is not there, the word. Raises UserError for one that cannot be
        read.
        """
        try:
            with path.open("rb") as file:
                stamp = FileStamp.of(os.fstat(file.fileno()))
                with self._lock:
                    known = self._digests.get((path, stamp))
                    future = self._digests.setdefault((path, stamp), Future())
                if known is None:
                    self._work_out(future, path, stamp, file.fileno())
                return future.result()
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None

    def _work_out(self, future: Future[str], path: Path, stamp: FileStamp, descriptor: int) -> None:
        try:
            started = time.time_ns()
            digest = read_entry(path, stamp)
            if digest is None:
                digest = _hashed(descriptor)
                if FileStamp.of(os.fstat(descriptor)) != stamp:
                    self._forget(path, stamp)
                elif stamp.size >= _SMALLEST and stamp.settled(started):
                    write_entry(path, stamp, digest)
            future.set_result(digest)
        except BaseException as error:
            self._forget(path, stamp)
            future.set_exception(error)
            if not isinstance(error, OSError):
                raise

    def _forget(self, path: Path, stamp: FileStamp) -> None:
        with self._lock:
            self._digests.pop((path, stamp), None)


def _hashed(descriptor: int) -> str:
    hasher = hashlib.sha256()
    while block := os.read(descriptor, _BLOCK):
        hasher.update(block)
    return hasher.hexdigest()


def _entry(path: Path) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]
    return folder / "file-digests" / f"{name}.json"


def read_entry(path: Path, stamp: FileStamp) -> str | None:
    """The digest that was kept for a file with this stamp; None where there is none, or it is no such entry."""
    entry = _entry(path) if stamp.size >= _SMALLEST else None
    if entry is None:
        return None
    try:
        content = json.loads(entry.read_bytes())
        expected = {"format": FORMAT, "path": os.path.abspath(path), "stamp": list(stamp)}
        digest = content.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return digest if content == expected and isinstance(digest, str) and _SHA256.fullmatch(digest) else None


def write_entry(path: Path, stamp: FileStamp, digest: str) -> None:
    """Keep a digest; whole or not at all."""
    entry = _entry(path)
    if entry is None:
        return
    content = {"format": FORMAT, "path": os.path.abspath(path), "stamp": list(stamp), "sha256": digest}
    with suppress(OSError, ValueError):  # no such path, or no room
        text = json.dumps(content, ensure_ascii=True)
        if keep_text(entry, text):
            _sweep(entry.parent)


def _sweep(folder: Path) -> None:
    """Remove the older half of the entries where there are too many."""
    entries = [Path(found.path) for found in os.scandir(folder)]
    if len(entries) < _MOST_ENTRIES:
        return

    def written(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0

    for path in sorted(entries, key=written)[: len(entries) // 2]:
        with suppress(OSError):
            path.unlink()
