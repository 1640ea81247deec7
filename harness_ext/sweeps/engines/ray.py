"""Cells as tasks of Ray Core, on this machine or on a Ray cluster (extra `[ray]`).

Notable choices:
- The cluster of `RAY_ADDRESS`, or the one that runs on this machine; else one is started for as long as the driver
  lives. Ray ends the tasks of a driver that dies, and the next driver runs those cells again.
- Ray never runs a cell again by itself; the driver decides that, from what the worker left.
- Ray pickles the function that it runs with its arguments and its result: `ray_task` has a plain function of texts.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from harness_ext.errors import UserError
from harness_ext.storage.whole_files import write_whole
from harness_ext.sweeps.engines.base import Job, imported, prepare, ready
from harness_ext.sweeps.engines.ray_task import RECORDS, work
from leaderboard.readers.sweep_state import ASKED

_THREADS = "OMP_NUM_THREADS"


class RayEngine:
    """jobs: how many cells run at once; None leaves it to Ray, a CPU and its GPUs a cell.

    Raises UserError where Ray is not installed or cannot be started.
    """

    def __init__(self, jobs: int | None = None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported
        ray = imported("ray", "ray")
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                reason = str(error).partition("\n")[0]
                raise UserError(
                    f"Ray does not start: {reason}; mend RAY_ADDRESS or unset it, or use --on local"
                ) from error
        self._most = jobs
        machines = [machine["Resources"].get("GPU", 0) for machine in ray.nodes() if machine["Alive"]]
        self._gpus = int(max(machines, default=0))
        self._waiting: dict[str, Job] = {}
        self._running: dict[str, tuple[Job, Any]] = {}

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs. Raises UserError for one that needs more GPUs than any machine of the cluster has."""
        for job in jobs:
            if job.gpus > max(self._gpus, 1):
                raise UserError(
                    f"cell {job.cell} needs {job.gpus} GPUs and no machine of the Ray cluster has more than"
                    f" {self._gpus}: lower `gpus` of its model"
                )
        for job in jobs:
            if job.cell not in self._running:
                prepare(job)
                self._waiting[job.cell] = job
        self._start_ready()

    def alive(self) -> set[str]:
        """The cells that wait or run; the records of those that are over are in their folders when this returns."""
        references = [reference for _, reference in self._running.values()]
        over, _ = self._ray.wait(references, num_returns=len(references), timeout=0) if references else ([], [])
        for cell, (job, reference) in list(self._running.items()):
            if reference in over:
                del self._running[cell]
                self._take_records(job, reference)
        self._start_ready()
        return {*self._waiting, *self._running}

    def cancel(self, cells: Iterable[str]) -> None:
        """Take cells out of the queue, and have Ray kill those that run; their workers end with them."""
        for cell in cells:
            self._waiting.pop(cell, None)
            if cell in self._running:
                self._ray.cancel(self._running[cell][1], force=True)

    def close(self) -> None:
        """Leave Ray, which ends what this driver has running."""
        self._waiting.clear()
        self._running.clear()
        self._ray.shutdown()

    def _start_ready(self) -> None:
        for job in ready(self._waiting.values(), self._running):
            if self._most is not None and len(self._running) >= self._most:
                return
            del self._waiting[job.cell]
            gpus = job.gpus if self._gpus else 0
            task = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, max_calls=1)(work)
            asked = (job.folder / ASKED).read_text(encoding="utf-8")
            # Ray sets it to 1, which would give other sums than the same command does by itself.
            environment = {_THREADS: os.environ.get(_THREADS), **job.environment}
            self._running[job.cell] = job, task.remote(str(job.folder), asked, json.dumps(environment))

    def _take_records(self, job: Job, reference: Any) -> None:
        """Write the records of a machine that does not see the folder; where the task was killed there are none."""
        try:
            records = json.loads(self._ray.get(reference))
        except self._ray.exceptions.RayError:
            return
        for name in RECORDS:
            if name in records:
                write_whole(job.folder / name, records[name])
