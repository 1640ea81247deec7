"""Digests of source code: what was worked out before counts as long as the code that did it is the same."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def sources_of(*modules: str) -> dict[Path, bytes]:
    """The files of this package that some of its modules are made of, directly or through others, with their contents.
    modules: paths inside the package, such as `board/board.py`.
    """
    sources: dict[Path, bytes] = {}
    waiting = [_PACKAGE / module for module in modules]
    while waiting:
        file = waiting.pop()
        if file not in sources:
            sources[file] = file.read_bytes()
            waiting.extend(_imported(ast.parse(sources[file])))
    return sources


def digest_of(sources: dict[Path, bytes], *further: str) -> str:
    """A digest of files' contents, and of what else decides what they do."""
    parts = [*(sources[file] for file in sorted(sources)), *(text.encode() for text in further)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _imported(tree: ast.Module) -> Iterator[Path]:
    """The files of this package that a module imports anywhere in its code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names: Iterable[str] = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for package, *inside in (name.split(".") for name in names):
            place = _PACKAGE.joinpath(*inside)
            if package == _PACKAGE.name:
                yield from (
                    file for file in (place.with_suffix(".py"), place / "__init__.py") if inside and file.is_file()
                )
