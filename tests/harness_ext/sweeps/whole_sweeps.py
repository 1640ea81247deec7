"""Whole sweeps by the `local` engine as processes, what harms them while they run, and what they leave."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness_ext.sweeps.job_files import read_record
from leaderboard.board.board import board
from leaderboard.readers.sweep_life import process_start
from leaderboard.readers.sweep_state import JOB
from leaderboard.store.database import open_store

TASK, DOCUMENTS = "int_mult", 8
SWEEP = """
name: harmed
output_path: results
models: [{{pretrained: demo}}, {{pretrained: {model}}}]
tasks: [{task}]
recipes: [laser, halved.yaml]
controls: [random-subspace]
run: {{batch_size: 16, limit: {documents}, device: cpu}}
cells: {{recipes_per_cell: 2, retries: 5}}
"""
HALVED = "name: halved\nsteps: [{method: truncate_svd, matrices: [all], keep: {rank_fraction: 0.5}}]\n"
FAILING = HALVED.replace("matrices:", "layers: [99], matrices:")
"""Read without complaint, and refused by every model of fewer layers."""
LABELS = ("baseline", "laser", "laser+random-subspace", "halved", "halved+random-subspace")
DISK_BYTES = 24 * 2**20
"""Of the disk that is filled: the whole sweep takes a third of it."""
HARMS = ("driver", "worker", "cell", "recipe", "disk", "clock")
KILLS = HARMS[:3]
_MOST_STARTS = 60
_PATIENCE_SECONDS = 1800.0
_OF_THE_TIME = {
    *("started", "finished", "seconds", "speed", "files", "command", "date", "start_time", "end_time", "ran_on"),
    *("total_evaluation_time_seconds", "tokens_per_second_before", "tokens_per_second_after"),
    *("generated_tokens_per_second_before", "generated_tokens_per_second_after"),
}
_OF_THE_RUN = {"run_id", "baseline_run", "started"}


@dataclass
class WholeSweep:
    """A sweep in a folder of its own. starts: how its driver was started; happened: the harms that struck."""

    root: Path
    model: Path
    starts: list[str] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)
    driver: subprocess.Popen[bytes] | None = None

    @property
    def results(self) -> Path:
        return self.root / "results"

    def write(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "sweep.yaml").write_text(SWEEP.format(model=self.model, task=TASK, documents=DOCUMENTS))
        (self.root / "halved.yaml").write_text(HALVED)

    def command(self, action: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "harness_ext", "sweep", action, "sweep.yaml", *more]

    def start(self, action: str = "run") -> None:
        """Start the driver, as a user would after whatever happened."""
        assert len(self.starts) < _MOST_STARTS, f"started {_MOST_STARTS} times: {self.said()}"
        self.starts.append(action)
        with (self.root / "said").open("ab") as said:
            self.driver = subprocess.Popen(
                self.command(action, "--on", "local", "--jobs", "2"),
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def said(self) -> str:
        """What all drivers said."""
        return (self.root / "said").read_text(errors="replace")

    def is_done(self) -> bool:
        """Whether `status` says so."""
        told = subprocess.run(self.command("status"), cwd=self.root, capture_output=True, check=False)
        return told.returncode == 0

    def go_on(self) -> bool:
        """Start the driver again where it has ended and the sweep is not done; whether it is done."""
        if self.driver is None:
            self.start()
            return False
        code = self.driver.poll()
        if code is None:
            return False
        if code == 0:
            return True
        time.sleep(0.3)
        self.start("retry" if code == 1 else "run")  # 1: cells have failed for good
        return False

    def processes(self) -> tuple[list[int], list[int]]:
        """The workers that live, and the commands of cells."""
        workers = [
            job["pid"]
            for path in self.results.glob(f"sweeps/*/cells/*/{JOB}")
            if (job := read_record(path)) is not None and process_start(job["pid"]) == job["process_start"]
        ]
        commands: list[int] = []
        for worker in workers:
            with suppress(OSError):
                commands += map(int, Path(f"/proc/{worker}/task/{worker}/children").read_text().split())
        return workers, [process for process in commands if process_start(process) is not None]

    def end(self) -> None:
        """End what still runs of it."""
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        workers, commands = self.processes()
        for process in (*workers, *commands):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@dataclass
class Harm:
    """Something bad, from a moment on. at: seconds after the sweep's begin. lasts: seconds until it is mended."""

    kind: str
    at: float
    lasts: float = 0.0
    struck: bool = False
    mended: bool = False

    def look(self, sweep: WholeSweep, seconds: float, draw: random.Random) -> None:
        """Strike, or mend, where it is time to."""
        if not self.struck and seconds >= self.at:
            self.struck = self._strike(sweep, draw)
            if self.struck:
                sweep.happened.append(f"{self.kind} at {seconds:.1f} s")
        if self.struck and not self.mended and seconds >= self.at + self.lasts:
            self.mend(sweep)

    def _strike(self, sweep: WholeSweep, draw: random.Random) -> bool:
        """Whether it could: what is to be killed may not live yet."""
        if self.kind == "recipe":
            _replaced(sweep.root / "halved.yaml", FAILING)
        elif self.kind == "disk":
            _filled(sweep.results / "filler")
        elif self.kind == "clock":
            _skewed(sweep.results / "sweeps", draw)
        else:
            return _killed(sweep, self.kind, draw)
        return True

    def mend(self, sweep: WholeSweep) -> None:
        self.mended = True
        if self.kind == "recipe":
            _replaced(sweep.root / "halved.yaml", HALVED)
        elif self.kind == "disk":
            (sweep.results / "filler").unlink(missing_ok=True)


