"""Tasks are loaded from the code that lies on the disk now, and what that code reads meanwhile is seen.

Python keeps modules by name, and compiled ones by time and size, so within one process, or after a file was replaced
under its old date, a task would run with a helper that is no longer there. Inside `loading`, modules beside tasks are
compiled from their source. Those that an earlier load brought in, or that changed since the process began, are taken
out first, where any of them or of the files that they read has changed, and with them what they had registered.

The patches: `SourceFileLoader.get_code` of Python, and an audit hook for opened files, which sleeps outside the block.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from harness_ext.lm_eval_adapter import borrowed, task_code

_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/")
_REGISTRIES = (
    "filter_registry",
    "aggregation_registry",
    "metric_registry",
    "metric_agg_registry",
    "higher_is_better_registry",
)
_IMPORTED_AGAIN_NEVER = frozenset({"__main__", "__mp_main__"})


@dataclass
class LoadRecord:
    """What one load of tasks saw. reads: the files that were read, by the file of the module that read them. started:
    in seconds since 1970. callers: the frames that were there before.
    """

    reads: dict[Path, set[Path]] = field(default_factory=lambda: defaultdict(set))
    started: float = field(default_factory=time.time)
    callers: list[FrameType] = field(default_factory=lambda: list(_stack(sys._getframe())))

    def digest(self, roots: Iterable[Path], data: Collection[Path] = ()) -> str:
        """The digest of these modules, with all that they reach; see `task_code`."""
        return task_code.code_digest(roots, self.reads, data)


@dataclass
class _Kept:
    """What modules of tasks are in this process. modules: the file and its digest, by the module's name. reads: what
    they read when they were run. registered: names that they put into lm-eval's registries.
    """

    modules: dict[str, tuple[Path, str]] = field(default_factory=dict)
    reads: dict[Path, dict[Path, str]] = field(default_factory=lambda: defaultdict(dict))
    registered: set[tuple[int, str]] = field(default_factory=set)


_kept = _Kept()
_record: LoadRecord | None = None


@contextmanager
def loading() -> Iterator[LoadRecord]:
    """Load tasks inside this block; gives what is seen meanwhile, complete at its end. Does not nest."""
    global _record
    _forget_if_changed()
    importlib.invalidate_caches()
    _caches()
    before = _registered()
    _start_listening()
    loader = importlib.machinery.SourceFileLoader
    original = loader.get_code

    def get_code(self: Any, fullname: str) -> CodeType | None:
        path = Path(os.path.realpath(self.get_filename(fullname)))
        if not task_code.is_beside(path):
            return original(self, fullname)
        _kept.modules[fullname] = path, task_code.file_digest(path)
        return self.source_to_code(self.get_data(str(path)), self.get_filename(fullname))

    loader.get_code = get_code  # type: ignore[method-assign]
    _record = record = LoadRecord()
    try:
        yield record
    finally:
        del loader.get_code
        _record = None
        record.callers.clear()
        _kept.registered |= _registered() - before
        for path, files in _kept.reads.items():
            record.reads[path] |= files.keys()


def stale_modules(files: Collection[Path]) -> list[str]:
    """Modules of these files that others brought into the process, and that may have changed since it began."""
    began = _began()
    return [
        name
        for name, module in list(sys.modules.items())
        if name not in _kept.modules
        and name not in _IMPORTED_AGAIN_NEVER
        and (path := getattr(module, "__file__", None))
        and (real := Path(os.path.realpath(path))) in files
        and real.exists()
        and max(real.stat().st_mtime, real.stat().st_ctime) >= began
    ]


def forget(names: Iterable[str] = ()) -> None:
    """Take the modules of tasks out of the process, and others by name, so that they are loaded anew."""
    gone = {*_kept.modules, *names}
    for name in gone:
        sys.modules.pop(name, None)
    for registry in _registries():
        for alias, entry in list(registry.items()):
            if (id(registry), alias) in _kept.registered or getattr(entry, "__module__", None) in gone:
                registry.pop(alias)
    _kept.modules.clear()
    _kept.reads.clear()
    _kept.registered.clear()


def _registries() -> list[dict[str, Any]]:
    """What lm-eval knows by name and a task's module may add to; none that is closed."""
    entries = [getattr(borrowed, name)._objs for name in _REGISTRIES]
    return [known for known in (*entries, borrowed.SAMPLER_REGISTRY) if isinstance(known, dict)]


