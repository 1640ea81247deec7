"""Searches: which matrices, and which ranks; one family a file.

What another package needs to add a search is here; `harness_ext.methods.search_registry` says how it is called, and
`CandidateEvaluator` lists what it may use of the evaluator.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness_ext.methods.search_registry import SearchResult, search

if TYPE_CHECKING:
    from harness_ext.search.candidates import Dense, Nested
    from harness_ext.search.evaluator import CandidateEvaluator
    from harness_ext.search.trials import Trial, best_of, cannot_win

__all__ = [
    "CandidateEvaluator",
    "Dense",
    "Nested",
    "SearchResult",
    "Trial",
    "best_of",
    "cannot_win",
    "search",
]

_MODULES = {
    "CandidateEvaluator": "evaluator",
    "Dense": "candidates",
    "Nested": "candidates",
    "Trial": "trials",
    "best_of": "trials",
    "cannot_win": "trials",
}


def __getattr__(name: str) -> Any:
    """The names that are loaded when first asked for: a recipe is read without them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
