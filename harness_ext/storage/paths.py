"""Where this package keeps what it can make again."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path | None:
    """The folder for this package's caches: `LM_EVAL_RECIPES_CACHE`, or below `XDG_CACHE_HOME` or `~/.cache`; None
    where there is no home.
    """
    named = os.environ.get("LM_EVAL_RECIPES_CACHE")
    if named:
        return Path(named)
    try:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return parent / "lm-eval-recipes"


def keep_text(path: Path, text: str) -> bool:
    """Put a file of a cache in its place, whole or not at all; its folder is made where there is none. False where it
    cannot be kept.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError:
        return False
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        return False
    return True
