"""The one exception that a user of this package is meant to see.

The command line prints its message after `error: ` and exits with code 2; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""
