"""The caches of the library `datasets`, keyed by content.

That library keeps converted files under their path and date, and the results of `map`, `filter` and `from_generator`
under the name of the function where that is one of a module. A file replaced under its old date, or a helper that was
repaired, would go on giving the old documents, in this process and in later ones.

The patches, which stay once `install` was called: `_get_single_origin_metadata` of `datasets.data_files`, to which the
digest of a local file is added, and `Hasher.hash` of `datasets.fingerprint`, to which the digest of the code of a
function is added where that lies beside a task. They make keys differ that were equal, never the other way.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from harness_ext.lm_eval_adapter import task_code


@cache
def install() -> None:
    """Let these caches be keyed by content from now on."""
    from datasets import data_files, fingerprint

    plain_metadata = data_files._get_single_origin_metadata
    plain_hash = fingerprint.Hasher.hash

    @functools.wraps(plain_metadata)
    def metadata(data_file: str, *arguments: Any, **named: Any) -> tuple[str, ...]:
        found = tuple(plain_metadata(data_file, *arguments, **named))
        path = Path(data_file.removeprefix("file://"))
        return (*found, task_code.file_digest(path)) if "://" not in str(path) and path.is_file() else found

    def hashed(cls: Any, value: Any) -> str:
        roots = {Path(path) for path in _sources(value, set())}
        beside = {path for path in roots if path.is_file() and task_code.is_beside(path.resolve())}
        if not beside:
            return plain_hash(value)
        return cls.hash_bytes([plain_hash(value).encode(), task_code.code_digest(beside, {}).encode()])

    data_files._get_single_origin_metadata = metadata
    fingerprint.Hasher.hash = classmethod(hashed)


def _sources(value: Any, seen: set[int]) -> Iterator[str]:
    """The files of the functions in a value."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, functools.partial):
        yield from _sources([value.func, value.args, value.keywords], seen)
    elif isinstance(value, types.MethodType):
        yield from _sources(value.__func__, seen)
    elif isinstance(value, types.FunctionType):
        yield value.__code__.co_filename
        inner = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        yield from _sources([getattr(value, "__wrapped__", None), *inner], seen)
    elif isinstance(value, dict):
        yield from _sources(list(value.values()), seen)
    elif isinstance(value, (list, tuple)) and len(value) < 1000:
        for item in value:
            yield from _sources(item, seen)
    elif hasattr(value, "fn") or hasattr(value, "function"):
        yield from _sources(getattr(value, "fn", None) or getattr(value, "function", None), seen)


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
