"""Putting a new database file in the place of the old one, which is kept under a name of its own."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_OLD_KEPT = 3  # files of before a rebuild


def replace_database(temporary: Path, database: Path) -> list[str]:
    """Rename the new file into place, and the old one, with its write-ahead log, to a name of its own: at no moment is
    there none. Returns sentences about it. Raises OSError.
    """
    said = []
    log = Path(f"{database}.wal")
    if database.exists():
        earlier = sorted(_kept_before(database))
        number = earlier[-1] + 1 if earlier else 1
        for file, kept in (
            (database, _kept_name(database, number)),
            (log, Path(f"{_kept_name(database, number)}.wal")),
        ):
            if file.exists():
                _second_name(file, kept)
        said.append(f"the old database is kept as {_kept_name(database, number)}")
        for old in earlier[: 1 - _OLD_KEPT]:
            for file in (_kept_name(database, old), Path(f"{_kept_name(database, old)}.wal")):
                file.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    os.replace(temporary, database)
    return said


def _kept_name(database: Path, number: int) -> Path:
    return Path(f"{database}.before-rebuild-{number}")


def _kept_before(database: Path) -> Iterator[int]:
    for file in database.parent.glob(f"{glob.escape(database.name)}.before-rebuild-*"):
        number = file.name.rpartition("-")[2]
        if number.isdecimal() and len(number) < 10:
            yield int(number)


def _second_name(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # a file system without links
        shutil.copy2(file, name)
