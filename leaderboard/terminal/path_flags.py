"""Flags that take a path: what `argparse` is to make of their words. An address is refused before anything is done."""

from __future__ import annotations

import argparse
from pathlib import Path

from leaderboard.readers.addresses import POSTGRES_FORM, is_postgres, why_not_local


def local_path(text: str) -> Path:
    """A path of this machine."""
    return _checked(text, "a path on this machine")


def database_path(text: str) -> Path:
    """The path of a DuckDB file."""
    return _checked(text, "a file on this machine")


def database_or_postgres(text: str) -> Path | str:
    """The path of a DuckDB file, or the address of a PostgreSQL as it is: a path would lose one of its slashes."""
    if is_postgres(text):
        return text
    if text.lower().startswith(("postgres:/", "postgresql:/")):
        raise argparse.ArgumentTypeError(f"must be like {POSTGRES_FORM}")
    return database_path(text)


def _checked(text: str, takes: str) -> Path:
    if (reason := why_not_local(text, takes)) is not None:
        raise argparse.ArgumentTypeError(reason)
    return Path(text)
