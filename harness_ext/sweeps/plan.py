"""What a sweep would do: its cells, GPUs, expected hours, and what is there already. Nothing is loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness_ext.errors import UserError
from harness_ext.storage.remote import is_remote
from harness_ext.storage.rundir import FinishedRun, finished_runs, safe_name
from harness_ext.storage.whole_files import write_record
from harness_ext.sweeps import outcome
from harness_ext.sweeps.cells import AskedVariant, SweepCell, cells_of
from harness_ext.sweeps.expected_hours import By, PastRun, Workload, hours_of, past_run
from harness_ext.sweeps.sweep_file import SweepFile
from leaderboard.readers.sweep_state import (
    CELLS,
    OUTCOME,
    PLAN,
    SWEEPS,
    SweepState,
    decided_state,
    read_json,
    sweep_state,
)

DEFAULT = "results"
_DEFAULTS = {"batch_size": 1, "num_fewshot": None, "system_instruction": None}
"""Settings by which runs are looked through, and what they are without a flag."""


@dataclass(frozen=True)
class SweepPlan:
    """A sweep's cells, and its folder. results: where the run folders come together. output: what cells are told as
    their `--output_path`: the same, or the URL that runs are brought from.
    """

    sweep: SweepFile
    results: Path
    output: str
    cells: tuple[SweepCell, ...]

    @property
    def folder(self) -> Path:
        """Where driver and cells leave their files."""
        return self.results / SWEEPS / self.sweep.name

    def place(self, cell: SweepCell) -> Path:
        """Where a cell leaves its files."""
        return self.folder / CELLS / cell.key

    def settled(self, cell: SweepCell) -> str | None:
        """`done` or `failed` where a cell is settled; None where it is to run. One whose run folders are gone or
        damaged runs.
        """
        state = (read_json(self.place(cell) / OUTCOME) or {}).get("state")
        if state == "done":
            return None if self.harm(cell) else "done"
        return "failed" if state == "failed" else None

    def harm(self, cell: SweepCell) -> str:
        """Why a cell that its record calls done is not; empty where it is, and for any other cell. A run folder of the
        cell that it waits for counts there alone.
        """
        place = self.place(cell)
        if (read_json(place / OUTCOME) or {}).get("state") != "done":
            return ""
        before = [outcome.run_folders(self.folder / CELLS / key, self.results) for key in cell.after]
        return outcome.harm(place, self.results, [run for runs in before for run in runs])

    def undo_damaged(self, paths: Iterable[Path]) -> list[SweepCell]:
        """Have the cells wait to be run again that left run folders among these paths of which a file is not as it was
        written, whatever its size. The cells. Raises OSError.
        """
        suspects = {path.resolve() for path in paths}
        undone = []
        for cell in self.cells if suspects else ():
            runs = outcome.run_folders(self.place(cell), self.results) if self.settled(cell) == "done" else []
            damage = (outcome.damage_of(run) for run in runs if run.resolve() in suspects)
            if why := next(filter(None, damage), ""):
                outcome.undo(self.place(cell), why)
                undone.append(cell)
        return undone

    @property
    def records(self) -> list[dict[str, Any]]:
        """The cells as the plan's file has them."""
        return [
            {"key": cell.key, "model": cell.model, "recipes": list(cell.recipes), "after": list(cell.after)}
            for cell in self.cells
        ]

    def state(self, say: Callable[[str], None]) -> SweepState | None:
        """What became of the cells that the sweep file asks for now, whatever was driven last; None where nothing was.
        One whose run folders do not stand waits. say: told of a wait for other machines, and of what has changed.
        """
        found = decided_state(self.folder, say, asked=self.records)
        driven = sweep_state(self.folder)
        if found is None or driven is None:
            return None
        keys, before = {cell.key for cell in self.cells}, {cell.key for cell in driven.cells}
        if new := len(keys - before):
            say(
                f"note: {new} of {len(keys)} cells are new, since the sweep file, or a file that it names, has changed"
                " since it was driven: `lm_eval sweep run` takes them up"
            )
        if stale := sum(cell.state == "running" for cell in driven.cells if cell.key not in keys):
            say(f"note: {stale} running cells are of an earlier form of the sweep file, and not counted here")
        harms = {cell.key: self.harm(cell) for cell in self.cells}
        cells = (
            replace(cell, state="waiting", reason=harms[cell.key]) if harms[cell.key] else cell for cell in found.cells
        )
        return replace(found, cells=tuple(cells))

    def make_folder(self) -> None:
        """Make the sweep's folder and that of its cells. Raises UserError."""
        with self._told():
            (self.folder / CELLS).mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Keep the plan for `status` and the page. Raises UserError."""
        self.make_folder()
        with self._told():
            write_record(self.folder / PLAN, {"name": self.sweep.name, "cells": self.records})

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written: {error.strerror or error}; make room, or name another output_path"
            ) from None


def plan_of(sweep: SweepFile, beside: Path) -> SweepPlan:
    """The plan of a sweep. beside: the folder that a relative output_path starts from; a URL's runs go to `results`."""
    if is_remote(sweep.output_path):
        return SweepPlan(sweep, beside / DEFAULT, sweep.output_path, tuple(cells_of(sweep)))
    results = beside / sweep.output_path
    return SweepPlan(sweep, results, str(results.resolve()), tuple(cells_of(sweep)))


