"""The formats of other harnesses, and which of them a file has: told by its contents, or by the ending of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leaderboard.readers.discovery import Candidate
from leaderboard.readers.foreign import inspect_log, lighteval
from leaderboard.readers.foreign.results import as_run, plain_label
from leaderboard.readers.records import Run

FOREIGN_LABELS = tuple(map(plain_label, (lighteval.HARNESS, inspect_log.HARNESS)))
"""What their runs are called where recipes stand."""


def run_of_json(data: Any, candidate: Candidate, path: Path) -> Run | None:
    """The run of a JSON file, whose value is `data`; None where no other harness wrote it. Raises `Unreadable`."""
    if lighteval.matches(data):
        details = [file for file in candidate.samples if file.suffix == ".parquet"]
        return as_run(lighteval.read(data, path, details), candidate.path, [path, *details])
    if inspect_log.matches(data):
        return as_run(inspect_log.read(data, path), candidate.path, [path])
    return None


def run_of_archive(path: Path) -> Run:
    """The run of an `.eval` file of Inspect. Raises `Unreadable`."""
    return as_run(inspect_log.read_archive(path), path, [path])
