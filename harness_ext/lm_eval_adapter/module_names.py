"""Modules of one name beside two tasks: Python keeps one of each name, so the second task would run with the first's.

A task whose module puts its folder among the places where Python looks means the module beside it. Which one that is
follows from the source, and which one it gets from the modules of the process. Where nothing has imported it yet (the
import stands in a function), two tasks must not mean two.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter import fresh_modules, task_code
from harness_ext.lm_eval_adapter.task_source import mentions


def check(roots: Mapping[str, Sequence[Path]], reached: Mapping[Path, Sequence[task_code.Edge]]) -> None:
    """Raise UserError where a task would run with the module of another.

    roots: the files of each task's modules, by its name. reached: what each module reaches; see `task_code.reachable`.
    """
    places = [Path(os.path.realpath(place)) for place in sys.path]
    meant: dict[str, tuple[str, Path]] = {}
    for task, files in roots.items():
        folders = {Path(os.path.realpath(file)).parent for file in files}
        for name, file in _meant(files, reached, places):
            other = _file_of(name)
            if other is not None and _is_of_another(other, file, folders, _found(name, places) == file):
                _refuse(task, name, file, other)
            first, before = meant.setdefault(name, (task, file))
            if other is None and first != task and not _same(before, file):
                _refuse(task, name, file, before)


def _refuse(task: str, name: str, file: Path, other: Path) -> None:
    raise UserError(
        f"tasks: {task!r} imports the module {name!r} from {file}, and another task brings one of that name, {other}."
        " Python keeps one module of a name, so one task would be scored with the code of the other: run the tasks in"
        " separate commands, or rename one of the modules"
    )


def _meant(
    roots: Sequence[Path], reached: Mapping[Path, Sequence[task_code.Edge]], places: Sequence[Path]
) -> Iterator[tuple[str, Path]]:
    """The modules that a task imports by name from beside the module that imports them, as name and file."""
    left = [path for root in roots if (path := Path(os.path.realpath(root))) in reached]
    seen: set[Path] = set()
    while left:
        module = left.pop()
        if module in seen or module.suffix != ".py":
            continue
        seen.add(module)
        left += [edge.target for edge in reached.get(module, ()) if edge.label.startswith("import ")]
        try:
            source = module.read_bytes()
        except OSError:
            continue
        # A function may add the folder of its module only when it runs.
        own = [place for place in places if place.is_relative_to(module.parent)]
        own += [module.parent] if b"sys.path" in source else []
        names = {name for imported in mentions(source).imports if not imported.level for name in _ways(imported.name)}
        for name in sorted(names) if own else ():
            if (file := _found(name, own)) is not None and file != module:
                yield name, file


def _ways(name: str) -> Iterator[str]:
    """A module's name, and those of the packages that hold it."""
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _found(name: str, places: Sequence[Path]) -> Path | None:
    for place in places:
        base = place.joinpath(*name.split("."))
        for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if path.is_file():
                return Path(os.path.realpath(path))
    return None


def _file_of(name: str) -> Path | None:
    """The file of the module that the process has under a name."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(os.path.realpath(file)) if isinstance(file, str) else None


def _is_of_another(loaded: Path, meant: Path, folders: set[Path], comes_first: bool) -> bool:
    """Whether the loaded module is another task's, and not the one that was meant. folders: of the modules of the task.
    comes_first: whether Python would now find what was meant; where it would not, the loaded one may be shared by
    tasks, unless it lies with the task that brought it.
    """
    bringer = fresh_modules.bringer_of(loaded)
    if bringer is None or bringer.parent in folders or not (comes_first or loaded.is_relative_to(bringer.parent)):
        return False
    return not _same(loaded, meant)


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same code, wherever they lie."""
    if one == other:
        return True
    alone = not any(edges for edges in task_code.reachable([one, other], {}).values())
    return alone and task_code.file_digest(one) == task_code.file_digest(other)
