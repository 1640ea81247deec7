"""The code of a task: the modules that its functions come from, whole, with every module and file beside the task that
they reach, as one digest that does not depend on where it all lies.

Beside the task is what is neither an installed package nor part of Python: lm-eval's and our own task folders count as
beside, the rest of lm-eval and of this project does not, since their versions are recorded. Imports count wherever they
stand, also those that run only when an answer is scored. Which files a module reads cannot always be told from its
source: what was seen to be read while the task was loaded counts, what the source names, and, where it works a
name out, everything in its folder but runs, hidden files and the task's own data, which count as documents.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import site
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from harness_ext.lm_eval_adapter.task_index import default_root, tasks_root
from harness_ext.lm_eval_adapter.task_source import NOTHING, Mentions, mentions

_PACKAGES = ("purelib", "platlib")
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_RECORDED = (
    *("lm_eval", "harness_ext", "leaderboard", "torch", "transformers", "accelerate", "safetensors", "datasets"),
    *("numpy", "peft", "tokenizers", "huggingface_hub"),
)
"""Packages whose versions every run records, or that these bring: they are no task's code, wherever they lie."""
_OF_TASK = re.compile(rb"^(task|group|tag|include|dataset_path|custom_dataset)\s*:", re.MULTILINE)
_MOST_FILES = 20_000
_ANCESTORS = 2
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
_OF_RUNS = (
    "results_*.json",
    "samples_*.jsonl",
    "receipt.json",
    "*.duckdb*",
    "*.log",
    "*.out",
    "*.pyc",
    "*.arrow",
    "*.lock",
)
_EXTENSIONS = tuple(importlib.machinery.EXTENSION_SUFFIXES)


class Edge(NamedTuple):
    """What a module reaches. label: how it says so, without where it lies."""

    label: str
    target: Path


def code_digest(roots: Iterable[Path], reads: Mapping[Path, Collection[Path]], data: Collection[Path] = ()) -> str:
    """The digest of modules and all that they reach beside the task.

    roots: files of modules. reads: what modules were seen to read. data: files that count as documents.
    """
    reached = reachable(roots, reads, data)
    contents = {path: file_digest(path) for path in {*reached, *(e.target for es in reached.values() for e in es)}}
    lines = sorted(
        f"{contents[path]} {sorted((edge.label, contents[edge.target]) for edge in edges)}"
        for path, edges in reached.items()
    )
    named = sorted(contents[path] for path in {_real(root) for root in roots} & reached.keys())
    return hashlib.sha256("\n".join([*named, "", *lines]).encode()).hexdigest()


def reachable(
    roots: Iterable[Path], reads: Mapping[Path, Collection[Path]], data: Collection[Path] = ()
) -> dict[Path, list[Edge]]:
    """Every module that counts, by its file, with what it reaches."""
    left = [path for root in roots if (path := _real(root)).is_file()]
    packages = frozenset(_package_of(path) for path in left if not is_beside(path) and not is_recorded(path))
    reach = _Reach(packages, reads, frozenset(map(_real, data)))
    found: dict[Path, list[Edge]] = {}
    while left:
        path = left.pop()
        if path in found:
            continue
        found[path] = reach.edges(path)
        left += [edge.target for edge in found[path] if edge.target.suffix == ".py"]
    return found


def imported_packages(roots: Iterable[Path], reads: Mapping[Path, Collection[Path]]) -> frozenset[str]:
    """The top-level names of installed packages that these modules, and those that they reach, import."""
    names = {
        imported.name.partition(".")[0]
        for path in reachable(roots, reads)
        if path.suffix == ".py"
        for imported in mentions(path.read_bytes()).imports
        if not imported.level
    }
    return frozenset(names - sys.stdlib_module_names - set(_RECORDED))


def is_beside(path: Path) -> bool:
    """Whether a file (a real path) is neither installed nor part of Python, or lies in a folder of tasks."""
    return _is_beside(str(path))


