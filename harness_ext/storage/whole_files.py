"""Small files that are written whole or not at all: nobody reads half of one, and a kill leaves the old one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a file by way of a new one that is renamed, so that nobody reads half of it. Raises OSError."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write plain data as JSON, whole. Raises OSError."""
    write_whole(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
