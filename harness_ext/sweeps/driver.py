"""The driver of a sweep: hands cells to an engine, settles those that ended, and takes their runs into the database.

Folders are the only state. The driver can die at any point and be started again anywhere that sees them: cells go on
meanwhile, living ones are adopted, and what ended is settled from what it left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from harness_ext.errors import UserError
from harness_ext.storage.disk import is_of_the_disk
from harness_ext.storage.rundir import safe_name
from harness_ext.sweeps import outcome
from harness_ext.sweeps.cells import SweepCell, is_of_now, job
from harness_ext.sweeps.claim import DriverClaim, claimed
from harness_ext.sweeps.engines import SweepEngine
from harness_ext.sweeps.plan import SweepPlan
from leaderboard.readers.sweep_state import ENDED, JOB, MANIFEST, OUTCOME

POLL_SECONDS = 0.5
INGEST_SECONDS = 20.0
"""How long finished cells are gathered before they are taken into the database together."""
_LAST_WORD_SECONDS = 5.0
"""How long the last record of a worker that is gone may take through a network's file system."""

Say = Callable[[str], None]
Done = TypeVar("Done")


@dataclass
class Driver:
    """One driver's work. say: told a line of news. ingest: takes run folders into the database and says whether it
    could; called again with them where not. first: what is to be done before anything else, once no other drives.
    holds: whether it keeps a cell to itself until those that it waits for are done. The queue of a cluster, which
    outlives a driver, is given all at once; there the worker of such a cell looks whether they are.
    """

    plan: SweepPlan
    engine: SweepEngine
    say: Say
    ingest: Callable[[Sequence[Path]], bool]
    first: Callable[[], object] = lambda: None
    holds: bool = True
    _cells: dict[str, SweepCell] = field(default_factory=dict)
    _held: dict[str, SweepCell] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)
    _gone: dict[str, float] = field(default_factory=dict)
    _pending: list[Path] = field(default_factory=list)
    _ingested: float = 0.0

    def run(self) -> bool:
        """Run every cell that is not settled; whether all cells are done. Raises UserError, also where another driver
        lives.
        """
        self.plan.make_folder()
        with claimed(self.plan.folder) as claim:
            self.plan.write()
            self.first()
            try:
                self._drive(claim)
            except KeyboardInterrupt:
                self.say(
                    "cells that run go on by themselves; the same command drives them on, `sweep status` shows them"
                )
                raise
            finally:
                self.engine.close()
            self._take_in(at_last=True)
        return all(self.plan.settled(cell) == "done" for cell in self.plan.cells)

    def _drive(self, claim: DriverClaim) -> None:
        self._told(self._undo_harmed)
        settled = {cell.key: self.plan.settled(cell) for cell in self.plan.cells}
        self._failed = {key for key, state in settled.items() if state == "failed"}
        self._cells = {cell.key: cell for cell in self.plan.cells if settled[cell.key] is None}
        done = len(self.plan.cells) - len(self._cells)
        self.say(f"{len(self.plan.cells)} cells, {done} settled before; their files are in {self.plan.folder}")
        # What an earlier driver did not live to take in may be in the database already, which ingest finds out.
        self._pending = [path for cell in self.plan.cells if cell.key not in self._cells for path in self._runs(cell)]
        for cell in list(self._cells.values()):
            self._settle_ended(cell)
        for cell in list(self._cells.values()):
            if self._waits(cell):
                self._held[cell.key] = self._cells.pop(cell.key)
        self._submit([*self._cells.values(), *self._released()])
        while self._cells:
            if claim.lost.is_set():
                raise UserError(
                    f"another driver has taken {self.plan.folder} over, since this one gave no sign of life; its cells"
                    " go on"
                )
            self._look()
            self._take_in()
            if self._cells:
                time.sleep(POLL_SECONDS)

    def _undo_harmed(self) -> None:
        """Have cells run again whose run folders do not stand any more."""
        for cell in self.plan.cells:
            if why := self.plan.harm(cell):
                outcome.undo(self.plan.place(cell), why)
                self.say(f"{cell.key}: is run again, since {why}")

    def _look(self) -> None:
        """Settle what ended since the last look, and submit again what is to be tried again."""
        alive = self.engine.alive()
        again = []
        for cell in list(self._cells.values()):
            if cell.key not in self._cells:  # dropped with its baseline
                continue
            if self._settle_ended(cell):
                if cell.key in self._cells:
                    again.append(cell)
            elif cell.key not in alive and self._is_gone(cell.key):
                self._settle(cell)
                if cell.key in self._cells:
                    again.append(cell)
        self._submit([*again, *self._released()])

    def _waits(self, cell: SweepCell) -> bool:
        """Whether a cell is not to be handed over yet. One that has begun is: it may live."""
        others = set(cell.after)
        waits = bool(others & self._failed) or (self.holds and bool(others & self._cells.keys()))
        return waits and not (self.plan.place(cell) / JOB).exists()

    def _released(self) -> list[SweepCell]:
        """Cells to be handed over, since what they wait for is done; those for which it failed are dropped."""
        free = [cell for cell in self._held.values() if not self._cells.keys() & set(cell.after)]
        for cell in free:
            del self._held[cell.key]
        released = [cell for cell in free if not self._failed.intersection(cell.after)]
        self._cells |= {cell.key: cell for cell in released}
        return released

    def _drop_dependents(self, failed: SweepCell) -> str:
        """Have nothing begin that waits for a cell that failed for good; the words that tell of it."""
        self._failed.add(failed.key)
        queued = [cell for cell in self._cells.values() if failed.key in cell.after and self._waits(cell)]
        if queued:
            self.engine.cancel([cell.key for cell in queued])
        for cell in queued:
            del self._cells[cell.key]
        count = len(queued) + sum(failed.key in cell.after for cell in self._held.values())
        waiting = "1 cell that waits for it is" if count == 1 else f"{count} cells that wait for it are"
        return f"; {waiting} not run" if count else ""

    def _settle_ended(self, cell: SweepCell) -> bool:
        """Settle a cell that has left its last record; whether it had."""
        if not (self.plan.place(cell) / ENDED).exists():
            return False
        self._settle(cell)
        return True

    def _settle(self, cell: SweepCell) -> None:
        """Record how a cell's try ended; it stays among the cells where it is to be tried again."""
        place = self.plan.place(cell)
        home = self.plan.results / safe_name(cell.model)
        found = self._told(lambda: outcome.brought_home(outcome.ending(place), home))
        changed = found.begun and not found.why and not is_of_now(cell, self.plan.sweep)
        if found.begun and not changed:
            state = self._told(lambda: outcome.settle(place, found, self.plan.sweep.cells.retries))
        for name in (ENDED, JOB):  # settled once
            with suppress(FileNotFoundError):
                (place / name).unlink()
        self._gone.pop(cell.key, None)
        if not found.begun:
            self._held[cell.key] = self._cells.pop(cell.key)
            return
        if changed:
            why = "its model, tasks or recipe files have changed since it was planned"
            self._told(lambda: outcome.undo(place, f"{why}: start `lm_eval sweep run` again"))
            del self._cells[cell.key]
            self.say(
                f"{cell.key}: ended, but {why}: start the same command again, which keeps what still"
                f" fits{self._drop_dependents(cell)}"
            )
            return
        self._pending += self._runs(cell)
        where = f" on {found.host}" if found.host else ""
        took = f" in {found.seconds:.1f} s" if found.seconds is not None else ""
        if state == "done":
            self.say(f"{cell.key}: done{where}{took}")
        elif state == "failed":
            self.say(f"{cell.key}: failed{where}: {found.why}{self._drop_dependents(cell)}")
        else:
            self.say(f"{cell.key}: to be tried again, since {found.why}")
        if state != "waiting":
            del self._cells[cell.key]

    def _runs(self, cell: SweepCell) -> list[Path]:
        return outcome.run_folders(self.plan.place(cell), self.plan.results)

    def _is_gone(self, key: str) -> bool:
        """Whether a cell that no engine knows of has been without a word for long enough."""
        since = self._gone.setdefault(key, time.monotonic())
        return time.monotonic() - since > _LAST_WORD_SECONDS

    def _submit(self, cells: Collection[SweepCell]) -> None:
        jobs = []
        for cell in cells:
            if cell.key not in self._cells:
                continue
            place = self.plan.place(cell)
            if not (place / JOB).exists():
                with suppress(OSError):
                    (place / MANIFEST).unlink(missing_ok=True)
            after = tuple(key for key in cell.after if key in self._cells or key in self._failed)
            made = job(cell, self.plan.sweep, self.plan.folder.resolve(), self.plan.output)
            jobs.append(type(made)(**{**vars(made), "after": after}))
        if jobs:
            self._told(lambda: self.engine.submit(jobs))

    def _told(self, work: Callable[[], Done]) -> Done:
        """Do what writes into the sweep's folder; a full disk is waited for no longer than the user likes."""
        try:
            return work()
        except OSError as error:
            if not is_of_the_disk(error):
                raise
            raise UserError(
                f"{self.plan.folder} cannot be written: {error.strerror}; cells that run go on: make room, and start"
                " the same command again"
            ) from error

    def _take_in(self, *, at_last: bool = False) -> None:
        """Put the runs of settled cells into the database, some at a time."""
        if not self._pending or (not at_last and time.monotonic() - self._ingested < INGEST_SECONDS):
            return
        self._ingested = time.monotonic()
        if self.ingest(list(dict.fromkeys(self._pending))):
            self._pending = []


