"""The files of one cell's job, in a folder that driver and worker both see.

`asked.json` is written by an engine before the job starts; `job.json`, `output.log`, `heartbeat` and `ended.json` by
the worker. No environment is written, and no clock of another machine is compared with one's own: a job is alive where
its process is, or, on another machine, where its heartbeat counts on.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from leaderboard.readers.sweep_life import HeartbeatWatch, host, process_start
from leaderboard.readers.sweep_state import ENDED, HEARTBEAT, JOB, read_json

NOT_BEGUN = "baseline"
"""The reason in the last record of a job whose command was not begun, since a cell that it waits for is not done."""
HOLDER = ".worker"
"""What a worker locks as long as it lives, and says in who it is: what `job.json` says, which a driver that begins
again in the moment before that was there takes away.
"""
BEAT_SECONDS = 2.0
"""How often a worker counts its heartbeat up."""


def read_record(path: Path) -> dict[str, Any] | None:
    """The plain data of a file of at most a mebibyte; None where there is none or it is no JSON object."""
    return read_json(path)


def now() -> str:
    """This machine's time in UTC, for people: nothing is decided by it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def living_process(folder: Path) -> int | None:
    """The process of the worker that runs the job of this folder on this machine; None where none does."""
    job = living_job(folder)
    return None if job is None else job["pid"]


def living_job(folder: Path) -> dict[str, Any] | None:
    """What the worker said that runs the job of this folder on this machine; None where none does."""
    for name in (JOB, HOLDER):
        job = read_record(folder / name)
        if job is None or job.get("host") != host() or not isinstance(job.get("pid"), int):
            continue
        start = process_start(job["pid"])
        if start is not None and start == job.get("process_start"):
            return job
    return None


class Heartbeats:
    """Which jobs on other machines are alive: those whose heartbeat has counted on while one looked.

    patience_s: seconds of one's own clock without a count after which a job is taken for dead; until then one that was
    seen for the first time is taken for alive.
    """

    def __init__(self, patience_s: float = 60 * BEAT_SECONDS) -> None:
        self._watch = HeartbeatWatch(patience_s)

    def alive(self, folder: Path, clock: float) -> bool:
        """Whether the job of this folder is alive. clock: seconds of a monotonic clock, now."""
        if not (folder / JOB).exists() or (folder / ENDED).exists():
            return False
        return self._watch.beats(folder / HEARTBEAT, clock) is not False