@lru_cache(maxsize=65536)
def _is_beside(path: str) -> bool:
    file = Path(path)
    lm_evals = _real(default_root())
    if file.is_relative_to(lm_evals):
        return file.parent != lm_evals
    if file.is_relative_to(_real(tasks_root())):
        return True
    return not (is_recorded(file) or _is_installed(file))


def _is_installed(path: Path) -> bool:
    if _INSTALLED.intersection(path.parts) or any(path.is_relative_to(folder) for folder in _installed_folders()):
        return True
    return _holds_distributions(_top(path).parent)


@cache
def _holds_distributions(folder: Path) -> bool:
    """Whether pip put packages into a folder (`pip install --target`)."""
    return any(folder.glob("*.dist-info"))


def is_ours(path: Path) -> bool:
    """Whether a file is of this project."""
    return path.is_relative_to(Path(__file__).resolve().parent.parent)


def may_be_named(path: Path) -> bool:
    """Whether the module of a function that a task names counts: not where it is Python's or lm-eval's own."""
    installed = any(path.is_relative_to(_real(Path(sysconfig.get_path(name)))) for name in _PACKAGES)
    return is_beside(path) or is_ours(path) or (installed and not is_recorded(path))


def is_recorded(path: Path) -> bool:
    """Whether a file is of lm-eval itself or of this project, whose versions every run records."""
    return any(path.is_relative_to(folder) for folder in _recorded_folders())


@cache
def _recorded_folders() -> tuple[Path, ...]:
    specs = [importlib.util.find_spec(name) for name in _RECORDED]
    return tuple(_real(Path(place)) for spec in specs if spec for place in spec.submodule_search_locations or ())


@cache
def _installed_folders() -> tuple[Path, ...]:
    """Where Python and installed packages lie."""
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    named += [*getattr(site, "getsitepackages", list)(), site.getusersitepackages()]
    return tuple(dict.fromkeys(_real(Path(name)) for name in named if name))


def _package_of(path: Path) -> Path:
    """The top-level package that a module belongs to, else its folder; the module where that holds all packages."""
    top = _top(path)
    return path.parent if top == path and path.parent.name not in _INSTALLED else top


def _top(path: Path) -> Path:
    """The outermost folder of the package that a module is in; the module itself where it is in none."""
    while (path.parent / "__init__.py").is_file():
        path = path.parent
    return path


class _Reach:
    """What modules reach. packages: installed ones that a task names. reads: what was seen to be read. skipped: files
    that count as documents.
    """

    def __init__(
        self, packages: Collection[Path], reads: Mapping[Path, Collection[Path]], skipped: Collection[Path]
    ) -> None:
        self._packages, self._reads, self._skipped = packages, reads, skipped
        self._folders: dict[Path, _Folder] = {}

    def edges(self, path: Path) -> list[Edge]:
        """What one module reaches, sorted; nothing for a file that is not Python, or of another package."""
        if path.suffix != ".py" or not self._counts(path):
            return []
        try:
            mentioned = mentions(path.read_bytes())
        except OSError:
            mentioned = NOTHING
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = _Folder(folder)
        files = self._folders[folder]
        edges = {
            Edge(f"import {'.' * imported.level}{imported.name}", target)
            for imported in mentioned.imports
            for target in _modules(imported.level, imported.name, folder)
            if self._counts(target)
        }
        targets = {*_named_files(mentioned, files), *(_real(read) for read in self._reads.get(path, ()))}
        if mentioned.unknown_imports:
            targets |= {folder / name for name in files.names if name.endswith(".py")}
        if any(not files.matching(patterns) for patterns in mentioned.reads):
            targets |= {folder / name for name in files.names if not _is_task_file(folder / name)}
        edges |= {Edge(f"file {_label(target, folder)}", target) for target in targets if target.is_file()}
        return sorted(edge for edge in edges if edge.target != path and edge.target not in self._skipped)

    def _counts(self, path: Path) -> bool:
        return is_beside(path) or any(path.is_relative_to(package) for package in self._packages)


def _is_task_file(path: Path) -> bool:
    """Whether a file configures a task: its own counts as configuration, and others are no code's."""
    if not path.name.endswith(("yaml", "yml")):
        return False
    try:
        return _OF_TASK.search(path.read_bytes()) is not None
    except OSError:
        return False


