"""Where runs lie: stored relative to the store's folder where they lie below it, so that the folder may be moved.

Notable choice: stores of earlier versions hold absolute paths. One that no longer leads anywhere is looked for below
the store's folder by its tail, the longest first.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path

from leaderboard.readers.safe_json import clean

_PLAIN_PLACE = re.compile(r"(?:[^/\\.][^/\\]*/)*[^/\\.][^/\\]*").fullmatch
"""Whether a path is relative, and written in the one way in which `Path` writes it."""


def file_of(database: Path) -> Path:
    """The database's own path, where a link leads to it."""
    return database.resolve() if database.is_symlink() else database


class RunPlaces:
    """The paths of one store. folder: the store's; None for a store in memory, whose paths are kept as they are."""

    def __init__(self, database: Path | None) -> None:
        self.folder = None if database is None else database.resolve().parent

    def stored(self, path: Path) -> str:
        """A path as the store keeps it."""
        if self.folder is None:
            return clean(str(path))
        whole = path.absolute()
        inside = whole.is_relative_to(self.folder) and ".." not in whole.parts
        return clean(str(whole.relative_to(self.folder) if inside else whole))

    def resolved(self, text: str) -> Path:
        """Where a stored path leads now."""
        path = Path(text)
        if self.folder is None:
            return path
        if not path.is_absolute():
            return self.folder / path
        if os.path.exists(path):
            return path
        return self._by_tail(self.folder, path) or path

    def resolved_text(self, text: str) -> str:
        """`resolved` as text: quicker for paths below the store's folder, of which there are thousands."""
        if self.folder is None or not _PLAIN_PLACE(text):
            return str(self.resolved(text))
        return os.path.join(self.folder, text)

    def _by_tail(self, folder: Path, path: Path) -> Path | None:
        tails = (path.parts[start:] for start in range(1, len(path.parts)) if path.parts[start] in self._names)
        return next((here for tail in tails if os.path.exists(here := folder.joinpath(*tail))), None)

    @cached_property
    def _names(self) -> frozenset[str]:
        """What lies in the folder: spares a look-up for every tail."""
        try:
            return frozenset(os.listdir(self.folder))
        except OSError:
            return frozenset()
