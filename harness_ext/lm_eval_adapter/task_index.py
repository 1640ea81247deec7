"""Finding tasks: lm-eval's own from an index on disk, ours without a flag, the user's as lm-eval does.

lm-eval parses some 14,000 YAML files at every start, which takes 8 to 20 seconds. Their index fits in a megabyte, so
it is kept (see `task_cache`) and read in a tenth of a second.

The patch: `TaskIndex` in `lm_eval.tasks.manager` is a subclass of lm-eval's for the duration of a command, since a task
manager takes no index of its caller; for `ls`, `load_yaml` there gives the output type alone. lm-eval's own code still
finds and parses the files, once; only the result is kept. Entries make their path and configuration when asked for.
Where lm-eval has no such names, it works as it always did, without the index. Our tasks come after lm-eval's and before
those of `--include_path`, which can override both.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter import borrowed, task_cache
from harness_ext.lm_eval_adapter.fast_import import quick_imports
from harness_ext.lm_eval_adapter.task_cache import SavedIndex, TaskRow

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from harness_ext.lm_eval_adapter.borrowed import Entry

log = logging.getLogger("lm_eval.recipes")


def tasks_root() -> Path:
    """The folder of our task files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed_folder = package / "tasks"
    return installed_folder if installed_folder.is_dir() else package.parent / "tasks"


def task_manager(
    include_path: str | Path | list[str | Path] | None = None, metadata: dict[str, Any] | None = None
) -> TaskManager:
    """lm-eval's task manager, made through the index and knowing our tasks; for use from Python. Raises UserError where
    an `include_path` is no folder.
    """
    with installed():
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=include_path, metadata=metadata)


@contextmanager
def installed(*, listing: bool = False) -> Iterator[None]:
    """Let lm-eval's task managers made inside this block use the index and find our tasks.

    With `listing`, the output types that `ls` prints come from the index too. Nests; does nothing where lm-eval has no
    such seam.
    """
    seam = find_seam()
    if seam is None:
        yield
        return
    manager, index_class = seam
    with ExitStack() as patches:
        patches.enter_context(borrowed.replaced(manager, "TaskIndex", index_class))
        if listing:
            patches.enter_context(borrowed.replaced(manager, "load_yaml", _output_type_loader()))
        yield


def find_seam() -> tuple[Any, type] | None:
    """lm-eval's module to place our subclass in, and the subclass; None where this version of lm-eval is built
    otherwise.
    """
    if any(entry.optional and borrowed.problem(entry) for entry in borrowed.BORROWED):
        log.warning(
            "This version of lm-eval finds tasks in a way this package does not know: starting is slow, and our tasks"
            " need --include_path %s",
            tasks_root(),
        )
        return None
    return borrowed.manager, _index_class()


def _index_class() -> type:
    # Made inside a function because lm-eval's task modules import numpy, jinja and more, which `--help` does not need.
    from harness_ext.lm_eval_adapter.borrowed import TaskIndex

    class CachedTaskIndex(TaskIndex):
        """lm-eval's index, its own folder read from the cache and ours put behind it."""

        @staticmethod
        def build(paths: Iterable[Path], *, resolve_includes: bool = True) -> dict[str, Entry]:
            if not resolve_includes:
                return TaskIndex.build(paths, resolve_includes=False)
            index: dict[str, Entry] = {}
            roots = _with_ours(list(paths))
            _check_folders(roots)
            for root in roots:
                _merge(index, entries_of(root))
            return index

    return CachedTaskIndex


def default_root() -> Path:
    """The folder of lm-eval's own task files."""
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks"


def _with_ours(paths: list[Path]) -> list[Path]:
    ours = tasks_root()
    if default_root() not in paths or not ours.is_dir() or any(path.resolve() == ours for path in paths):
        return paths
    after_default = paths.index(default_root()) + 1
    return [*paths[:after_default], ours, *paths[after_default:]]


def _check_folders(roots: Iterable[Path]) -> None:
    """Refuse what is no folder, in which lm-eval would find no task and say nothing."""
    for root in roots:
        if not root.is_dir():
            wrong = "is a file, and a folder of task files is wanted" if root.exists() else "does not exist"
            raise UserError(f"--include_path: {root} {wrong}")


def _merge(index: dict[str, Entry], later: dict[str, Entry]) -> None:
    for name, entry in later.items():
        if name in index:
            # The words are lm-eval's: whoever filters its log for them finds them here too.
            borrowed.log.warning(
                "Task '%s' from %s overrides existing task from %s", name, entry.yaml_path, index[name].yaml_path
            )
        index[name] = entry


