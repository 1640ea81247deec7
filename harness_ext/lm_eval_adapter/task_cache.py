"""The file that keeps lm-eval's task index between starts.

The file is JSON, so that a damaged or foreign one can do no more than be thrown away. Its name holds lm-eval's version
and the folder, so that environments do not share one. Its content is valid for one fingerprint: path, size and
times of every file below the folder that a task configuration can be made of; besides the time of modification that of
the last change of the entry, which cannot be set back. Python files are left out, since the index does not run them.
Nothing of a task's configuration comes from here: lm-eval reads the file of every task that it builds. Where the file
cannot be kept (no home, a read-only or full disk) there is no cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness_ext.storage.paths import cache_folder, keep_text

FORMAT = 1
_IGNORED_FOLDERS = frozenset({"__pycache__", ".ipynb_checkpoints"})


class TaskRow(NamedTuple):
    """One name of the index: `kind` as lm-eval's enumeration names it, `file` relative to the folder (None for a
    tag).
    """

    name: str
    kind: str
    file: str | None
    tags: list[str]
    output_type: str | None


class SavedIndex(NamedTuple):
    """What one folder's task files come to: the rows in order, and what lm-eval warned about while it read them."""

    rows: list[TaskRow]
    warnings: list[str]


def cache_file(root: Path, version: str) -> Path | None:
    """Where the index of `root` is kept for this version of lm-eval."""
    folder = cache_folder()
    key = hashlib.sha256(f"{version}\n{root}".encode()).hexdigest()[:16]
    return folder / f"task-index-{key}.json" if folder else None


def fingerprint(root: Path) -> str:
    """A digest of path, size and times of every file below `root` that is not Python."""
    digest = hashlib.sha256()
    for line in sorted(_stat_lines(str(root))):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stat_lines(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name not in _IGNORED_FOLDERS:
                    yield from _stat_lines(entry.path)
            elif not entry.name.endswith((".py", ".pyc")):
                status = entry.stat()
                yield f"{entry.path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"


def read(path: Path | None, expected_fingerprint: str) -> SavedIndex | None:
    """The saved index, or None where there is none, it is stale, or it is not what `write` writes."""
    if path is None:
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT or content["fingerprint"] != expected_fingerprint:
            return None
        return SavedIndex(
            [_checked(TaskRow(*row)) for row in content["rows"]], [str(text) for text in content["warnings"]]
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _checked(row: TaskRow) -> TaskRow:
    # A path that leads out of the folder could not have been written by us, and its file could name code to run.
    if row.file is not None and (row.file.startswith(("/", "\\")) or ".." in row.file.split("/")):
        raise ValueError(row.file)
    return row


def write(path: Path | None, key: str, saved: SavedIndex) -> bool:
    """Keep the index under its fingerprint `key`; whole or not at all. False where it cannot be kept."""
    if path is None:
        return False
    content = json.dumps(
        {"format": FORMAT, "fingerprint": key, "rows": saved.rows, "warnings": saved.warnings}, separators=(",", ":")
    )
    return keep_text(path, content)
