"""What the source of a task's module mentions: the modules that it imports, wherever the import stands, and the files
that it may read. Nothing is executed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

_READERS = frozenset(
    {"open", "read_text", "read_bytes", "read_csv", "read_json", "read_table", "read_parquet", "read_excel"}
    | {"read_pickle", "loadtxt", "genfromtxt", "load_from_disk", "iterdir", "glob", "iglob", "rglob", "listdir"}
    | {"scandir", "walk", "run_path", "spec_from_file_location", "get_data", "files", "open_text"}
)
"""Functions and methods that read a file, a folder or a database that the caller names."""
_LOADERS = frozenset({"np", "numpy", "torch", "joblib"})
"""Modules whose `load` reads a file; that of `json` is given an open one."""
_IMPORTERS = frozenset({"import_module", "__import__", "exec_module", "iter_modules", "walk_packages"})
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}")
_LONGEST_NAME = 255
_DEEPEST = 4


class ImportedName(NamedTuple):
    """One name of an import. level: dots before it, 0 for an absolute one."""

    level: int
    name: str


class Mentions(NamedTuple):
    """What a source mentions. files: for every place that reads, patterns of file names, one of which it may mean;
    patterns: all of them. unknown_imports: whether it works out the name of a module that it imports.
    """

    imports: frozenset[ImportedName]
    patterns: frozenset[str]
    reads: frozenset[frozenset[str]]
    unknown_imports: bool


NOTHING = Mentions(frozenset(), frozenset(), frozenset(), False)


@lru_cache(maxsize=4096)
def mentions(source: bytes) -> Mentions:
    """What Python source mentions; nothing where it is not Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return NOTHING
    assigned = _assigned(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    importing = [call for call in calls if _name_of(call.func) in _IMPORTERS]
    named = [_constant(call.args[0]) if call.args else None for call in importing]
    return Mentions(
        frozenset(_imports(tree)) | frozenset(ImportedName(*_levelled(name)) for name in named if name),
        frozenset(_patterns([tree])),
        frozenset(frozenset(_patterns(_with_values(call, assigned))) for call in calls if _reads(call)),
        any(name is None for name in named),
    )


def _imports(tree: ast.AST) -> Iterator[ImportedName]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (ImportedName(0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield ImportedName(node.level, node.module)
            # What is imported may be a module itself.
            prefix = f"{node.module}." if node.module else ""
            yield from (ImportedName(node.level, f"{prefix}{alias.name}") for alias in node.names if alias.name != "*")


def _levelled(name: str) -> tuple[int, str]:
    bare = name.lstrip(".")
    return len(name) - len(bare), bare


def _assigned(tree: ast.AST) -> dict[str, list[ast.AST]]:
    """The expressions that names are bound to, anywhere in the module."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tree):
        targets: Iterable[ast.AST] = ()
        value: ast.AST | None = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            targets, value = [node.target], node.value
        elif isinstance(node, (ast.For, ast.comprehension)):
            targets, value = [node.target], node.iter
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                found.setdefault(target.id, []).append(value)
    return found


def _with_values(call: ast.Call, assigned: dict[str, list[ast.AST]]) -> list[ast.AST]:
    """A call, and what the names in it stand for."""
    known: list[ast.AST] = [call]
    seen: set[str] = set()
    latest: list[ast.AST] = [call]
    for _ in range(_DEEPEST):
        names = {node.id for tree in latest for node in ast.walk(tree) if isinstance(node, ast.Name)} - seen
        seen |= names
        latest = [value for name in sorted(names) for value in assigned.get(name, ())]
        known += latest
    return known


def _reads(call: ast.Call) -> bool:
    name = _name_of(call.func)
    if name == "load" and isinstance(call.func, ast.Attribute):
        return isinstance(call.func.value, ast.Name) and call.func.value.id in _LOADERS
    return name in _READERS


def _name_of(function: ast.expr) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def _constant(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _patterns(trees: Iterable[ast.AST]) -> Iterator[str]:
    """Every text that may name a file, as a pattern for `fnmatch`: an ending alone stands for all files with it."""
    for tree in trees:
        for node in ast.walk(tree):
            text = None
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = f"*{node.value}" if _SUFFIX.fullmatch(node.value) else node.value
            if text and len(text) <= _LONGEST_NAME and "\n" not in text and text.strip("*/. "):
                yield text
