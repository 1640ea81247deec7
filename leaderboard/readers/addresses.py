"""Addresses (`postgres://...`, `s3://...`) that are given where a path of this machine is meant.

`Path` takes any text: an address would become a file of that name, and the password in it a part of that name. So each
flag that takes a path, and each function that opens a database, asks here first. No answer repeats more of an address
than its scheme.
"""

from __future__ import annotations

import re
from pathlib import Path

from leaderboard.errors import LeaderboardError

POSTGRES_SCHEMES = ("postgres://", "postgresql://")
POSTGRES_FORM = "postgres://USER@HOST:5432/DATABASE"
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,40})://")
_POSTGRES = re.compile(r"(postgres(?:ql)?):/", re.IGNORECASE)  # a `Path` of one has lost a slash


def is_postgres(text: str) -> bool:
    """Whether the text is an address of a PostgreSQL rather than a path."""
    return text.startswith(POSTGRES_SCHEMES)


def why_not_local(place: str | Path, takes: str) -> str | None:
    """Why a place is none on this machine's disk, with the way out; None where it is one. takes: what is meant there,
    with an article.
    """
    if (found := _POSTGRES.match(str(place))) is not None:
        return (
            f"takes {takes}, not the address of a PostgreSQL ({found[1]}://***): `lm_eval leaderboard --database` reads"
            " one, and `lm_eval publish --to` writes one"
        )
    if (found := _ADDRESS.match(str(place))) is not None:
        return f"takes {takes}, not an address ({found[1]}://***): give a path without ://"
    return None


def local_database(database: str | Path) -> Path:
    """The path of a database. Raises LeaderboardError for an address, before anything touches the disk."""
    if (reason := why_not_local(database, "a file on this machine")) is not None:
        raise LeaderboardError(f"the database {reason}")
    return Path(database)
