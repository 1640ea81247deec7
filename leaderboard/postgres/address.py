"""Where a PostgreSQL is, and connecting to it without its password being told to anyone.

The client is psycopg, of the extra `postgres`; it is imported only once an address is given. As with any client of
libpq, a password may also come from PGPASSWORD or ~/.pgpass, where no list of processes shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from leaderboard.errors import LeaderboardError
from leaderboard.readers.addresses import POSTGRES_FORM, is_postgres
from leaderboard.readers.secrets import redacted

if TYPE_CHECKING:
    import psycopg

DEFAULT_SCHEMA = "lm_eval"
_CONNECT_SECONDS = 15


class PostgresError(LeaderboardError):
    """The PostgreSQL cannot be reached or used; the message names no password."""


@dataclass(frozen=True)
class PostgresAddress:
    """A database and the schema in it that is ours. url: as given, perhaps with a password, so never printed."""

    url: str = field(repr=False)
    schema: str = DEFAULT_SCHEMA

    def __post_init__(self) -> None:
        """Raises PostgresError for what is no address, or a schema that is no plain name."""
        if not is_postgres(self.url) or self.url.endswith("://"):
            raise PostgresError(f"the address must be like {POSTGRES_FORM}")
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self.schema) or self.schema.startswith("pg_"):
            raise PostgresError(
                f"schema {self.schema!r} is no plain name: use small letters, digits and _, and no pg_ at the start"
            )

    @property
    def passwords(self) -> set[str]:
        """What is never to be printed, in each way of writing it."""
        before, _, _ = re.sub(r"^\w+://", "", self.url).rpartition("@")
        given = {before.partition(":")[2]}
        try:
            parts = urlsplit(self.url)
            given |= {parts.password or "", *parse_qs(parts.query).get("password", [])}
        except ValueError:
            pass
        return {word for text in given for word in (text, unquote(text)) if word}

    def __str__(self) -> str:
        """The address without password."""
        return self.printable(self.url)

    def printable(self, text: object) -> str:
        """The text with `***` in place of the password."""
        hidden = str(text)
        for password in sorted(self.passwords, key=len, reverse=True):
            hidden = hidden.replace(password, "***")
        return redacted(hidden)


@contextmanager
def connected(address: PostgresAddress, *, read_only: bool) -> Iterator[psycopg.Connection]:
    """A connection in one transaction: committed at the end, rolled back on any exception.

    Raises PostgresError where psycopg is missing, and for whatever the server refuses.
    """
    try:
        import psycopg
    except ImportError:
        raise PostgresError(
            "a PostgreSQL needs the package psycopg, which is not installed: pip install 'lm-eval-recipes[postgres]'"
        ) from None
    try:
        with psycopg.connect(address.url, connect_timeout=_CONNECT_SECONDS) as connection:
            connection.read_only = read_only
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ if read_only else None
            yield connection
    except psycopg.Error as error:
        what = " ".join(address.printable(error).split()) or type(error).__name__
        if "password" in what:
            what += " (libpq takes the password from PGPASSWORD or from ~/.pgpass)"
        # Neither the cause nor its traceback may be shown: libpq repeats what it could not read.
        raise PostgresError(f"{address} cannot be used: {what}") from None