def entries_of(root: Path) -> dict[str, Entry]:
    """The entries of one folder: lm-eval's own folder from the cache, any other as lm-eval reads it."""
    from harness_ext.lm_eval_adapter.borrowed import TaskIndex

    if root != default_root():
        return TaskIndex.build([root])
    with quick_imports():
        saved = saved_rows(root)
        entries = _entries(root, saved.rows)
    for text in saved.warnings:
        borrowed.log.warning("%s", text)
    return entries


def saved_rows(root: Path) -> SavedIndex:
    """The index of lm-eval's own folder, from the cache where that is current, else made and kept."""
    import lm_eval

    path, key = task_cache.cache_file(root, lm_eval.__version__), task_cache.fingerprint(root)
    saved = task_cache.read(path, key)
    if saved is None:
        log.info("Indexing lm-eval's task files, which takes some seconds; later starts read the index")
        saved = scan(root)
        task_cache.write(path, key, saved)
    return saved


def indexed_kinds() -> dict[str, str]:
    """`TASK`, `GROUP` and so on by the names of lm-eval's tasks, groups and tags, and of our tasks and groups. Told
    without lm-eval's task modules, which take a second to load; empty where the index is not kept, or is stale.
    """
    import lm_eval

    root = default_root()
    saved = task_cache.read(task_cache.cache_file(root, lm_eval.__version__), task_cache.fingerprint(root))
    return {row.name: row.kind.removeprefix("PY_") for row in saved.rows} | our_kinds() if saved is not None else {}


def our_kinds() -> dict[str, str]:
    """`TASK` and `GROUP` by the names of our tasks and groups. Raises OSError."""
    texts = [file.read_text(encoding="utf-8") for file in tasks_root().rglob("*.yaml")]
    found = (pair for text in texts for pair in re.findall(r"^(task|group): (\S+)$", text, re.MULTILINE))
    return {name: kind.upper() for kind, name in found}


def scan(root: Path) -> SavedIndex:
    """Read all task files of a folder with lm-eval's own code."""
    from harness_ext.lm_eval_adapter.borrowed import TaskIndex

    with _recorded_warnings() as warnings, quick_imports():
        entries = TaskIndex.build([root])
    return SavedIndex([_row(root, name, entry) for name, entry in entries.items()], warnings)


@contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    """Collect what lm-eval's index warns about instead of printing it: it is printed from what was saved, now and later
    alike.
    """
    texts: list[str] = []

    def record(entry: logging.LogRecord) -> bool:
        if entry.levelno >= logging.WARNING:
            texts.append(entry.getMessage())
        return entry.levelno < logging.WARNING

    borrowed.log.addFilter(record)
    try:
        yield texts
    finally:
        borrowed.log.removeFilter(record)


def _row(root: Path, name: str, entry: Entry) -> TaskRow:
    file = entry.yaml_path.relative_to(root).as_posix() if entry.yaml_path else None
    output_type = (entry.cfg or {}).get("output_type")
    return TaskRow(name, entry.kind.name, file, sorted(entry.tags), output_type)


def _entries(root: Path, rows: list[TaskRow]) -> dict[str, Entry]:
    from harness_ext.lm_eval_adapter.borrowed import Entry, Kind, load_yaml

    class IndexedEntry(Entry):
        """An entry from the index: its path and its configuration are made when first asked for."""

        def __init__(self, row: TaskRow) -> None:
            self.name, self.kind, self.tags = row.name, kinds[row.kind], set(row.tags)
            self.row = row

        @cached_property
        def yaml_path(self) -> Path | None:
            return root / self.row.file if self.row.file else None

        @cached_property
        def cfg(self) -> dict[str, Any] | None:
            return load_yaml(self.yaml_path, resolve_func=False) if self.yaml_path else None

    kinds = Kind.__members__
    return {row.name: IndexedEntry(row) for row in rows}


def _output_type_loader() -> Callable[..., dict[str, Any]]:
    """Stands in for lm-eval's `load_yaml` while it prints a list, for which it needs the output type alone."""
    from harness_ext.lm_eval_adapter.borrowed import load_yaml

    root = default_root()
    known = {str(root / row.file): row.output_type or "" for row in saved_rows(root).rows if row.file}

    def load(path: str | Path, **options: Any) -> dict[str, Any]:
        output_type = known.get(str(path))
        return load_yaml(path, **options) if output_type is None else {"output_type": output_type}

    return load