@dataclass(frozen=True)
class Expectation:
    """What is to do of one model. cells: all of the sweep's, of which some are done, some have failed (`retry` runs
    those) and the rest is `to_run`. What follows is of the cells to run alone. gpus: that one of them needs; 0 on the
    CPU. variants: the run folders that they leave. there: how many of these are there already, as far as receipts tell
    (recipe, tasks, documents, settings), and are kept. hours: of the others; by: what tells them; None where nothing
    does.
    """

    model: str
    cells: int
    done: int
    failed: int
    to_run: int
    gpus: int
    variants: int
    there: int
    hours: float | None
    by: By | None


def expectations(plan: SweepPlan, kinds: Mapping[str, str] | None = None, *, on_gpu: bool = True) -> list[Expectation]:
    """A line a model. kinds, on_gpu: as `expected_hours.Workload` has them."""
    by_model: dict[str, list[SweepCell]] = defaultdict(list)
    for cell in plan.cells:
        by_model[cell.model].append(cell)
    workload = Workload.of(plan.sweep, kinds or {}, on_gpu=on_gpu)
    left_by = {model: _left_by(plan.results / safe_name(model)) for model in by_model}
    timed = {model: [past for _, past in runs if past.seconds] for model, runs in left_by.items()}
    return [_expectation(plan, cells, left_by[model], workload, timed) for model, cells in by_model.items()]


def _expectation(
    plan: SweepPlan,
    cells: Sequence[SweepCell],
    left_by: Sequence[tuple[FinishedRun, PastRun]],
    workload: Workload,
    timed: Mapping[str, Sequence[PastRun]],
) -> Expectation:
    model, states = cells[0].model, [plan.settled(cell) for cell in cells]
    left = [cell for cell, state in zip(cells, states) if state is None]
    variants = [variant for cell in left for variant in cell.leaves]
    fitting = [run for run, past in left_by if workload.is_of(past) and _fits(run, plan.sweep)]
    labels = {variant for run in fitting for variant in _as_variants(run)}
    there = sum(not labels.isdisjoint({variant, variant._replace(recipe_id="")}) for variant in variants)
    hours, by = hours_of(model, len(variants) - there, workload, timed) if variants else (0.0, None)
    return Expectation(
        model,
        cells=len(cells),
        done=states.count("done"),
        failed=states.count("failed"),
        to_run=len(left),
        gpus=max((cell.gpus for cell in left), default=0) if workload.on_gpu else 0,
        variants=len(variants),
        there=there,
        hours=hours,
        by=by,
    )


def _left_by(folder: Path) -> list[tuple[FinishedRun, PastRun]]:
    """A model's runs, and what they tell of time."""
    return [(run, past_run(run)) for run in finished_runs(folder)]


def _fits(run: FinishedRun, sweep: SweepFile) -> bool:
    """Whether a run is whole and had the settings that the sweep asks for, as far as its receipt tells."""
    settings = run.receipt.get("settings")
    if run.failed or outcome.harm_of(run.path):
        return False
    if not isinstance(settings, dict):
        return True
    asked = {name: sweep.run.get(name, default) for name, default in _DEFAULTS.items()}
    return all(str(settings[name]) == str(value) for name, value in asked.items() if name in settings)


def _as_variants(run: FinishedRun) -> Iterator[AskedVariant]:
    """What a run is there for: with the id of its recipe, and for those of which none is known before the run."""
    recipe, told = run.receipt.get("recipe"), run.receipt.get("recipe_id")
    label = str(recipe.get("label") or recipe.get("name")) if isinstance(recipe, dict) else ""
    yield AskedVariant(label, None)
    yield AskedVariant(label, told if isinstance(told, str) else "")
