"""What an engine is: something that runs the jobs of a sweep somewhere, and knows which of them wait or run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from harness_ext.errors import UserError
from harness_ext.storage.whole_files import write_record
from leaderboard.readers.secrets import is_secret, redacted_command
from leaderboard.readers.sweep_state import ASKED, ENDED, HEARTBEAT, JOB


@dataclass(frozen=True)
class Job:
    """One cell to run: one ordinary `lm_eval run`, in a process of its own.

    cell: the cell's key, safe as a file name. command: its words. environment: added to the worker's; never written to
    a file of ours. folder: where the worker leaves the files of `job_files`; driver and worker both see it. gpus: how
    many it needs. timeout_s: seconds until it is ended, None for no end. after: cells that must have ended before.
    """

    cell: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    gpus: int
    timeout_s: float | None
    after: tuple[str, ...] = ()


class SweepEngine(Protocol):
    """What the driver of a sweep asks of an engine."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs over; one whose worker lives already, started by an earlier driver, is adopted and not started.

        Raises UserError where one of them can never run here.
        """

    def alive(self) -> set[str]:
        """The cells that wait in the engine's queue or run. What waits may be started by this call."""

    def cancel(self, cells: Iterable[str]) -> None:
        """End these cells, and take those that wait out of the queue; unknown ones are passed over."""

    def close(self) -> None:
        """Let go of the engine. Cells that run go on, where the engine can leave them alone."""


def prepare(job: Job) -> None:
    """Make a job's folder ready for a worker: what is asked, and nothing of an earlier try. Raises UserError."""
    _refuse_secrets(job)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        for name in (ENDED, JOB, HEARTBEAT):
            (job.folder / name).unlink(missing_ok=True)
        asked = {"cell": job.cell, "command": list(job.command), "gpus": job.gpus, "timeout_s": job.timeout_s}
        asked |= {"after": list(job.after)} if job.after else {}
        write_record(job.folder / ASKED, asked)
    except OSError as error:
        raise UserError(
            f"{job.folder} cannot be written: {error.strerror or error}; make room, or mend its rights"
        ) from None


def _refuse_secrets(job: Job) -> None:
    """A command stands in files and in lists of processes, and an environment may be pickled by an engine."""
    told = redacted_command(job.command)
    for word, hidden in zip(job.command, told):
        if word != hidden:
            raise UserError(
                f"the command of cell {job.cell} holds a secret ({hidden}), which would stand in its files: leave it"
                " out and set it in the environment of `lm_eval sweep` instead (HF_TOKEN, for one)"
            )
    if names := sorted(filter(is_secret, job.environment)):
        raise UserError(
            f"the environment of cell {job.cell} names {', '.join(names)}: cells inherit it from the environment of"
            " `lm_eval sweep`, so set it there and leave it out here"
        )


def ready(waiting: Iterable[Job], running: Collection[str]) -> list[Job]:
    """The waiting jobs, in order, whose `after` neither wait nor run."""
    waiting = list(waiting)
    not_ended = {job.cell for job in waiting} | set(running)
    return [job for job in waiting if not not_ended.intersection(job.after)]


def ended(job: Job) -> bool:
    """Whether the worker has left its last record."""
    return (job.folder / ENDED).exists()


def installing(package: str, extra: str) -> str:
    """The words for a package of an engine that is not installed."""
    return f"{package} is not installed: pip install 'lm-eval-recipes[{extra}]'"


def imported(package: str, extra: str) -> Any:
    """The package of an engine. Raises UserError where it is not installed."""
    try:
        return import_module(package)
    except ImportError:
        raise UserError(f"{installing(package, extra)}, or use --on local") from None
