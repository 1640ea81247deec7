"""Where this package keeps what it can make again."""

from __future__ import annotations

import os
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
