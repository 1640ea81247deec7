"""Who drives a sweep: one driver at a time, on whatever machine sees the folder.

No lock of a file system is relied on, and no clock of another machine: a claim is a file that only one can create, and
its owner counts in it. Where the owner is of this machine, its process tells whether it lives; of another one, whether
it counts on while one looks. A claim whose owner is dead is never taken away, which two could do one after the other,
the second from the first: it is followed, by a file that bears the dead claim's token and that again only one can
create.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from harness_ext.errors import UserError
from harness_ext.storage.whole_files import write_record
from harness_ext.sweeps.job_files import now, read_record
from leaderboard.readers.sweep_life import PATIENCE_SECONDS, host, lives_here, process_start
from leaderboard.readers.sweep_state import DRIVER

BEAT_SECONDS = 2.0
_TRIES = 20


class DriverClaim:
    """This process's claim on a sweep's folder. `lost` is set where another driver has taken it over, which it does
    where this one seemed dead, stopped for minutes, say.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / DRIVER
        self._token = uuid.uuid4().hex
        self._count = 0
        self._following: Path | None = None
        self._ended = threading.Event()
        self.lost = threading.Event()

    def record(self) -> dict[str, object]:
        """What the file says."""
        pid = os.getpid()
        own = {"host": host(), "pid": pid, "process_start": process_start(pid), "token": self._token}
        return {**own, "count": self._count, "since": now()}

    def create(self) -> bool:
        """Make the file; False where there is one."""
        return self._made(self._path)

    def follow(self, found: Mapping[str, object], owner: Mapping[str, object]) -> bool:
        """Take the place of a dead claim; False where somebody was quicker. found: what the file says; owner: the last
        of those who followed each other from there.
        """
        following = _following(self._path, owner)
        if not self._made(following):
            return False
        if (read_record(self._path) or {}).get("token") != found.get("token"):
            following.unlink()
            return False
        self._following = following
        write_record(self._path, self.record())
        return True

    def _made(self, path: Path) -> bool:
        new = self._path.with_name(f".{DRIVER}.{self._token}")
        try:
            write_record(new, self.record())
            os.link(new, path)  # fails where the name is taken, on network file systems too
        except FileExistsError:
            return False
        except OSError as error:
            raise UserError(f"{path.parent} cannot be written: {error.strerror or error}") from None
        finally:
            with suppress(OSError):
                new.unlink()
        return True

    def beat(self) -> None:
        """Count on until `end`, and notice where the claim is somebody else's."""
        while not self._ended.wait(BEAT_SECONDS):
            found = read_record(self._path)
            if found is not None and found.get("token") != self._token:
                self.lost.set()
                return
            self._count += 1
            with suppress(OSError):
                write_record(self._path, self.record())

    def end(self) -> None:
        """Give the claim up."""
        self._ended.set()
        if (read_record(self._path) or {}).get("token") == self._token:
            with suppress(OSError):
                self._path.unlink()
        if self._following is not None:
            with suppress(OSError):
                self._following.unlink()


@contextmanager
def claimed(folder: Path, patience_s: float = PATIENCE_SECONDS) -> Iterator[DriverClaim]:
    """Hold the claim on a sweep's folder. Raises UserError where another driver lives, naming it."""
    claim = DriverClaim(folder)
    _take(claim, folder, patience_s)
    beating = threading.Thread(target=claim.beat, daemon=True)
    beating.start()
    try:
        yield claim
    finally:
        claim._ended.set()
        beating.join()
        claim.end()


def _take(claim: DriverClaim, folder: Path, patience_s: float) -> None:
    path = folder / DRIVER
    for _ in range(_TRIES):
        if claim.create():
            return
        found = read_record(path)
        if found is None and not path.exists():
            continue
        owner, place = found or {}, path
        while (follower := read_record(_following(path, owner))) is not None:
            owner, place = follower, _following(path, owner)
        if owner and _lives(place, owner, patience_s):
            raise UserError(
                f"{folder} is driven already, by process {owner.get('pid')} on {owner.get('host')}: `lm_eval sweep"
                " status` shows how far it is; end that one first to drive from here"
            )
        if claim.follow(found or {}, owner):
            return
    raise UserError(f"{path} cannot be taken over: several drivers try at once; start one of them again")


def _following(path: Path, owner: Mapping[str, object]) -> Path:
    """The file of whoever takes the place of this owner. One that cannot be read has no token."""
    token = str(owner.get("token"))
    return path.with_name(f".{DRIVER}.after.{token if token.isalnum() else 'none'}")


def _lives(path: Path, owner: dict[str, object], patience_s: float) -> bool:
    """Whether the owner of a claim is alive."""
    if (here := lives_here(owner)) is not None:
        return here
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_SECONDS / 4, patience_s / 4))
        found = read_record(path)
        if found is None:
            return False
        if (found.get("token"), found.get("count")) != (owner.get("token"), owner.get("count")):
            return True
    return False
