"""The identity of a loaded task: one digest of its configuration, its code, and its documents by content.

Two tasks with equal identities ask the same questions and score them alike, on any machine and in any folder: no path,
address or date counts. It does not depend on which documents are scored (`--limit`, `--samples`), nor on the settings
of the command. Few-shot documents count where the task is asked with some.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.lm_eval_adapter import task_code
from harness_ext.lm_eval_adapter.fresh_modules import LoadRecord
from leaderboard.readers.secrets import without_secrets

if TYPE_CHECKING:
    from lm_eval.api.task import Task

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_LOCATIONS = frozenset({"data_files", "data_dir", "cache_dir"})
"""Keys whose values say where documents lie; what lies there is counted as documents."""
_NOT_THE_TASKS = frozenset({"config_source", "data_dir"})
_DEEPEST = 12
_MOST_ITEMS = 1000


def task_identity(task: Task, record: LoadRecord, shots: int, skipped: Collection[str] = ()) -> str:
    """The identity of a task, in hexadecimal.

    record: of the load that made the task. shots: few-shot examples in each prompt. skipped: keys of its metadata that
    hold settings of the command.
    """
    parts = {
        "config": configuration(task, skipped),
        "functions": sorted(name for _, name in _named_functions(_source(task))),
        "class": type(task).__qualname__,
        "shots": shots,
        "code": record.digest(task_roots(task), data_files(task)),
        "documents": documents_digest(task.eval_docs),
        "fewshot": documents_digest(_fewshot_documents(task)) if shots or _asks_otherwise(task) else None,
    }
    return digest(parts)


def digest(value: Any) -> str:
    """SHA-256 over plain data as sorted JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_as_text).encode()).hexdigest()


def documents_digest(documents: Iterable[Any]) -> str:
    """SHA-256 over the content of documents, in order."""
    found = hashlib.sha256()
    for document in documents:
        line = json.dumps(document, ensure_ascii=False, default=_as_content)
        found.update(f"{line}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def configuration(task: Task, skipped: Collection[str] = ()) -> dict[str, Any]:
    """The configuration of a task as plain data, without anything that names a place on this machine."""
    # The number of few-shot examples is the command's to change, also in a loaded task.
    fields = {key: value for key, value in _fields(task).items() if value is not None and key != "num_fewshot"}
    metadata = fields.get("metadata")
    if isinstance(metadata, Mapping):
        kept = {key: value for key, value in metadata.items() if key not in skipped and key not in _NOT_THE_TASKS}
        fields["metadata"] = without_secrets(kept)
    path = fields.get("dataset_path")
    if isinstance(path, str) and os.path.exists(path):
        fields["dataset_path"] = "local"
    prompts, _, name = str(fields.get("use_prompt") or "").rpartition(":")
    if Path(prompts).is_file():
        fields["use_prompt"] = [task_code.file_digest(Path(prompts)), name]
    return {key: plain(value) for key, value in fields.items()}


def _fields(task: Task) -> dict[str, Any]:
    """A task's configuration by key. lm-eval hands a class of its own kind the whole of it as its name."""
    fields = dict(vars(task.config))
    return {**fields, **fields["task"]} if isinstance(fields.get("task"), Mapping) else fields


def plain(value: Any, depth: int = 0) -> Any:
    """A part of a configuration as plain data: functions by name and what they hold, files by content."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _text(value)
    if depth > _DEEPEST:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(key): _layout(item) if key in _LOCATIONS else plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(plain(item, depth + 1), sort_keys=True) for item in value)
    if isinstance(value, os.PathLike):
        return _text(os.fspath(value))
    return _thing(value, depth)


def _thing(value: Any, depth: int) -> Any:
    """A function, a class or an object, by its name and what it holds."""
    inner: Any = None
    if isinstance(value, functools.partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, types.MethodType):
        inner = [value.__func__, value.__self__]
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        inner = [value.__code__.co_firstlineno, value.__defaults__, value.__kwdefaults__, cells]
    elif isinstance(value, (type, types.BuiltinFunctionType, types.ModuleType)):
        inner = None
    elif dataclasses.is_dataclass(value) or _is_of_task(Path(_module_file(type(value).__module__) or "")):
        inner = {key: item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("__")}
    else:
        return _ADDRESS.sub("", str(value))
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
    return {"name": str(name), "holds": plain(inner, depth + 1)}


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _text(value: str) -> Any:
    """A text; the name of a file or folder that is there counts by content."""
    if ("/" not in value and os.sep not in value) or "\n" in value or len(value) > 1024:
        return value
    path = Path(value)
    try:
        if path.is_file():
            return {"file": task_code.file_digest(path)}
        return {"folder": None} if path.is_absolute() and path.is_dir() else value
    except (OSError, ValueError):
        return value


def _layout(value: Any) -> Any:
    """Where documents lie, without the places: the splits, and how many files each has."""
    if isinstance(value, Mapping):
        return {str(key): _layout(item) for key, item in value.items()}
    return [_layout(item) for item in value] if isinstance(value, (list, tuple)) else "data"


def _as_text(value: Any) -> str:
    return _ADDRESS.sub("", str(value))


def _as_content(value: Any) -> Any:
    """What JSON lacks, by content: bytes, sets, arrays, images; anything else by its text, without its address."""
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if hasattr(value, "tobytes"):
        shape = getattr(value, "shape", None) or getattr(value, "size", None)
        return {"bytes": hashlib.sha256(value.tobytes()).hexdigest(), "shape": str(shape)}
    return _as_text(value)


def _fewshot_documents(task: Task) -> Iterable[Any]:
    pool = getattr(getattr(task, "sampler", None), "df", None)
    if pool is not None:
        return pool
    documents = task.fewshot_docs()
    return () if documents is None else documents


def _asks_otherwise(task: Task) -> bool:
    """Whether a class of its own builds the prompts, and may use few-shot documents unasked."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.api.task import Task as BaseTask

    return type(task).fewshot_context not in (ConfigurableTask.fewshot_context, BaseTask.fewshot_context) and (
        task.has_training_docs() or task.has_validation_docs()
    )


def data_files(task: Task) -> list[Path]:
    """The local files that a configuration names as those of its documents."""
    named = [value for key in _LOCATIONS for value in _leaves((_fields(task).get("dataset_kwargs") or {}).get(key))]
    return [path for value in named if (path := Path(value)).is_file()]


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, (str, os.PathLike)):
        yield os.fspath(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)


