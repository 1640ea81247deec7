"""A folder of decompositions that lasts: safetensors files, bounded in bytes, the least recently used going first.

Notable choices. Whatever may go wrong with it costs time only: a file is written under another name and renamed when
whole; one that is damaged, cut short or another's is thrown away and made anew, since its tensors must
have the digest in its header; a full disk, a read-only one or none at all means no cache. Processes may share the
folder, and anybody may empty it. Its bound is also a share of what is free on its disk. What a session has read or
written makes no room for what it works out later: in a folder that is too small for a model, each file would be thrown
away before it is wanted again. So what finds no room is never serialised.

Files are written by a thread beside the next decomposition, at most `_MOST_WAITING` at a time; what waits there is
found as if it were on disk. A process that ends writes the last ones first (`flush`); a killed one loses them, which
costs time.

The name of a file holds all that its bits depend on: the matrix by digest, the decomposition and its version, and what
computes it (torch, scipy, processor or card, threads). So an edit is bit for bit the same whether its
factors were there or not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.errors import UserError
from harness_ext.model.digests import tensor_digest, text_digest
from harness_ext.storage.paths import cache_folder

if TYPE_CHECKING:
    from torch import Tensor, device

LIMIT_VARIABLE = "LM_EVAL_RECIPES_FACTORS_GIB"
DEFAULT_LIMIT_BYTES = 16 << 30
SHARE_OF_FREE = 0.25
_SUFFIX = ".safetensors"
_SECONDS_TO_WRITE = 3600
_MOST_WAITING = 2
"""Sets of tensors in memory that are still to be written."""


class Entry(NamedTuple):
    """What a file holds. note: a word that goes with the tensors, or none."""

    tensors: dict[str, Tensor]
    note: str | None


class _Unwritten(NamedTuple):
    """What waits for the thread that writes. versions: of the tensors, how often each had been written to."""

    entry: Entry
    size: int
    versions: tuple[int, ...]

    @property
    def unchanged(self) -> bool:
        """Whether nobody has written into the tensors since: what they are then is not what was worked out."""
        return self.versions == _versions(self.entry.tensors)


def _versions(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(0 if value.is_inference() else value._version for value in tensors.values())


# Of this process, over all caches: several may have one folder.
_unwritten: dict[Path, _Unwritten] = {}
_writing: dict[Path, Future[None]] = {}


@cache
def _writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="factors")


def _forget_writing() -> None:
    """In a forked process, which has no such thread."""
    _writer.cache_clear()
    _unwritten.clear()
    _writing.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_writing)


def flush() -> None:
    """Wait until everything is written."""
    for waiting in list(_writing.values()):
        waiting.result()


def _await_oldest() -> None:
    """Wait until the first in line is written, which the thread that writes may have ended by now."""
    for waiting in list(_writing.values())[:1]:
        waiting.result()


class DiskCache:
    """Tensors under names. folder: made when first needed. limit_bytes: of all files together; 0 keeps none."""

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._unseen: int | None = None
        self._checked: set[tuple[str, int]] = set()
        self._used: set[str] = set()

    def load(self, name: str, shapes: Mapping[str, tuple[int, ...]], on: device) -> Entry | None:
        """The tensors kept under a name; None where there are none, or they are not whole or not of these names and
        shapes.
        """
        path = self._folder / f"{name}{_SUFFIX}"
        waiting = _unwritten.get(path)
        if waiting is not None and waiting.unchanged and _shapes(waiting.entry.tensors) == dict(shapes):
            return Entry({key: value.to(on) for key, value in waiting.entry.tensors.items()}, waiting.entry.note)
        try:
            entry = self._read(path, name, shapes)
        except FileNotFoundError:
            return None
        except Exception:  # whatever a damaged file makes a reader raise: it is made again
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        self._used.add(path.name)
        with suppress(OSError):
            os.utime(path)
        # Memory of torch's own: where a tensor is aligned may decide the last bits of a product.
        return Entry(
            {key: value.clone() if on.type == "cpu" else value.to(on) for key, value in entry.tensors.items()},
            entry.note,
        )

    def _read(self, path: Path, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Entry:
        from safetensors import safe_open

        # Hashing again what this process has hashed or written would take longer than reading it.
        known = (name, path.stat().st_ino)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        if header.get("name") != name or _shapes(tensors) != dict(shapes):
            raise ValueError(f"{path} is another's")
        if known not in self._checked and header.get("digest") != _digest(tensors):
            raise ValueError(f"{path} is damaged")
        self._checked.add(known)
        return Entry(tensors, header.get("note") or None)

    def save(self, name: str, tensors: Mapping[str, Tensor], note: str | None = None) -> None:
        """Keep tensors under a name, where there is room; written beside what comes next. They must stay as they are
        until then, or are not kept.
        """
        path = self._folder / f"{name}{_SUFFIX}"
        size = sum(value.numel() * value.element_size() for value in tensors.values())
        try:
            if not self._make_room(size):
                return
        except OSError:
            self._unseen = None
            return
        while len(_writing) >= _MOST_WAITING or path in _writing:
            _await_oldest()
        self._used.add(path.name)
        entry = Entry(dict(tensors), note)
        _unwritten[path] = _Unwritten(entry, size, _versions(tensors))
        written: Future[None] = Future()
        _writing[path] = written
        _writer().submit(self._write, path, name, written)

    def _write(self, path: Path, name: str, written: Future[None]) -> None:
        from safetensors.torch import save_file

        temporary = self._folder / f".{uuid.uuid4().hex}.writing"
        waiting = _unwritten[path]
        try:
            kept = {key: value.detach().cpu().contiguous() for key, value in waiting.entry.tensors.items()}
            save_file(kept, temporary, {"name": name, "digest": _digest(kept), "note": waiting.entry.note or ""})
            if waiting.unchanged:
                os.replace(temporary, path)
        except Exception:  # whatever went wrong, it costs time only
            self._unseen = None
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            _unwritten.pop(path, None)
            _writing.pop(path, None)
            written.set_result(None)

    def _make_room(self, size: int) -> bool:
        """Let the least recently used go until so many bytes fit, but none that this session has used; False where
        they cannot. Files of other processes are counted now and then.
        """
        if self._unseen is not None and self._unseen >= size:
            self._unseen -= size
            return True
        if size > self._limit:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        files = self._files()
        held = sum(status.st_size for _, status in files) + sum(
            waiting.size for path, waiting in list(_unwritten.items()) if path.parent == self._folder
        )
        limit = min(self._limit, int(SHARE_OF_FREE * (shutil.disk_usage(self._folder).free + held)))
        if size > limit:
            return False
        for path, status in sorted(files, key=lambda item: item[1].st_mtime_ns):
            if held + size <= limit:
                break
            if path.name in self._used:
                continue
            # What another user put there stays, and counts.
            with suppress(PermissionError):
                path.unlink(missing_ok=True)
                held -= status.st_size
        if held + size > limit:
            return False
        self._unseen = min(limit - held - size, limit // 64)
        return True

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for entry in os.scandir(self._folder):
            with suppress(OSError):
                status = entry.stat()
                if entry.name.endswith(_SUFFIX) and entry.is_file():
                    found.append((Path(entry.path), status))
                elif entry.name.endswith(".writing") and time.time() - status.st_mtime > _SECONDS_TO_WRITE:
                    # Left by a process that was killed.
                    os.unlink(entry.path)
        return found


def lasting(scratch: Path) -> DiskCache:
    """The user's cache of factors; in the scratch folder, for this session only, where there is none or
    `LM_EVAL_RECIPES_FACTORS_GIB` is 0.

    Raises UserError where that variable is not a number.
    """
    limit = _limit_asked_for()
    folder = cache_folder()
    if folder is not None and limit:
        place = folder / "factors"
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK | os.X_OK):
                return DiskCache(place, limit)
    return DiskCache(scratch / "factors", limit or DEFAULT_LIMIT_BYTES)


def _limit_asked_for() -> int:
    asked = os.environ.get(LIMIT_VARIABLE)
    if not asked:
        return DEFAULT_LIMIT_BYTES
    try:
        return max(0, int(float(asked) * 2**30))
    except (ValueError, OverflowError):
        raise UserError(
            f"{LIMIT_VARIABLE} must be a number of GiB, such as 16, or 0 to keep no decompositions; found {asked!r}"
        ) from None


def file_name(name: str, kind: str, on: device) -> str:
    """The name for a decomposition of this kind of the matrix with this name, computed on this device."""
    return f"{text_digest(name).rpartition(':')[2][:40]}-{kind}-{_computed_by(str(on), _threads())}"


def _threads() -> int:
    import torch

    return torch.get_num_threads()


@cache
def _computed_by(on: str, threads: int) -> str:
    """What the last bits of a decomposition depend on besides the matrix, as a short digest."""
    import torch

    if on.startswith("cuda"):
        machine = f"{torch.version.cuda} {torch.cuda.get_device_name(on)} {torch.get_float32_matmul_precision()}"
    else:
        blas = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
        machine = f"{on} {torch.backends.cpu.get_cpu_capability()} {threads} {metadata.version('scipy')} {blas}"
    return hashlib.sha256(f"{torch.__version__} {machine}".encode()).hexdigest()[:12]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return text_digest("".join(f"{key} {tensor_digest(tensors[key])}\n" for key in sorted(tensors)))
