"""Tokens and passwords of the command line stay out of what is printed: messages, logs, tracebacks."""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import Any

from leaderboard.readers.secrets import redacted, redacted_command, secret_values

_known: set[str] = set()


def hide(given: Any) -> None:
    """From now on, print no secret that is given in these settings (nested mappings and lists, or words)."""
    _known.update(secret_values(given))


def printable(text: object) -> str:
    """The text with `***` in place of secrets."""
    return redacted(str(text), _known)


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, its message without secrets."""
        message = record.getMessage()
        if (told := printable(message)) != message:
            record.msg, record.args = told, ()
        return True


_REDACTION = _Redaction()


def _print_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    print(printable("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)


def install() -> None:
    """Hide the secrets of this process's command line in what its log handlers and tracebacks say."""
    hide([*sys.argv, *_after_flags()])
    for handler in (*logging.getLogger().handlers, *logging.getLogger("lm_eval").handlers):
        handler.addFilter(_REDACTION)
    sys.excepthook = _print_traceback


def _after_flags() -> list[str]:
    """Values that stand behind a flag of their own, as settings."""
    return [f"token={word}" for word, told in zip(sys.argv, redacted_command(sys.argv), strict=True) if told == "***"]
