"""Rows of a Parquet file that anybody may have written: bounded, and never a traceback.

Notable choice: what a file says of its size is not believed. Rows are read some at a time, and their size is counted as
they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leaderboard.errors import Unreadable
from leaderboard.readers.safe_json import opened

MAX_FILE_BYTES = 2 * 2**30
MAX_ROWS = 5_000_000
MAX_BYTES = 8 * 2**30
_ROWS_AT_ONCE = 1_000
_MAX_ROW_GROUP_BYTES = 2 * 2**30


def read_rows(path: Path, columns: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Each row as a dict of those of its columns that are asked for. Raises `Unreadable`."""
    import pyarrow
    from pyarrow import parquet

    try:
        with opened(path) as source:
            _check(source.seek(0, 2) <= MAX_FILE_BYTES, path, f"has more than {MAX_FILE_BYTES // 2**30} GiB")
            source.seek(0)
            file = parquet.ParquetFile(source)
            _check(file.metadata.num_rows <= MAX_ROWS, path, f"has more than {MAX_ROWS:,} rows")
            groups = [file.metadata.row_group(place).total_byte_size for place in range(file.num_row_groups)]
            _check(max(groups, default=0) <= _MAX_ROW_GROUP_BYTES, path, "has a row group of more than 2 GiB")
            names = [name for name in file.schema_arrow.names if name in columns]
            size = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=names):
                size += batch.nbytes
                _check(size <= MAX_BYTES, path, f"holds more than {MAX_BYTES // 2**30} GiB")
                yield from batch.to_pylist()
    except OSError as error:
        if isinstance(error, pyarrow.ArrowException) or error.strerror is None:
            raise Unreadable(f"{path.name} is not Parquet, or is cut off: {_first_line(error)}") from None
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from error
    except (pyarrow.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise Unreadable(f"{path.name} is not Parquet, or is cut off: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _check(holds: bool, path: Path, what: str) -> None:
    if not holds:
        raise Unreadable(f"{path.name} {what}, more than is read")
