"""One end for all ranks: what ends one of them ends every other, and is told once.

A rank that fails claims a file in a folder that all see, tells its message, and marks it as told; a thread in each rank
looks for that file, and for ranks that are gone without one (killed). It ends its process wherever the main thread is,
in the middle of a collective operation too.

Launchers end the other processes by SIGTERM as soon as one is gone, often before these have noticed. A signal is
handled by the main thread only, and that may be waiting, so the thread hears of it by a file descriptor.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_EVERY_SECONDS = 0.1
_PATIENCE_SECONDS = 3.0
"""For another rank to tell what it claimed, or to claim what may be the cause of a failure here."""
_FIRST_RANK_SECONDS = 0.5
"""How long a failure is left to the first rank to tell."""
_SHARED_MISTAKE_SECONDS = 2.0
"""Likewise for a mistake of the user's, which all ranks make, on a busy machine not at once."""
_ENDING_SECONDS = 10.0
"""For a process that was told to end."""
_FAILURE, _TOLD = "failure.json", "told"
MACHINE = 1
"""The exit code where a rank was killed: no mistake of the user's."""


class Failure(NamedTuple):
    """What ends a rank: its text, told once; its exit code. cause: whether nothing of another rank can be behind it.
    shared: whether every rank makes it sooner or later.
    """

    text: str
    code: int
    cause: bool = True
    shared: bool = False


class RankWatch:
    """The watch of one rank. folder: seen by all ranks, empty at first. processes: their ids. tell: prints a text where
    the user sees it, from any rank.
    """

    def __init__(self, folder: Path, rank: int, processes: Sequence[int], tell: Callable[[str], None]) -> None:
        self._folder, self._rank, self._processes, self._tell = folder, rank, list(processes), tell
        self._ending = threading.Event()
        self._signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        # The handler itself has nothing to do: the byte in the pipe does it.
        self._before = signal.signal(signal.SIGTERM, lambda number, frame: None)
        self._wakeup_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._wakeup = wakeup
        threading.Thread(target=self._look, daemon=True, name="watch over ranks").start()

    def done(self) -> None:
        """This rank has nothing more to do: it may be gone without anything being wrong."""
        (self._folder / f"done-{self._rank}").touch()

    def all_done(self) -> bool:
        """Whether every rank has said so."""
        return all((self._folder / f"done-{rank}").exists() for rank in range(len(self._processes)))

    def stop(self) -> None:
        """All are done."""
        self._ending.set()
        signal.set_wakeup_fd(self._wakeup_before)
        signal.signal(signal.SIGTERM, self._before)
        os.close(self._wakeup)

    def end(self, failure: Failure) -> int:
        """This rank fails; returns the exit code that all end with, after the message is told. The process is ended if
        it does not end by itself.
        """
        self._ending.set()
        if self._rank:
            self._wait_for(self._first_ended, _SHARED_MISTAKE_SECONDS if failure.shared else _FIRST_RANK_SECONDS)
            if failure.text:
                failure = failure._replace(text=f"(rank {self._rank}) {failure.text}")
        if not failure.cause:
            self._wait_for(lambda: self._claimed() or self._gone() is not None, _PATIENCE_SECONDS)
            if (gone := self._gone()) is not None:
                failure = gone
        code = self._settle(failure)
        guard = threading.Timer(_ENDING_SECONDS, os._exit, (code,))
        guard.daemon = True
        guard.start()
        return code

    def _settle(self, failure: Failure) -> int:
        """Tell a failure, unless another rank tells one; the exit code of the one that is told."""
        try:
            handle = os.open(self._folder / _FAILURE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            self._wait_for((self._folder / _TOLD).exists, _PATIENCE_SECONDS)
            return self._code_of_all()
        except OSError:
            # The folder is gone, or its disk is full: better told twice than not at all.
            self._tell(failure.text)
            return failure.code
        os.write(handle, json.dumps({"code": failure.code}).encode())
        os.close(handle)
        if failure.text:
            self._tell(failure.text)
        with suppress(OSError):
            (self._folder / _TOLD).touch()
        return failure.code

    def _code_of_all(self) -> int:
        try:
            return int(json.loads((self._folder / _FAILURE).read_text(encoding="utf-8"))["code"])
        except (OSError, ValueError, KeyError):
            return MACHINE

    def _claimed(self) -> bool:
        return (self._folder / _FAILURE).exists()

    def _first_ended(self) -> bool:
        """Whether a failure is claimed, or the first rank can claim none any longer."""
        return self._claimed() or (self._folder / "done-0").exists() or not _alive(self._processes[0])

    def _gone(self) -> Failure | None:
        """A rank that is gone and never said that it was done, or failed."""
        if self._claimed():
            return None
        for rank, process in enumerate(self._processes):
            if rank == self._rank or _alive(process) or (self._folder / f"done-{rank}").exists():
                continue
            if not self._claimed():
                return Failure(
                    f"error: rank {rank} of {len(self._processes)} was ended from outside (killed, or out of memory):"
                    " what was complete is kept; the same command goes on from there",
                    MACHINE,
                    cause=False,
                )
        return None

    def _look(self) -> None:
        while not self._ending.is_set():
            heard = self._signal()
            if self._ending.is_set():
                return
            if self._claimed():
                self._leave(self._settle(Failure("", MACHINE)))
            elif (gone := self._gone()) is not None:
                self._leave(self._settle(gone))
            elif heard:
                self._after_signal(heard)

    def _signal(self) -> int:
        """Wait a little; the number of the signal that came meanwhile, or 0."""
        readable, _, _ = select.select([self._signals], [], [], _EVERY_SECONDS)
        heard = os.read(self._signals, 1) if readable else b""
        return heard[0] if heard else 0

    def _after_signal(self, number: int) -> None:
        """SIGTERM ends the process, Ctrl-C as well where the main thread does not; first whatever is behind it may be
        told. Any other signal is the main thread's.
        """
        if number not in (signal.SIGTERM, signal.SIGINT):
            return
        self._wait_for(lambda: self._claimed() or self._gone() is not None, 10 * _EVERY_SECONDS)
        if self._ending.is_set():
            return
        gone = self._gone()
        code = 128 + number
        if gone is not None or self._claimed():
            code = self._settle(gone or Failure("", MACHINE))
        self._leave(code)

    def _leave(self, code: int) -> None:
        """End this process, whatever its main thread waits for."""
        if not self._ending.is_set():
            os._exit(code)

    def _wait_for(self, happened: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not happened() and time.monotonic() < until:
            time.sleep(_EVERY_SECONDS / 4)


def _alive(process: int) -> bool:
    """Whether a process runs; one that is ended, and that nobody has asked about yet, does not."""
    import psutil

    try:
        return bool(psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
