"""Folders of edited weights, for engines that read weights from files: under a digest, bounded in bytes, the least
recently used going first.

A folder is filled beside its place and renamed when it is whole. A process that uses one holds a lock on a file in it,
which the system gives back when the process ends, however it ends: what is locked is never swept. Where the system has
no such locks (`fcntl`), nothing is swept but by its own user's hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from harness_ext.errors import UserError
from harness_ext.storage import rundir
from harness_ext.storage.disk import disk_trouble
from harness_ext.storage.paths import cache_folder

LIMIT_VARIABLE = "LM_EVAL_RECIPES_WEIGHTS_GIB"
DEFAULT_LIMIT_BYTES = 64 << 30
_LOCK = ".in-use"
_SIZES = "sizes.json"
_GRACE_SECONDS = 60
"""How long a folder that nobody holds may be in the making: it is made, and then locked."""


class WeightFolders:
    """Folders under names. root: made when first needed. limit_bytes: of all that no process uses, together.

    What this object has handed out is in use until `release`, until nobody holds this object, or until its process
    ends.
    """

    def __init__(self, root: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._root = root
        self._limit = limit_bytes
        self._held: dict[Path, IO[str]] = {}
        weakref.finalize(self, _close_all, self._held)

    def get(self, name: str, size: int, fill: Callable[[Path], None]) -> Path:
        """The folder of this name, filled where there is none that is whole, and in use from now on. size: bytes that
        `fill` will write.

        Raises UserError where the disk cannot take it.
        """
        if (there := self.kept(name)) is not None:
            return there
        place = self._root / name
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            with rundir.writing(place) as folder:
                (folder / _LOCK).touch()
                self._lock(folder, place)
                fill(folder)
                rundir.write_json(folder / _SIZES, _sizes(folder))
        except Exception as error:
            self._let_go(place)
            if (trouble := disk_trouble(error)) is None:
                raise
            raise UserError(
                f"the edited weights ({size / 2**30:,.1f} GiB) cannot be written to {self._root}: {trouble}; make room"
                " there, or name another folder by LM_EVAL_RECIPES_CACHE, and run the same command again"
            ) from error
        return place

    def kept(self, name: str) -> Path | None:
        """The folder of this name, in use from now on; None where there is none that is whole."""
        place = self._root / name
        if not self._hold(place):
            return None
        os.utime(place)
        return place

    def release(self) -> None:
        """Nothing is in use by this object any more; what is beyond the bound goes."""
        for place in list(self._held):
            self._let_go(place)
        self.sweep()

    def sweep(self, limit_bytes: int | None = None) -> None:
        """Remove what killed processes left half-written, and of what nobody uses the least recently used, until the
        rest is within the bound.
        """
        limit = self._limit if limit_bytes is None else limit_bytes
        unused = 0
        for path, size in sorted(self._folders(), key=lambda item: -_modified(item[0])):
            if path.name.startswith("."):
                if time.time() - _modified(path) > _GRACE_SECONDS:
                    self._remove(path)
                continue
            unused += 0 if self._in_use(path) else size
            if unused > limit:
                self._remove(path)

    def _make_room(self, size: int) -> None:
        """Sweep where the disk has not enough room for so many bytes more. Raises OSError where it has not then."""
        self.sweep()
        if shutil.disk_usage(self._root).free < size:
            self.sweep(limit_bytes=0)
        free = shutil.disk_usage(self._root).free
        if free < size:
            raise OSError(28, f"only {free / 2**30:,.1f} GiB are free")

    def _folders(self) -> Iterator[tuple[Path, int]]:
        """Every folder with its size in bytes."""
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._root):
                if entry.is_dir(follow_symlinks=False):
                    yield Path(entry.path), _bytes_in(Path(entry.path))

    def _hold(self, place: Path) -> bool:
        """Use a folder, where it is there and whole."""
        if place in self._held:
            return True
        if not self._lock(place, place):
            return False
        # A sweep may have been quicker than the lock.
        if _same_file(place / _LOCK, self._held[place]) and _is_whole(place):
            return True
        self._let_go(place)
        return False

    def _lock(self, folder: Path, place: Path) -> bool:
        try:
            handle = (folder / _LOCK).open("r+", encoding="utf-8")
        except OSError:
            return False
        _wait_for_lock(handle)
        self._held[place] = handle
        return True

    def _let_go(self, place: Path) -> None:
        if (handle := self._held.pop(place, None)) is not None:
            handle.close()

    def _in_use(self, path: Path) -> bool:
        if path in self._held:
            return True
        try:
            with (path / _LOCK).open("r+", encoding="utf-8") as handle:
                return not _locked_alone(handle)
        except OSError:
            return False

    def _remove(self, path: Path) -> None:
        """Remove a folder, unless it is in use; held meanwhile, so that nobody begins to use it."""
        try:
            with (path / _LOCK).open("r+", encoding="utf-8") as handle:
                if not _locked_alone(handle):
                    return
                (path / _LOCK).unlink()
        except FileNotFoundError:
            pass
        except OSError:
            return
        shutil.rmtree(path, ignore_errors=True)


def user_folders() -> WeightFolders:
    """The user's, in the cache; in a temporary folder where there is no cache. `LM_EVAL_RECIPES_WEIGHTS_GIB` bounds
    what is kept of earlier commands. Raises UserError where that is not a number.
    """
    asked = os.environ.get(LIMIT_VARIABLE)
    try:
        limit = max(0, int(float(asked) * 2**30)) if asked else DEFAULT_LIMIT_BYTES
    except (ValueError, OverflowError):
        raise UserError(
            f"{LIMIT_VARIABLE} must be a number of GiB, such as 64, or 0 to keep no edited weights; found {asked!r}"
        ) from None
    cache = cache_folder()
    return WeightFolders((cache or Path(tempfile.gettempdir(), "lm-eval-recipes")) / "weights", limit)


def _close_all(held: dict[Path, IO[str]]) -> None:
    for handle in held.values():
        handle.close()


def _wait_for_lock(handle: IO[str]) -> None:
    """Lock an open file until it is closed, together with others who do."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - not on Linux or macOS
        return
    fcntl.flock(handle, fcntl.LOCK_SH)


def _locked_alone(handle: IO[str]) -> bool:
    """Lock an open file until it is closed; False where others have it."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - not on Linux or macOS
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name not in (_LOCK, _SIZES)}


def _is_whole(folder: Path) -> bool:
    """Whether the files of a folder are as long as they were written."""
    try:
        return bool(json.loads((folder / _SIZES).read_text(encoding="utf-8")) == _sizes(folder))
    except (OSError, ValueError):
        return False


def _same_file(path: Path, handle: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle.fileno()))
    except OSError:
        return False


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _bytes_in(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size
    return total
