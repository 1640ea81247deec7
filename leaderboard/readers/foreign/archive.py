"""Members of a ZIP file that anybody may have written: bounded, and nothing is unpacked to disk.

Notable choice: what the file says of its members' sizes is not believed. Each is read up to a limit, and all of them
together up to another, so that a bomb costs no more than these.
"""

from __future__ import annotations

import struct
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
_LOCAL_HEADER = struct.Struct("<26xHH")  # of which the lengths of the name and of what follows it are read


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
        try:
            data = self._zstandard(member) if member.compress_type == _ZSTANDARD else self._plain(member)
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

    def _plain(self, member: zipfile.ZipInfo) -> bytes:
        with self._archive.open(member) as file:
            return file.read(MAX_MEMBER_BYTES + 1)

    def _zstandard(self, member: zipfile.ZipInfo) -> bytes:
        """A member in the compression that Inspect writes now, and that Python reads from 3.14 on."""
        import pyarrow

        header = self._raw(member.header_offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            raise EOFError("its header is cut off")
        name, extra = _LOCAL_HEADER.unpack(header)
        start = member.header_offset + _LOCAL_HEADER.size + name + extra
        packed = pyarrow.BufferReader(self._raw(start, min(member.compress_size, MAX_MEMBER_BYTES)))
        try:
            data = bytes(pyarrow.CompressedInputStream(packed, "zstd").read(MAX_MEMBER_BYTES + 1))
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(str(error)[:200]) from error
        if len(data) <= MAX_MEMBER_BYTES and zlib.crc32(data) != member.CRC:
            raise zipfile.BadZipFile("its checksum is another")
        return data

    def _raw(self, start: int, size: int) -> bytes:
        assert self._archive.fp is not None
        self._archive.fp.seek(start)
        return self._archive.fp.read(size)


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
