"""Cells as tasks of Slurm job arrays, by submitit (extra `[slurm]`).

Notable choices:
- One array for all cells that need the same and wait for the same: a job a cell would fill the queue.
- Slurm and submitit never run a cell again by themselves; the driver decides that, from what the worker left.
- An array's name is written down before `sbatch` and its number after, by which `slurm_queue` finds it again.
- submitit pickles the function that it runs with its arguments: it gets a plain function of texts. What it keeps goes
  into `.submitit` beside the cells' folders.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from harness_ext.errors import UserError
from harness_ext.storage.whole_files import write_record
from harness_ext.sweeps.engines.base import Job, ended, imported, prepare, ready
from harness_ext.sweeps.engines.slurm_options import SHARED, slurm_mistakes
from harness_ext.sweeps.engines.slurm_queue import RECORD, SlurmQueue, submitted_before
from harness_ext.sweeps.worker import call

_NAME = "lm-eval-sweep"
"""How the names of all arrays begin; the sweep's and the batch's own follow."""
_LONGEST_ARRAY = 1000
"""Slurm's own default for the longest is 1001."""
_EXTRA_MINUTES = 5
"""How much longer Slurm gives a cell than its worker does, so that it is the worker who ends it."""
_NEWS_SECONDS = 60.0
"""How long the last record of a job may take through a network's file system after Slurm has let go of the job."""


class SlurmEngine:
    """options: the sweep file's `slurm:`. cluster: "slurm", or "local" for submitit's processes of this machine.

    Raises UserError where submitit is not installed, or an option is wrong.
    """

    def __init__(self, options: Mapping[str, Any], cluster: str = "slurm") -> None:
        if wrong := slurm_mistakes(options):
            raise UserError("\n".join(wrong))
        self._submitit = imported("submitit", "slurm")
        self._cluster = cluster
        self._options = {name if name in SHARED else f"slurm_{name}": value for name, value in options.items()}
        self._jobs: dict[str, Job] = {}
        self._submitted: dict[str, Any] = {}
        self._seen: dict[str, float] = {}
        self._queue = SlurmQueue()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submit arrays; cells that an earlier driver submitted, and Slurm still has, are adopted.

        Raises UserError for a cell without a time limit, and where Slurm takes no job.
        """
        for job in jobs:
            if job.timeout_s is None:
                raise UserError(
                    f"cell {job.cell} has no time limit, which Slurm wants: give one with `cells: {{timeout: 4h}}`"
                )
        self.alive()  # what has ended is forgotten: Slurm takes no dependency on a job that it knows no more
        waiting = [job for job in jobs if not self._adopted(job)]
        for job in waiting:
            prepare(job)
        while batch := ready(waiting, ()):
            waiting = [job for job in waiting if job not in batch]
            for _, alike in groupby(sorted(batch, key=_needs), _needs):
                group = list(alike)
                for first in range(0, len(group), _LONGEST_ARRAY):
                    self._submit_array(group[first : first + _LONGEST_ARRAY])

    def alive(self) -> set[str]:
        """The cells that Slurm has, and those whose last record may still be on its way."""
        queued, now = self._queue.names(), time.monotonic()
        for cell, job in list(self._jobs.items()):
            if queued is None or self._submitted[cell].job_id in queued:
                self._seen[cell] = now
            if ended(job) or now - self._seen[cell] > _NEWS_SECONDS:
                del self._jobs[cell], self._submitted[cell]
        return set(self._jobs)

    def cancel(self, cells: Iterable[str]) -> None:
        """`scancel`: Slurm ends those that run, and the last record says so."""
        for cell in set(cells) & set(self._jobs):
            self._submitted[cell].cancel(check=False)
            if not (self._jobs[cell].folder / "job.json").exists():
                del self._jobs[cell], self._submitted[cell]

    def close(self) -> None:
        """Slurm's jobs go on."""

    def _adopted(self, job: Job) -> bool:
        """Keep a cell's job that an earlier driver submitted; False where there is none."""
        submitted = submitted_before(job, self._queue.names(), self._submitit.SlurmJob)
        if submitted is None:
            return False
        self._keep(job, submitted)
        return True

    def _keep(self, job: Job, submitted: Any) -> None:
        self._jobs[job.cell], self._submitted[job.cell], self._seen[job.cell] = job, submitted, time.monotonic()

    def _submit_array(self, group: list[Job]) -> None:
        """Submit cells that need the same and wait for the same, and write down which jobs they are."""
        folder = group[0].folder.parent / ".submitit"
        name = f"{_NAME}-{group[0].environment.get('LM_EVAL_SWEEP', '')}-{uuid.uuid4().hex[:12]}"
        with _refusals():
            executor = self._executor(folder, name, group[0])
        tasks: Iterable[int | None] = range(len(group)) if len(group) > 1 else (None,)  # one alone is no array
        records = [{"name": name, "task": task, "folder": str(folder)} for task in tasks]
        for job, record in zip(group, records):
            write_record(job.folder / RECORD, record)
        with _refusals(), executor.batch():
            submitted = [executor.submit(call, str(job.folder), json.dumps(dict(job.environment))) for job in group]
        for job, record, task in zip(group, records, submitted):
            write_record(job.folder / RECORD, {**record, "job_id": task.job_id})
            self._keep(job, task)
        self._queue.forget()

    def _executor(self, folder: Path, name: str, job: Job) -> Any:
        """Submitit's, for cells that need what this one needs."""
        before = [str(self._submitted[cell].job_id) for cell in job.after if cell in self._submitted]
        extra = {"no-requeue": True} | ({"dependency": f"afterany:{':'.join(before)}"} if before else {})
        assert job.timeout_s is not None
        # A negative number has submitit leave a job alone that Slurm preempts, where it would requeue it.
        executor = self._submitit.AutoExecutor(folder, self._cluster, slurm_max_num_timeout=-1)
        executor.update_parameters(
            name=name,
            timeout_min=math.ceil(job.timeout_s / 60) + _EXTRA_MINUTES,
            **{"gpus_per_node": job.gpus} if job.gpus else {},
            **self._options,
            slurm_additional_parameters=extra,
        )
        return executor


@contextmanager
def _refusals() -> Iterator[None]:
    """What Slurm and submitit refuse, as a sentence."""
    try:
        yield
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"Slurm takes no job: {reason}; run the sweep where sbatch works, or use --on local") from error


def _needs(job: Job) -> tuple[int, float, tuple[str, ...]]:
    return job.gpus, job.timeout_s or 0, job.after