def task_roots(task: Task) -> list[Path]:
    """The files of the modules that a task's class and functions come from: those that it names, and those that lm-eval
    found for a name in the configuration.
    """
    found = [_fields(task), type(task), type(getattr(task, "sampler", None))]
    found += [getattr(task, name, None) for name in ("_metric_fn_list", "_aggregation_list", "prompt")]
    found += [kind for ensemble in getattr(task, "_filters", ()) for kind in ensemble.filters]
    return [*files_of(found), *(file for file, _ in _named_functions(_source(task)))]


def files_of(value: Any) -> list[Path]:
    """The files of the modules of every function, class and object in a value that lie beside a task, or in this
    project.
    """
    return sorted(path for path in set(_files(value, set(), 0)) if _is_of_task(path))


def _files(value: Any, seen: set[int], depth: int) -> Iterator[Path]:
    if value is None or isinstance(value, (str, bytes, bool, int, float)) or id(value) in seen or depth > _DEEPEST:
        return
    seen.add(id(value))
    inner: list[Any] = []
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = list(value)[:_MOST_ITEMS]
    elif isinstance(value, functools.partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, types.MethodType):
        inner = [value.__func__, value.__self__]
    elif isinstance(value, types.FunctionType):
        yield Path(value.__code__.co_filename)
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        inner = [getattr(value, "__wrapped__", None), value.__defaults__, *cells]
    elif isinstance(value, type):
        yield from (Path(file) for kind in value.__mro__ if (file := _module_file(kind.__module__)))
    elif not isinstance(value, types.ModuleType):
        inner = [type(value), getattr(value, "__dict__", None), getattr(value, "__wrapped__", None)]
    if file := _module_file(getattr(value, "__module__", None)):
        yield Path(file)
    for item in inner:
        yield from _files(item, seen, depth + 1)


def _module_file(name: Any) -> str | None:
    module = sys.modules.get(name) if isinstance(name, str) else None
    return getattr(module, "__file__", None)


def _is_of_task(path: Path) -> bool:
    real = Path(os.path.realpath(path))
    if not real.is_file():
        return False
    return task_code.is_beside(real) or task_code.is_ours(real)


def _source(task: Task) -> str | None:
    metadata = _fields(task).get("metadata")
    source = metadata.get("config_source") if isinstance(metadata, Mapping) else None
    return source if isinstance(source, str) and Path(source).is_file() else None


@functools.lru_cache(maxsize=1)
def _loader() -> Callable[..., dict[str, Any]]:
    from harness_ext.lm_eval_adapter.borrowed import load_yaml

    return load_yaml


def _named_functions(source: str | None) -> list[tuple[Path, str]]:
    """The functions that a task file and those that it includes name: the file of each, and its name from the task's
    folder.
    """
    if source is None:
        return []
    folder = Path(source).resolve().parent
    found = []
    for value in _leaves(_loader()(source, resolve_func=False)):
        base, _, name = value.rpartition("/")
        module, _, function = name.rpartition(".")
        if not base.startswith("/") or not module.replace(".", "").isidentifier() or not function.isidentifier():
            continue
        beside = Path(base) / f"{module.replace('.', '/')}.py"
        if beside.is_file():
            found.append((beside, f"{os.path.relpath(beside, folder)}:{function}"))
        elif (file := _module_file(module)) and task_code.may_be_named(Path(os.path.realpath(file))):
            found.append((Path(file), f"{module}:{function}"))
    return found
