"""`python -m harness_ext.sweeps.worker FOLDER`: run one job, wherever an engine put it, and leave what became of it.

Notable choices:
- The command has a process group of its own, killed whole on a timeout, on SIGTERM, and when the command has ended:
  what it left behind would hold the GPU.
- The command dies with the worker (Linux), so that a job taken for dead is not running.
- What ends a command from outside (a signal: out of memory, a machine going down) is the machine's; an exit code of its
  own is the command's.
- Values of secrets in the environment become `***` in the output that is kept.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from harness_ext.storage.whole_files import write_record, write_whole
from harness_ext.sweeps.bounded_log import BoundedLog
from harness_ext.sweeps.job_files import BEAT_SECONDS, HOLDER, NOT_BEGUN, now, read_record
from leaderboard.readers.secrets import secret_values
from leaderboard.readers.sweep_life import host, process_start
from leaderboard.readers.sweep_state import ASKED, ENDED, HEARTBEAT, JOB, OUTPUT

GRACE_SECONDS = 10.0
"""How long a command has between SIGTERM and SIGKILL."""
WITH_PARENT = "--with-parent"
"""End with the process that started the worker, whose number follows: for engines whose processes are killed without
further ado.
"""
_TAKEN = 3
_OF_A_LAUNCHER = frozenset({"WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_PORT"})
"""What accelerate and torchrun tell their processes: a cell is none of those that started the sweep."""
_STEP_SECONDS = 0.2
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def start(folder: Path, environment: Mapping[str, str | None], *, with_parent: bool = False) -> subprocess.Popen[bytes]:
    """Start a worker on a folder in a session of its own. environment: added to this process's; None takes one away."""
    words = [sys.executable, "-m", "harness_ext.sweeps.worker", str(folder)]
    words += [WITH_PARENT, str(os.getpid())] if with_parent else []
    with (folder / OUTPUT).open("ab") as early:  # a worker that cannot even begin says why there
        return subprocess.Popen(
            words,
            env={name: value for name, value in {**os.environ, **environment}.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=early,
            stderr=early,
            start_new_session=True,
        )


def call(folder: str, environment: str) -> int:
    """Run the worker on a folder and wait for it; its exit code. environment: JSON of variables to add; null takes
    one away.

    A plain function of texts: Ray and submitit pickle the function that they run and its arguments, and texts are all
    that is ever in there.
    """
    with start(Path(folder), json.loads(environment), with_parent=True) as worker:
        try:
            return worker.wait()
        except BaseException:
            worker.terminate()
            worker.wait()
            raise


def main() -> None:
    """Run the job of the folder that is named on the command line."""
    folder = Path(sys.argv[1])
    if sys.argv[2:3] == [WITH_PARENT]:
        die_with_parent(signal.SIGTERM, int(sys.argv[3]))()
    with (folder / HOLDER).open("a") as lock:
        with suppress(OSError):  # a file system without locks: then engines alone see to it
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sys.exit(_TAKEN)
        asked = read_record(folder / ASKED)
        if asked is None:
            sys.exit(f"error: {folder / ASKED} is missing or cannot be read")
        sys.exit(_Run(folder, asked, lock).run())


def die_with_parent(number: signal.Signals, parent: int) -> Callable[[], None]:
    """What a new process of this parent calls to get a signal when that is gone, or at once where it is gone already;
    nothing where the system has no such thing.
    """
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return lambda: None

    def called() -> None:
        prctl(_SET_PARENT_DEATH_SIGNAL, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)

    return called


class _Run:
    """One command from its start to its record. asked: `cell`, `command`, `timeout_s`. holder: the file that is locked
    meanwhile.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], holder: IO[str]) -> None:
        self._folder = folder
        self._holder = holder
        self._asked = asked
        self._log = BoundedLog(folder / OUTPUT, secret_values(dict(os.environ)))
        self._stopped = threading.Event()
        self._beats = 0
        self._begun = time.monotonic()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):  # Slurm's, of submitit's choice
            signal.signal(number, lambda *_: self._stopped.set())
        with suppress(OSError):
            (self._folder / ENDED).unlink(missing_ok=True)
            self._holder.truncate(0)
            self._holder.write(json.dumps(self._job()))
            self._holder.flush()
        self._beat()
        self._record(JOB, self._job())
        if (after := self._asked.get("after")) and self._is_in_vain(after):
            return self._ended(0, NOT_BEGUN)
        try:
            process = self._started()
        except OSError as error:
            self._log.write(f"error: {self._asked['command'][0]} cannot be run: {error.strerror}\n".encode())
            return self._ended(127, "command")
        reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        reader.start()
        reason = self._watched(process)
        _kill_group(process.pid)
        reader.join(timeout=GRACE_SECONDS)
        return self._ended(process.returncode, reason)

    def _is_in_vain(self, after: Sequence[str]) -> bool:
        """Whether a cell that this one waited for has ended without being done: the queue of a cluster starts it all
        the same. after: keys of cells.
        """
        from harness_ext.sweeps.outcome import has_failed

        return any(has_failed(self._folder.parent / key) for key in after)

    def _job(self) -> dict[str, Any]:
        return {
            "cell": self._asked["cell"],
            "command": self._asked["command"],
            "host": host(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "begun": now(),
        }

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._asked["command"],
            env={name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCHER},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL, os.getpid()),  # noqa: PLW1509 - no thread runs yet
        )

    def _read(self, pipe: IO[bytes]) -> None:
        """Take what the command prints, however much, so that it never waits."""
        while block := os.read(pipe.fileno(), 1 << 16):
            self._log.write(block)

    def _watched(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for the command's end, or end it; the reason in a word."""
        timeout_s = self._asked.get("timeout_s")
        due = BEAT_SECONDS
        while True:
            with suppress(subprocess.TimeoutExpired):
                returned = process.wait(_STEP_SECONDS)
                return "machine" if returned < 0 or (returned > 0 and self._stopped.is_set()) else "command"
            seconds = time.monotonic() - self._begun
            if seconds >= due:
                self._beat()
                due = seconds + BEAT_SECONDS
            if self._stopped.is_set() or (timeout_s is not None and seconds > timeout_s):
                _end(process)
                return "machine" if self._stopped.is_set() else "timeout"

    def _beat(self) -> None:
        self._beats += 1
        with suppress(OSError):
            if self._beats > 1 and not (self._folder / JOB).exists():
                # A driver that began again in the moment before the record was there has made the folder ready anew.
                self._record(JOB, self._job())
            write_whole(self._folder / HEARTBEAT, f"{self._beats}\n")

    def _record(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a record; where the disk is full, into the room that the output takes. Raises OSError."""
        try:
            write_record(self._folder / name, record)
        except OSError:
            self._log.empty()
            write_record(self._folder / name, record)

    def _ended(self, returned: int, reason: str) -> int:
        self._log.close()
        with suppress(OSError):  # so that a worker of the next try finds it free, however long this one takes to go
            self._holder.truncate(0)
            fcntl.flock(self._holder, fcntl.LOCK_UN)
        ended = {
            "cell": self._asked["cell"],
            "try": uuid.uuid4().hex,
            "exit_code": returned if returned >= 0 else None,
            "signal": signal.Signals(-returned).name if returned < 0 else None,
            "reason": reason,
            "host": host(),
            "seconds": round(time.monotonic() - self._begun, 3),
            "when": now(),
        }
        self._record(ENDED, ended)
        return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the group of a command to end, and kill it where it does not."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    _kill_group(process.pid)
    process.wait()


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
