"""Members of a ZIP file that anybody may have written: bounded, and nothing is unpacked to disk.

Notable choice: what the file says of its members' sizes is not believed. Each is read up to a limit, and all of them
together up to another, so that a bomb costs no more than these.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leaderboard.errors import Unreadable
from leaderboard.readers.safe_json import opened, parse_json

MAX_FILE_BYTES = 8 * 2**30
MAX_MEMBERS = 1_000_000
MAX_MEMBER_BYTES = 64 * 2**20
MAX_BYTES = 8 * 2**30
_ZSTANDARD = 93


class JsonArchive:
    """An open archive of JSON files."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._left = MAX_BYTES
        self.names = archive.namelist()

    def json(self, name: str) -> Any:
        """The value in a member. Raises `Unreadable`."""
        where = f"{self._path.name}, in it {name[:100]!r},"
        member = self._archive.getinfo(name)
        if member.compress_type == _ZSTANDARD:
            raise Unreadable(
                f"{self._path.name} is compressed by Zstandard, which is not read: `inspect log convert --to json`"
            )
        try:
            with self._archive.open(member) as file:
                data = file.read(MAX_MEMBER_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise Unreadable(f"{where} cannot be unpacked: {error}") from error
        self._left -= len(data)
        if len(data) > MAX_MEMBER_BYTES:
            raise Unreadable(f"{where} has more than the {MAX_MEMBER_BYTES // 2**20} MiB that are read")
        if self._left < 0:
            raise Unreadable(f"{self._path.name} holds more than the {MAX_BYTES // 2**30} GiB that are read")
        try:
            return parse_json(data.decode("utf-8-sig"), where)
        except UnicodeDecodeError as error:
            raise Unreadable(f"{where} is not UTF-8 text (byte {error.start})") from error


@contextmanager
def open_archive(path: Path) -> Iterator[JsonArchive]:
    """Open a ZIP file of JSON files. Raises `Unreadable`."""
    try:
        with opened(path) as source:
            if source.seek(0, 2) > MAX_FILE_BYTES:
                raise Unreadable(f"{path.name} has more than the {MAX_FILE_BYTES // 2**30} GiB that are read")
            try:
                archive = zipfile.ZipFile(source)
            except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                raise Unreadable(f"{path.name} is not an archive (ZIP), or is cut off: {error}") from error
            with archive:
                if len(archive.infolist()) > MAX_MEMBERS:
                    raise Unreadable(f"{path.name} has more than the {MAX_MEMBERS:,} members that are read")
                yield JsonArchive(path, archive)
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror or error}") from error
