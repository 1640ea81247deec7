"""Which jobs Slurm has, and which of them an earlier driver submitted for a cell.

Notable choices:
- Which cells are alive is what `squeue` says, which any cluster has; accounting (`sacct`) is not needed. Where it does
  not answer, nobody is taken for dead.
- A driver killed between `sbatch` and writing down the job's number, or an `sbatch` that gave up waiting, leaves a job
  that the next driver finds by its name. Until submitit has put a task's arguments in their place the task only waits
  for them, so that one without them is cancelled and submitted anew.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

from harness_ext.errors import UserError
from harness_ext.sweeps.engines.base import Job, ended
from harness_ext.sweeps.job_files import read_record

RECORD = "slurm.json"
"""In a cell's folder: `name` and `folder` of its array, its `task` in it, and its `job_id` once Slurm has told one."""
QUEUE_SECONDS = 10.0
"""How often `squeue` is asked at most: it is everybody's."""


class SlurmQueue:
    """This user's jobs that wait or run."""

    def __init__(self) -> None:
        self._names: dict[str, str] | None = None
        self._asked = -math.inf

    def names(self) -> dict[str, str] | None:
        """The jobs' names by id, as of a moment ago; None where Slurm does not answer."""
        if time.monotonic() - self._asked > QUEUE_SECONDS:
            command = ["squeue", "--me", "--array", "--noheader", "--format=%i %j"]
            try:
                told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
                lines = [line.split(maxsplit=1) for line in told.stdout.splitlines() if line.strip()]
                self._names = {line[0]: line[-1].strip() for line in lines} if told.returncode == 0 else None
            except (OSError, subprocess.TimeoutExpired):
                self._names = None
            self._asked = time.monotonic()
        return self._names

    def forget(self) -> None:
        """Have `squeue` asked at the next look."""
        self._asked = -math.inf


def submitted_before(job: Job, queued: Mapping[str, str] | None, slurm_job: Callable[[str, str], Any]) -> Any | None:
    """A cell's job that an earlier driver submitted and Slurm still has; None where there is none. slurm_job: makes
    submitit's, of a folder and a number. Raises UserError where that cannot be told.
    """
    record = read_record(job.folder / RECORD) or {}
    number, folder = record.get("job_id"), record.get("folder")
    if not isinstance(folder, str) or ended(job):
        return None
    if number is None:
        number = _named(job, record, queued)
    if not isinstance(number, str) or (queued is not None and number not in queued):
        return None
    submitted = slurm_job(folder, number)
    if "job_id" not in record and not submitted.paths.submitted_pickle.exists():
        submitted.cancel(check=False)
        return None
    return submitted


def _named(job: Job, record: Mapping[str, Any], queued: Mapping[str, str] | None) -> str | None:
    """The number of a cell's job whose name is all that was written down; None where Slurm has none."""
    if queued is None:
        raise UserError(
            f"squeue does not answer, and cell {job.cell} may be submitted already, as {record.get('name')}: start"
            " the same command again when it does"
        )
    task = record.get("task")
    numbers = [number for number, name in queued.items() if name == record.get("name")]
    return next((number for number in numbers if task is None or number.endswith(f"_{task}")), None)
