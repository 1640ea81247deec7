"""The commands that messages advise, whole: what is printed can be pasted, and reaches the database that the message is
about.

Notable choice: `lm_eval ingest` never takes the database from the folder it reads. A folder of somebody else's results
may hold a database of its own, and results must not end up there unasked; so every command for another database than
the default names it.
"""

from __future__ import annotations

import shlex
from pathlib import Path

DEFAULT_DATABASE = Path("results") / "leaderboard.duckdb"
RUN_HELP = "an id, a folder or MODEL/RECIPE"
"""The three ways to name a run, for the help of commands; `store.naming` has the rules."""


def ingest_command(database: Path, *paths: Path | str, rebuild: bool = False) -> str:
    """`lm_eval ingest` of `paths`, by default the database's own folder, into `database`."""
    words = [*(["--rebuild"] if rebuild else []), *map(str, paths or [database.parent])]
    return command_about(database, "ingest", *words)


def command_about(database: Path | None, *words: str) -> str:
    """A command of `lm_eval` that is about a database; None: one in memory alone."""
    return shlex.join(["lm_eval", *words, *(_database_flag(database) if database is not None else [])])


def advised(database: Path | None, *words: str) -> str:
    """The same in the quotes of messages."""
    return f"`{command_about(database, *words)}`"


def run_arguments(database: Path) -> list[str]:
    """What `lm_eval run` needs besides, so that its results land in `database`; nothing where no run would write
    there.
    """
    if is_default(database) or database.name != DEFAULT_DATABASE.name:
        return []
    return ["--output_path", str(database.parent)]


def _database_flag(database: Path) -> list[str]:
    return [] if is_default(database) else ["--database", str(database)]


def is_default(database: Path) -> bool:
    """Whether a database is the one that commands take unasked."""
    return database.resolve() == DEFAULT_DATABASE.resolve()
