"""What can go wrong with a store or a run, each with a message that says what, where and what to do.

Every error a user can cause derives from `LeaderboardError`, so a command prints its text and exits with code 2.
"""

from __future__ import annotations


class LeaderboardError(Exception):
    """Base of all errors of this package that are meant for the user's eyes."""


class Busy(LeaderboardError):
    """Another process holds the database; trying again later will work."""


class Interrupted(Busy):
    """A writer was killed in the middle of a write, and a reader may not complete it."""


class NewerDatabase(LeaderboardError):
    """The database was written by a later version of this package (or of DuckDB)."""


class OlderDatabase(LeaderboardError):
    """The database needs a migration, and whoever opened it may only read."""


class NotADatabase(LeaderboardError):
    """The file is no DuckDB database, is damaged, or is a DuckDB database of something else."""


class ForeignDatabase(NotADatabase):
    """The file is a DuckDB database of something else, which is never replaced."""


class MissingDatabase(LeaderboardError):
    """There is no database at that path yet."""


class Unwritable(LeaderboardError):
    """The database, or the folder it would lie in, cannot be written."""


class UnknownRun(LeaderboardError):
    """No run of that id is in the store."""


class DeletedRun(UnknownRun):
    """The run of that id was taken off the board; the message says when, why, and how it comes back."""


class Unreadable(LeaderboardError):
    """A run directory or a results file cannot be read; the message is the reason."""
