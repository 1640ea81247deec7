"""What tells that files have changed since they were looked at, without opening them.

Notable choices:
- A file is known by name, size, number (inode) and the times of its last change. The kernel sets one of the times
  (`ctime`) at every change, whatever a program says of the other: a file rewritten in place, of the same size and with
  its old date put back, is another.
- A file that changed within the last seconds has no stamp: times have a grain, and it may change once more within it.
  So has one whose times lie in the future, by a clock that was put back.
- The name of the folder counts, because samples without results are called by it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from functools import cache
from importlib import metadata
from typing import NamedTuple

from leaderboard.readers.discovery import Candidate
from leaderboard.readers.source_code import digest_of, sources_of

SETTLED_NS = 3_000_000_000
"""How long ago a file must have changed: more than the grain of times on any file system."""
_READING = ("readers/reader.py", "readers/discovery.py", "store/writer.py")
_PACKAGES = ("pydantic", "pyarrow")


@cache
def code() -> str:
    """A digest of everything that decides what reading a run gives."""
    versions = (f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return digest_of(sources_of(*_READING), platform.python_version(), *versions)


class FileState(NamedTuple):
    """When the last of some files changed, in ns, and a digest of their names, sizes, numbers and times."""

    newest: int
    digest: str


def state_of(candidate: Candidate) -> FileState | None:
    """The state of its files; None where one of them has gone."""
    facts, newest = [candidate.path.parent.name], 0
    for file in candidate.files:
        try:
            found = os.stat(file)
        except OSError:
            return None
        newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
        facts.append(f"{file.name}\0{found.st_size}\0{found.st_ino}\0{found.st_mtime_ns}\0{found.st_ctime_ns}")
    digest = hashlib.sha256("\0\0".join(facts).encode("utf-8", "surrogateescape")).hexdigest()
    return FileState(newest, digest[:32])


def stamp_of(candidate: Candidate) -> str | None:
    """What its files and the code that reads them are now; None where that cannot be relied on."""
    moment = time.time_ns()
    state = state_of(candidate)
    if state is None or state.newest + SETTLED_NS > moment:
        return None
    return f"{code()} {state.digest}"
