"""What a user of this package is meant to see when something is wrong, and the words for it.

The command line prints the message after `error: ` and exits with code 2; everything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""


class RecipeError(UserError):
    """A recipe that cannot be used; the message lists every mistake found in it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase offering the known name nearest to a mistyped one, or listing a few where none is near."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else "none are known"
