"""The leaderboard: from run directories to verdicts.

It reads what `lm_eval` wrote (run directories are the truth), keeps an index of it in one DuckDB file, compares every
recipe with its baseline by paired statistics, and shows the result in the terminal and on a local page.

    import leaderboard
    leaderboard.board("results").to_frame()

Notable choices:
- Nothing here imports torch, transformers, lm_eval or harness_ext, so a board can be browsed on a laptop that could not
  run a model. Heavy imports (duckdb, pyarrow, scipy, streamlit) happen inside functions.
- `board`, `compare`, `gate` and `ingest` are functions to a user and modules to an import. An import binds the module
  to the name, whatever stood there, and hiding it behind a function would break `import leaderboard.board.board`. So
  the modules themselves can be called: `leaderboard.board(...)` means the same whatever was imported before.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from inspect import Signature

    from leaderboard.api import board, compare, gate
    from leaderboard.ingest import ingest
    from leaderboard.store.database import open_store

__all__ = ["board", "compare", "gate", "ingest", "open_store"]


class _CallableModule(ModuleType):
    # A module that passes calls on to one function, and shows that function's signature and docstring. The function is
    # imported when it is first needed.

    _called: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function_of(self)(*args, **kwargs)

    @property
    def __signature__(self) -> Signature:
        from inspect import signature

        return signature(_function_of(self))

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # of the class it is a property, of a module a text
        from inspect import getdoc

        function = _function_of(self)
        return f"{function.__name__}{self.__signature__}\n\n{getdoc(function)}"


def _function_of(module: _CallableModule) -> Callable[..., Any]:
    place, _, function = module._called.partition(":")
    return getattr(import_module(place), function)


def make_callable(module: str, function: str) -> None:
    """Let calls of an imported module go to a function, `"package.module:name"`."""
    sys.modules[module].__class__ = _CallableModule
    sys.modules[module].__dict__["_called"] = function


def __getattr__(name: str) -> Any:
    """The names that load something: `ingest`, which makes itself callable, and `open_store`."""
    if name == "ingest":
        return import_module("leaderboard.ingest")
    if name == "open_store":
        return import_module("leaderboard.store.database").open_store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


for _name in ("board", "compare", "gate"):  # packages of a docstring each: importing them loads nothing
    import_module(f"leaderboard.{_name}")
    make_callable(f"leaderboard.{_name}", f"leaderboard.api:{_name}")
