"""Tasks are loaded from the code that lies on the disk now, and what that code reads meanwhile is seen.

Python keeps modules by name, and compiled ones by time and size, so within one process, or after a file was replaced
under its old date, a task would run with a helper that is no longer there, or with that of another folder. So a
command takes the modules of earlier ones out of the process first (`forget`), and what they had registered, and inside
`loading` those beside tasks are compiled from their source. References that others hold to them stay as they are.

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
class _Brought:
    """What tasks brought into this process. names: of modules. files: those that tasks reach, imported so far or not.
    registered: names in lm-eval's registries. paths: what was added to the places where Python looks for modules.
    bringers: by the file of a module, the outermost file beside a task whose code had it imported.
    """

    names: set[str] = field(default_factory=set)
    files: set[Path] = field(default_factory=set)
    registered: set[tuple[int, str]] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)
    bringers: dict[Path, Path] = field(default_factory=dict)


_brought = _Brought()
_record: LoadRecord | None = None


@contextmanager
def loading() -> Iterator[LoadRecord]:
    """Load tasks inside this block; gives what is seen meanwhile, complete at its end. Does not nest."""
    global _record
    importlib.invalidate_caches()
    _caches()
    registered, modules, paths = _registered(), set(sys.modules), list(sys.path)
    _start_listening()
    loader = importlib.machinery.SourceFileLoader
    original = loader.get_code

    def get_code(self: Any, fullname: str) -> CodeType | None:
        path = Path(os.path.realpath(self.get_filename(fullname)))
        if not task_code.is_beside(path):
            return original(self, fullname)
        _brought.names.add(fullname)
        _brought.bringers[path] = _outermost(sys._getframe(1), record.callers) or path
        return self.source_to_code(self.get_data(str(path)), self.get_filename(fullname))

    _record = record = LoadRecord()
    loader.get_code = get_code  # type: ignore[method-assign]
    try:
        yield record
    finally:
        del loader.get_code
        _record = None
        record.callers.clear()
        _brought.registered |= _registered() - registered
        _brought.paths += [path for path in sys.path if path not in paths]
        _brought.names |= {name for name in set(sys.modules) - modules if _is_folder_beside(sys.modules[name])}


def _is_folder_beside(module: Any) -> bool:
    """Whether a module is a package without a file of its own that lies beside a task."""
    if getattr(module, "__file__", None):
        return False
    return any(task_code.is_beside(Path(os.path.realpath(place))) for place in getattr(module, "__path__", ()))


def imported_before(files: Collection[Path]) -> set[str]:
    """Take note of the files that tasks reach. Gives the modules of these that others had imported before tasks did."""
    _brought.files |= set(files)
    return names_of(files) - _brought.names


def bringer_of(file: Path) -> Path | None:
    """The task's module that had the module of this file imported, itself where nobody did; None for one that no load
    of tasks imported.
    """
    return _brought.bringers.get(file)


def names_of(files: Collection[Path]) -> set[str]:
    """The names under which modules of these files are in the process."""
    found = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return {
        name
        for name, file in found.items()
        if isinstance(file, str) and name not in _IMPORTED_AGAIN_NEVER and Path(os.path.realpath(file)) in files
    }


def forget() -> None:
    """Take what tasks brought out of the process, so that it is loaded anew."""
    take_out(_brought.names | (names_of(_brought.files) if _brought.files else set()))
    sys.path[:] = [path for path in sys.path if path not in _brought.paths]
    for registry in _registries():
        for alias in [alias for alias in registry if (id(registry), alias) in _brought.registered]:
            registry.pop(alias)
    for kept in (_brought.names, _brought.registered, _brought.paths, _brought.bringers):
        kept.clear()


def take_out(modules: Collection[str]) -> None:
    """Take modules out of the process, and what they registered."""
    for name in modules:
        sys.modules.pop(name, None)
    for registry in _registries():
        for alias, entry in list(registry.items()):
            if getattr(entry, "__module__", None) in modules:
                registry.pop(alias)


def _registries() -> list[dict[str, Any]]:
    """What lm-eval knows by name and a task's module may add to; none that is closed."""
    entries = [getattr(borrowed, name)._objs for name in _REGISTRIES]
    return [known for known in (*entries, borrowed.SAMPLER_REGISTRY) if isinstance(known, dict)]


def _registered() -> set[tuple[int, str]]:
    return {(id(registry), alias) for registry in _registries() for alias in registry}


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


def _note(path: Path, module: Path, by_library: bool) -> None:
    global _record
    record, _record = _record, None  # what follows opens files, too
    try:
        if record is None or path.suffix in (".pyc", ".so") or not path.is_file() or _is_elsewhere(path):
            return
        if path.stat().st_ctime >= record.started or (by_library and not path.is_relative_to(module.parent)):
            return
        record.reads[module].add(path)
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


def _reader(frame: FrameType, callers: Collection[FrameType]) -> tuple[Path, bool] | None:
    """The module beside a task that opens a file: its file, and whether a library does it on its behalf. None where it
    is nobody's, or the library of data sets, whose documents count themselves.
    """
    by_library = False
    outside = {id(caller) for caller in callers}
    for caller in _stack(frame):
        if id(caller) in outside:
            return None
        kind, path = _kind(caller.f_code.co_filename)
        if kind == "beside":
            return path, by_library
        if kind == "data":
            return None
        by_library = by_library or kind == "library"
    return None


def _outermost(frame: FrameType, callers: Collection[FrameType]) -> Path | None:
    """The outermost file beside a task among those whose code is running, without the callers of the load."""
    outside = {id(caller) for caller in callers}
    found = None
    for caller in _stack(frame):
        if id(caller) in outside:
            break
        kind, path = _kind(caller.f_code.co_filename)
        found = path if kind == "beside" else found
    return found


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