def _registered() -> set[tuple[int, str]]:
    return {(id(registry), alias) for registry in _registries() for alias in registry}


def _forget_if_changed() -> None:
    changed = any(task_code.file_digest(path) != digest for path, digest in _kept.modules.values())
    changed = changed or any(
        task_code.file_digest(path) != digest for files in _kept.reads.values() for path, digest in files.items()
    )
    if changed:
        forget()


@cache
def _began() -> float:
    """When this process began, in seconds since 1970; 0 where nobody can say."""
    try:
        return float(importlib.import_module("psutil").Process().create_time())
    except ImportError:
        return 0.0


@cache
def _start_listening() -> None:
    # A hook cannot be taken away again.
    sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _record is None or event != "open":
        return
    name, mode, flags = arguments
    writes = any(sign in mode for sign in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if not isinstance(name, (str, os.PathLike)) or writes:
        return
    reader = _reader(sys._getframe(1), _record.callers)
    if reader is not None:
        _note(Path(os.path.realpath(os.fspath(name))), *reader)


def _note(path: Path, module: Path, by_library: bool, while_imported: bool) -> None:
    global _record
    record, _record = _record, None  # what follows opens files, too
    try:
        if record is None or path.suffix in (".pyc", ".so") or not path.is_file() or _is_elsewhere(path):
            return
        if path.stat().st_ctime >= record.started or (by_library and not path.is_relative_to(module.parent)):
            return
        record.reads[module].add(path)
        if while_imported:
            _kept.reads[module][path] = task_code.file_digest(path)
    finally:
        _record = record


def _is_elsewhere(path: Path) -> bool:
    """Whether a file is part of the system, of what is installed, or of the caches of data sets."""
    text = str(path)
    return (
        text.startswith(_SYSTEM)
        or any(path.is_relative_to(folder) for folder in _caches())
        or not task_code.is_beside(path)
    )


@cache
def _caches() -> tuple[Path, ...]:
    import datasets
    import huggingface_hub.constants as hub

    named = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, hub.HF_HOME, hub.HF_HUB_CACHE)
    return tuple(Path(os.path.realpath(name)) for name in named)


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _reader(frame: FrameType, callers: Collection[FrameType]) -> tuple[Path, bool, bool] | None:
    """The module beside a task that opens a file: its file, whether a library does it on its behalf, and whether the
    module is being imported. None where it is nobody's, or the library of data sets, whose documents count themselves.
    """
    by_library = False
    module: Path | None = None
    outside = {id(caller) for caller in callers}
    for caller in _stack(frame):
        if id(caller) in outside:
            break
        kind, path = _kind(caller.f_code.co_filename)
        if kind == "data" and module is None:
            return None
        by_library = by_library or (kind == "library" and module is None)
        if kind == "beside":
            module = module or path
            if caller.f_code.co_name == "<module>":
                return module, by_library, True
    return None if module is None else (module, by_library, False)


@lru_cache(maxsize=65536)
def _kind(filename: str) -> tuple[str, Path]:
    """What code of this file is: `beside` a task, the library of data sets, another `library`, or Python's."""
    path = Path(os.path.realpath(filename))
    if filename.startswith("<") or not path.is_file():
        return "python", path
    if task_code.is_beside(path):
        return "beside", path
    packages = {"site-packages", "dist-packages"}.intersection(path.parts)
    if not packages and not task_code.is_recorded(path):
        return "python", path
    return ("data" if packages and "datasets" in path.parts else "library"), path