def _label(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _named_files(mentioned: Mentions, files: _Folder) -> Iterator[Path]:
    """Files that texts of a source name: below its folder; where it reads, also in the folders above and where the
    command was given; and anywhere by a full path.
    """
    yield from (files.folder / name for name in files.matching(mentioned.patterns))
    read = {pattern for patterns in mentioned.reads for pattern in patterns}
    for pattern in mentioned.patterns:
        if any(sign in pattern for sign in "*?[") or not ("." in pattern or "/" in pattern):
            continue
        around = (Path.cwd(), *list(files.folder.parents)[:_ANCESTORS]) if pattern in read else ()
        for path in (Path(pattern), *(folder / pattern for folder in around)):
            if path.is_absolute() and _is_file(path) and is_beside(_real(path)):
                yield _real(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class _Folder:
    """The files below a folder that can belong to code in it. names: relative, sorted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = _names_below(folder)

    def matching(self, patterns: Iterable[str]) -> set[str]:
        """The files that one of the patterns names, by the end of their path."""
        found: set[str] = set()
        by_name: dict[str, list[str]] = {}
        for name in self.names:
            by_name.setdefault(name.rpartition("/")[2], []).append(name)
        for pattern in patterns:
            bare = pattern.removeprefix("./").strip("/")
            if any(sign in bare for sign in "*?["):
                found |= {n for n in self.names if fnmatch.fnmatch(n, bare) or fnmatch.fnmatch(n, f"*/{bare}")}
            else:
                found |= {
                    name
                    for name in by_name.get(bare.rpartition("/")[2], ())
                    if name == bare or name.endswith(f"/{bare}")
                }
        return found


def _names_below(folder: Path) -> list[str]:
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        folders[:] = [name for name in folders if not name.endswith(".decisions")]
        if "receipt.json" in files:
            folders[:] = []
            continue
        prefix = Path(place).relative_to(folder)
        names += [
            (prefix / name).as_posix()
            for name in sorted(files)
            if not name.startswith(".") and not any(fnmatch.fnmatch(name, pattern) for pattern in _OF_RUNS)
        ]
        if len(names) > _MOST_FILES:
            break
    return names


def _modules(level: int, name: str, folder: Path) -> Iterator[Path]:
    """The files that an import of this name in a module in `folder` may run: those of the packages on the way, too."""
    parts = name.split(".")
    if level:
        start = folder
        for _ in range(level - 1):
            start = start.parent
        package = start / "__init__.py"
        yield from (_real(package) for _ in range(1) if package.is_file())
        yield from _below(start, parts)
        return
    found = list(_importable(parts))
    yield from found
    # A module may put its folder among those that Python looks in only when it runs.
    for place in () if found else (folder, *list(folder.parents)[:_ANCESTORS]):
        yield from _below(place, parts)


def _importable(parts: list[str]) -> Iterator[Path]:
    """The files of a module that Python finds by its name."""
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError, AttributeError):
        return
    if spec is None:
        return
    if spec.origin and _is_file(Path(spec.origin)):
        yield _real(Path(spec.origin))
    for place in spec.submodule_search_locations or ():
        yield from _below(Path(place), parts[1:])


def _below(folder: Path, parts: list[str]) -> Iterator[Path]:
    """The files of a module and of the packages that hold it, found from a folder."""
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        package = folder / part / "__init__.py"
        if _is_file(package):
            yield _real(package)
        for ending in (".py", ".pyc", *_EXTENSIONS) if last else ():
            if _is_file(folder / f"{part}{ending}"):
                yield _real(folder / f"{part}{ending}")
        folder = folder / part
        if not folder.is_dir():
            return


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content; of nothing where it cannot be read. One that is as it was is not read again."""
    try:
        status = path.stat()
        # Unlike the time of the last change of the content, that of the last change of the entry cannot be set back.
        return _digest_of(path, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except OSError:
        return hashlib.sha256().hexdigest()


@lru_cache(maxsize=65536)
def _digest_of(path: Path, status: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
