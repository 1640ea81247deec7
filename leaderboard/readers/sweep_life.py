"""Whether the driver and the workers of a sweep live, for whoever looks: `sweep status`, the page, and a new driver.

No clock of another machine is relied on. Where a record is of this machine, its process tells; of another one, whether
its heartbeat counts on while one looks.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 30.0
"""How long a heartbeat of another machine is watched before its owner is taken for dead."""
_LARGEST = 2**16


def host() -> str:
    """This machine's name."""
    return platform.node()


def process_start(process: int) -> str | None:
    """What tells a process from a later one of the same number: the machine's boot and when it started after that; None
    where there is no such process.
    """
    try:
        # The name in brackets may hold blanks and brackets itself; field 22 is the 20th after it, field 3 the state.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_by_ps(process)
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def lives_here(record: Mapping[str, Any]) -> bool | None:
    """Whether the process lives that a record names by host, pid and process_start; None where it is not of this
    machine, or of an earlier boot of it.
    """
    own, its, process = process_start(os.getpid()) or "", str(record.get("process_start") or ""), record.get("pid")
    # Machines, or containers, may share a name: by their boot they are told apart.
    if record.get("host") != host() or not isinstance(process, int) or _boot(own) != _boot(its):
        return None
    return process_start(process) == its


class HeartbeatWatch:
    """Which files of other machines are written on, as far as looks at them have told. patience_s: seconds without
    news after which the writer of one is taken for dead. undecided: files of which the last look at them did not tell.
    """

    def __init__(self, patience_s: float = PATIENCE_SECONDS) -> None:
        self.patience_s = patience_s
        self._seen: dict[Path, tuple[bytes, float, bool]] = {}
        self.undecided: set[Path] = set()

    def beats(self, path: Path, clock: float | None = None) -> bool | None:
        """Whether a file is written on; None while that is not known yet. clock: seconds of a monotonic clock, now."""
        found = self._look(path, time.monotonic() if clock is None else clock)
        (self.undecided.add if found is None else self.undecided.discard)(path)
        return found

    def _look(self, path: Path, clock: float) -> bool | None:
        content = _head(path)
        last, since, beaten = self._seen.setdefault(path, (content, clock, False))
        if content != last:
            self._seen[path] = (content, clock, True)
            return True
        if clock - since >= self.patience_s:
            return False
        return beaten or None


def _boot(start: str) -> str:
    return start.rpartition(":")[0]


def _start_by_ps(process: int) -> str | None:
    """Where there is no /proc. The answer is in whole seconds."""
    told = subprocess.run(["ps", "-o", "lstart=", "-p", str(process)], capture_output=True, text=True, check=False)
    return told.stdout.strip() or None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except OSError:
        return b""
