"""Finding what registers itself by a decorator: the modules of a package here, and the entry points of other packages.

An entry point names a module; importing it is all that is needed.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from importlib import metadata

# What other packages may hold, as the groups of their entry points name it.
KINDS = ("methods", "searches", "statistics")


def import_modules_of(package_name: str) -> None:
    """Import every module of a package of ours, by its dotted name."""
    package = importlib.import_module(package_name)
    for module in pkgutil.iter_modules(package.__path__, f"{package_name}."):
        importlib.import_module(module.name)


def load_entry_points(kind: str) -> None:
    """Load the modules that other packages name in the group `lm_eval_recipes.{kind}`. One that cannot be loaded is
    warned of, and costs nothing else. kind: what they hold, a plural.
    """
    for entry in metadata.entry_points(group=f"lm_eval_recipes.{kind}"):
        try:
            entry.load()
        except Exception as error:
            warnings.warn(
                f"the {kind} of {entry.value} cannot be loaded: {type(error).__name__}: {error}", stacklevel=2
            )
