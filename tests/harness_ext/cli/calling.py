"""A command of ours, called in this process as from a shell."""

from __future__ import annotations

import sys

import pytest

from harness_ext.cli import main


def called(command: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `lm_eval COMMAND ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["lm_eval", command, *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
