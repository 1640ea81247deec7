"""What a user of this package is meant to see when something is wrong, and the words for it.

The command line prints the message after `error: ` and exits with code 2; everything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""


class RecipeError(UserError):
    """A recipe that cannot be used; the message lists every mistake found in it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase offering the known name nearest to a mistyped one, or the shortest that contains it, or listing a few
    where there is neither.
    """
    names = sorted(set(known))
    close = closest(name, names)
    if close is not None:
        return f"did you mean {close!r}?"
    return f"known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else "none are known"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name nearest to a mistyped one, or the shortest that contains it; None where there is neither. Case
    does not count, nor whether words are joined by `-`, `_` or a blank.
    """
    by_letters = {_letters(other): other for other in sorted(set(known), reverse=True)}
    letters = _letters(name)
    close = difflib.get_close_matches(letters, sorted(by_letters), n=1, cutoff=0.5)
    if not close and len(letters) >= 3:
        close = sorted((longer for longer in by_letters if letters in longer), key=lambda longer: (len(longer), longer))
    return by_letters[close[0]] if close else None


def _letters(name: str) -> str:
    return name.casefold().replace("_", "-").replace(" ", "-")


class VariantFailed(Exception):
    """A recipe that could not be carried through on this model. kind: a word for the class of failure; where: the
    matrix or task. searches: records of those that were under way.
    """

    def __init__(self, kind: str, reason: str, where: str | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.where = where
        self.searches: list[dict[str, Any]] = []


class BudgetTooSmall(VariantFailed):
    """A budget that this model cannot meet: its smallest ranks allowed hold more."""

    def __init__(self, reason: str) -> None:
        super().__init__("budget_too_small", reason)


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put `place` before the message of a `UserError` that is raised inside: what a recipe, a step or a matrix is at
    fault for is raised plainly, and named once by who knows it.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}{error}") from None
