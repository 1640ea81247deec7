"""Runs as an earlier version read them, for stores that it left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from leaderboard.readers.records import Run
from leaderboard.readers.run_id import with_id


def with_former_id(run: Run, *given: Any) -> Run:
    """In place of `reader.with_id`: the run under the id of the former formula, without what it did not read."""
    found = with_id(run, *given)
    tasks = [replace(task, sample_count=None) for task in found.tasks]
    return replace(found, run_id=found.former_id or found.run_id, former_id=None, edited=None, tasks=tasks)