def _killed(sweep: WholeSweep, kind: str, draw: random.Random) -> bool:
    workers, commands = sweep.processes()
    if kind == "driver":
        chosen = sweep.driver
        if chosen is None or chosen.poll() is not None:
            return False
        chosen.kill()
        chosen.wait()
        return True
    alive = workers if kind == "worker" else commands
    if not alive:
        return False
    with suppress(ProcessLookupError):
        os.kill(draw.choice(alive), signal.SIGKILL)
        return True
    return False


def _replaced(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}")
    new.write_text(text)
    new.replace(path)


def _filled(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def _skewed(folder: Path, draw: random.Random) -> None:
    """Give every file of the sweep a time of a machine whose clock is days off."""
    days = draw.uniform(-10, 10)
    for path in folder.rglob("*"):
        with suppress(OSError):
            os.utime(path, (time.time() + 86_400 * days,) * 2)


def harms_of(seed: int, seconds: float, draw: random.Random) -> list[Harm]:
    """One of each kind in turn, and up to two kills more. seconds: that the sweep takes undisturbed."""
    kinds = [HARMS[seed % len(HARMS)], *draw.choices(KILLS, k=draw.randint(0, 2))]
    harms = [Harm(kind, draw.uniform(0.03, 0.8) * seconds, draw.uniform(0.1, 0.4) * seconds) for kind in kinds]
    return harms + [Harm("clock", draw.uniform(0.03, 0.9) * seconds) for _ in range(3 * (kinds[0] == "clock"))]


def drive(sweep: WholeSweep, harms: list[Harm], draw: random.Random) -> float:
    """Run a sweep until its driver ends well, whatever harms it; the seconds that it took."""
    begun = time.monotonic()
    before: dict[Path, int] = {}
    while not sweep.go_on():
        seconds = time.monotonic() - begun
        assert seconds < _PATIENCE_SECONDS, f"not done: {sweep.said()}"
        for harm in harms:
            harm.look(sweep, seconds, draw)
        now = whole_runs(sweep.results)
        assert before.items() <= now.items(), "a whole run was lost or written again"
        before = now
        time.sleep(0.05)
    return time.monotonic() - begun


def whole_runs(results: Path) -> dict[Path, int]:
    """The run folders that stand, and when their receipts were written."""
    found = {}
    for path in results.glob("*/[!.]*/receipt.json"):
        with suppress(OSError):
            found[path.parent] = path.stat().st_ino
    return found


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of a few MiB at a folder; False where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def left_by(results: Path) -> dict[str, Any]:
    """By model and recipe, what its run folder holds, apart from times and hosts: each is there once and whole."""
    found: dict[str, Any] = {}
    for path in results.glob("*/*/receipt.json"):
        receipt = json.loads(path.read_text())
        for file in receipt["files"]:
            told = hashlib.sha256((path.parent / file["name"]).read_bytes()).hexdigest()
            assert told == file["sha256"], f"{path.parent / file['name']} is not what its receipt says"
        (scores,), (samples,) = path.parent.glob("results_*.json"), path.parent.glob("samples_*.jsonl")
        key = f"{receipt['model']['name']} {receipt['recipe']['label']}"
        assert key not in found, f"{key} is there twice"
        found[key] = (_timeless(receipt), _timeless(json.loads(scores.read_text())), samples.read_text())
    assert not list(results.glob("*/.*")), "something half-written was left"
    return found


def _timeless(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _timeless(value) for key, value in data.items() if key not in _OF_THE_TIME}
    return [_timeless(value) for value in data] if isinstance(data, list) else data


def board_of(results: Path) -> list[dict[str, Any]]:
    """The board's cells apart from the names of runs and times, and how many rows the tables have."""
    with open_store(results / "leaderboard.duckdb", read_only=True, timeout_s=60) as store:
        cells = [_nameless(dataclasses.asdict(cell)) for cell in board(store)]
        tables = ("runs", "receipts", "run_tasks", "scores", "samples", "sample_scores")
        rows = {name: store.rows(f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in tables}
    return [*sorted(cells, key=lambda cell: (cell["model"], cell["recipe"], cell["metric"])), rows]


def _nameless(cell: Any) -> Any:
    if isinstance(cell, dict):
        return {key: _nameless(value) for key, value in cell.items() if key not in _OF_THE_RUN}
    return [_nameless(value) for value in cell] if isinstance(cell, list | tuple) else cell