def to_be_retried(plan: SweepPlan, keys: Sequence[str]) -> list[SweepCell]:
    """The failed cells: those named (by their key or how it begins), else all. Nothing is written.

    Raises UserError for a name that fits no failed cell.
    """
    failed = [cell for cell in plan.cells if plan.settled(cell) == "failed"]
    chosen: list[SweepCell] = []
    for key in keys:
        fitting = [cell for cell in failed if cell.key.startswith(key)]
        if not fitting:
            raise UserError(f"{_why_not_again(plan, key, failed)}; `lm_eval sweep status` lists the cells")
        chosen += fitting
    return list(dict.fromkeys(chosen)) if keys else failed


def forget_failures(plan: SweepPlan, keys: Sequence[str]) -> list[SweepCell]:
    """Make failed cells be run again, as `to_be_retried` chooses them: the cells that will be. Raises UserError."""
    chosen = to_be_retried(plan, keys)
    for cell in chosen:
        for name in (ENDED, JOB, OUTCOME):  # a driver that died may have left the records of the try that failed
            (plan.place(cell) / name).unlink(missing_ok=True)
    return chosen


def _why_not_again(plan: SweepPlan, begun: str, failed: Sequence[SweepCell]) -> str:
    """Why a key, or how it begins, names no failed cell."""
    known = [cell for cell in plan.cells if cell.key.startswith(begun)]
    if not known:
        return f"no cell is called {begun}"
    if harm := plan.harm(known[0]):
        return f"{known[0].key} has not failed, but {harm}: `lm_eval sweep run` makes it anew"
    waits_for = [cell.key for cell in failed if cell.key in known[0].after]
    return f"{known[0].key} has not failed" + (f" but waits for {waits_for[0]}: retry that one" if waits_for else "")
