"""Cells as plain processes of this machine, each with GPUs of its own.

Workers live in sessions of their own and go on when the driver dies; the next driver finds them by what they left in
their folders (host, process, when that started). Without GPUs a number of slots is shared, one unless told otherwise.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from harness_ext.errors import UserError
from harness_ext.sweeps.engines.base import Job, prepare, ready
from harness_ext.sweeps.job_files import Heartbeats, living_job, living_process, read_record
from harness_ext.sweeps.visible_gpus import DEVICES, visible_gpus
from harness_ext.sweeps.worker import start
from leaderboard.readers.sweep_life import host
from leaderboard.readers.sweep_state import JOB

_ENDING_SECONDS = 30.0
"""How long a worker may take to end after its last record."""
_LEFT_RUNNING: list[subprocess.Popen[bytes]] = []
# Python warns of a child that runs on when nothing refers to it any more.


class LocalEngine:
    """jobs: how many cells run at once; None is one a GPU, or one where there is none. gpus: as in
    `CUDA_VISIBLE_DEVICES`; None asks the machine.
    """

    def __init__(self, jobs: int | None = None, gpus: Sequence[str] | None = None) -> None:
        self._gpus = list(visible_gpus() if gpus is None else gpus)
        self._slots = jobs or max(len(self._gpus), 1)
        self._waiting: dict[str, Job] = {}
        self._running: dict[str, Job] = {}
        self._devices: dict[str, set[str]] = {}  # of the cells that run on this machine
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._heartbeats = Heartbeats()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs and start as many as there is room for. Raises UserError for one that needs more GPUs than there
        are.
        """
        for job in jobs:
            if job.gpus > max(len(self._gpus), 1):
                raise UserError(
                    f"cell {job.cell} needs {job.gpus} GPUs and {host()} has {len(self._gpus)}: lower `gpus` of its"
                    " model, or use --on slurm or --on ray"
                )
        for job in jobs:
            self._await_the_end(job)
            if self._lives(job):
                self._running[job.cell] = job
                if (record := living_job(job.folder)) is not None:  # one elsewhere takes nothing from this machine
                    self._devices[job.cell] = set((record.get("devices") or "").split(","))
            else:
                prepare(job)
                self._waiting[job.cell] = job
        self._start_ready()

    def alive(self) -> set[str]:
        """The cells that wait or run; those for which there is room now are started."""
        for cell, job in list(self._running.items()):
            if not self._lives(job):
                del self._running[cell]
                self._devices.pop(cell, None)
        self._start_ready()
        return {*self._waiting, *self._running}

    def cancel(self, cells: Iterable[str]) -> None:
        """End the workers of these cells, which end their commands."""
        for cell in cells:
            self._waiting.pop(cell, None)
            job = self._running.get(cell)
            if job is None or not self._lives(job):
                continue
            worker = self._workers.get(cell)
            process = worker.pid if worker is not None else living_process(job.folder)
            if process is not None:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)

    def close(self) -> None:
        """Workers go on, and are this process's children until it ends."""
        self._waiting.clear()
        _LEFT_RUNNING.extend(self._workers.values())

    def _await_the_end(self, job: Job) -> None:
        """Wait for the worker of a try that is settled: its records are put away, and it is about to end."""
        worker = self._workers.get(job.cell)
        if worker is not None and not (job.folder / JOB).exists():
            with suppress(subprocess.TimeoutExpired):
                worker.wait(_ENDING_SECONDS)

    def _lives(self, job: Job) -> bool:
        worker = self._workers.get(job.cell)
        if worker is not None and worker.poll() is None:
            return True
        record = read_record(job.folder / JOB)
        if record is not None and record.get("host") != host():
            return self._heartbeats.alive(job.folder, time.monotonic())
        return living_process(job.folder) is not None

    def _start_ready(self) -> None:
        for job in ready(self._waiting.values(), self._running):
            busy = set().union(*self._devices.values())
            free = [name for name in self._gpus if name not in busy]
            gpus = job.gpus if self._gpus else 0
            if len(self._devices) >= self._slots or len(free) < gpus:
                return  # in order, so that a large one is not passed over for ever
            devices = free[:gpus]
            environment = {**job.environment, **({DEVICES: ",".join(devices)} if self._gpus else {})}
            del self._waiting[job.cell]
            self._running[job.cell], self._devices[job.cell] = job, set(devices)
            self._workers[job.cell] = start(job.folder, environment)
