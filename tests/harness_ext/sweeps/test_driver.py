"""The driver with an engine that plays its cells: what is settled, tried again, taken in, and gone on with."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness_ext.errors import UserError
from harness_ext.storage.integrity import listed_files
from harness_ext.storage.rundir import RESCUED
from harness_ext.sweeps import driver as driving
from harness_ext.sweeps import outcome
from harness_ext.sweeps.claim import claimed
from harness_ext.sweeps.driver import Driver, forget_failures
from harness_ext.sweeps.engines.base import Job, prepare, ready
from harness_ext.sweeps.job_files import NOT_BEGUN
from harness_ext.sweeps.plan import SweepPlan, plan_of
from harness_ext.sweeps.sweep_file import sweep_from
from leaderboard.readers.sweep_state import (
    ENDED,
    JOB,
    MANIFEST,
    OUTCOME,
    OUTPUT,
    read_json,
    rows,
    sweep_state,
    tries_in,
)

Play = Callable[[Job, int], None]


class Killed(BaseException):
    """The driver dies."""


class Played:
    """An engine whose cells end at once, as they are told to. begun: the cells, in order."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.begun: list[str] = []
        self.waiting: dict[str, Job] = {}

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            prepare(job)
            self.waiting[job.cell] = job

    def alive(self) -> set[str]:
        for job in ready(self.waiting.values(), ()):
            del self.waiting[job.cell]
            self.begun.append(job.cell)
            (job.folder / JOB).write_text(json.dumps({"host": "node1"}))
            self.play(job, self.begun.count(job.cell))
        return set(self.waiting)

    def cancel(self, cells: Iterable[str]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.waiting.clear()


def ends(job: Job, code: int | None = 0, *, reason: str = "command", manifest: dict[str, Any] | None = None) -> None:
    """A cell ends with a code; with 0 it leaves a run folder."""
    run = job.folder.parents[3] / "runs" / job.cell
    if manifest is None and code == 0:
        run.mkdir(parents=True, exist_ok=True)
        (run / "receipt.json").write_text("{}")
        manifest = {"runs": [{"recipe": "x", "path": str(run), "failure": None}], "mistake": None}
    if manifest is not None:
        (job.folder / MANIFEST).write_text(json.dumps(manifest))
    ended = {"exit_code": code, "signal": None if code is not None else "SIGKILL", "reason": reason}
    (job.folder / ENDED).write_text(json.dumps({**ended, "host": "node1", "seconds": 1.5, "try": uuid.uuid4().hex}))


def test_a_control_that_was_not_made_is_kept_and_is_no_failure(plan: SweepPlan) -> None:
    left_out = {"recipe": "svd", "control": "shuffled-labels", "reason": "it learns nothing"}

    def play(job: Job, number: int) -> None:
        ends(job)
        manifest = read_json(job.folder / MANIFEST) or {}
        (job.folder / MANIFEST).write_text(json.dumps({**manifest, "not_made": [left_out]}))

    assert Drive(plan, play).run()
    state = sweep_state(plan.folder)
    assert state is not None and state.count("done") == 3 and state.cells[0].not_made == (left_out,)
    assert state.not_made == ["shuffled-labels of svd: it learns nothing"]


def test_a_reason_from_the_output_is_a_plain_sentence(plan: SweepPlan) -> None:
    def play(job: Job, number: int) -> None:
        (job.folder / OUTPUT).write_text("error: no such model: x\n")
        ends(job, 2 if job.cell == plan.cells[0].key else 0)

    drive = Drive(plan, play)
    assert not drive.run()
    state = sweep_state(plan.folder)
    assert state is not None and state.cells[0].reason == "no such model: x"


def test_one_cell_that_waits_is_told_in_the_singular(plan: SweepPlan) -> None:
    plan = dataclasses.replace(plan, cells=plan.cells[:2])
    drive = Drive(plan, lambda job, number: ends(job, 2))
    assert not drive.run()
    assert any("; 1 cell that waits for it is not run" in line for line in drive.said)


def failure(kind: str) -> dict[str, Any]:
    return {"runs": [{"recipe": "laser", "path": "/x", "failure": {"kind": kind, "reason": f"for {kind}"}}]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(driving, "_LAST_WORD_SECONDS", 0.05)


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    """A baseline's cell and two others."""
    text = {
        "name": "s",
        "output_path": str(tmp_path / "results"),
        "models": [{"pretrained": "demo"}],
        "tasks": ["int_mult"],
        "recipes": ["laser", "svd"],
        "cells": {"recipes_per_cell": 1, "retries": 2},
    }
    return plan_of(sweep_from(text, "x"), Path())


class Drive:
    """Drives a plan; said: what the driver told, taken: the folders that were ingested."""

    def __init__(self, plan: SweepPlan, play: Play, ingest: Callable[[Sequence[Path]], bool] | None = None) -> None:
        self.said: list[str] = []
        self.taken: list[Path] = []
        self.engine = Played(play)
        self.driver = Driver(plan, self.engine, self.said.append, ingest or self._take)

    def _take(self, paths: Sequence[Path]) -> bool:
        self.taken += paths
        return True

    def run(self) -> bool:
        return self.driver.run()


def states(plan: SweepPlan) -> list[str]:
    state = sweep_state(plan.folder)
    assert state is not None
    return [cell.state for cell in state.cells]


def test_a_folder_that_cannot_be_made_is_told_before_any_cell(plan: SweepPlan) -> None:
    plan.folder.parent.parent.mkdir(parents=True)
    plan.folder.parent.write_text("a file where the sweeps' folder belongs")
    drive = Drive(plan, lambda job, _: ends(job))
    with pytest.raises(UserError, match="s cannot be written: Not a directory; make room, or name another output_path"):
        drive.run()
    assert drive.engine.begun == []


def test_all_is_run_once_in_order_and_taken_in(plan: SweepPlan) -> None:
    drive = Drive(plan, lambda job, _: ends(job))
    assert drive.run()
    assert drive.engine.begun == [cell.key for cell in plan.cells]
    assert states(plan) == ["done"] * 3
    assert sorted(path.name for path in drive.taken) == sorted(cell.key for cell in plan.cells)
    again = Drive(plan, lambda job, _: ends(job))
    assert again.run() and again.engine.begun == []
    assert not list(plan.folder.glob("driver*"))


def test_a_machines_failure_is_tried_again_and_a_recipes_is_not(plan: SweepPlan) -> None:
    def play(job: Job, number: int) -> None:
        if "laser" in job.cell:
            ends(job, 2, manifest=failure("non_finite_result"))
        elif "svd" in job.cell and number == 1:
            ends(job, None, reason="machine")
        elif "svd" in job.cell and number == 2:
            ends(job, 2, manifest=failure("out_of_memory"))
        else:
            ends(job)

    drive = Drive(plan, play)
    assert not drive.run()
    assert states(plan) == ["done", "failed", "done"]
    assert [drive.engine.begun.count(cell.key) for cell in plan.cells] == [1, 1, 3]
    assert any("laser: for non_finite_result" in line for line in drive.said)
    state = sweep_state(plan.folder)
    assert state is not None and rows(state, ("failed",))[0]["reason"] == "laser: for non_finite_result"
    # once more only by `retry`, which takes the beginning of a name
    assert not Drive(plan, lambda job, _: ends(job)).run()
    with pytest.raises(UserError, match="has not failed"):
        forget_failures(plan, [plan.cells[0].key])
    with pytest.raises(UserError, match="no cell is called zzz"):
        forget_failures(plan, ["zzz"])
    assert forget_failures(plan, [plan.cells[1].key[:9]]) == [plan.cells[1]]
    assert Drive(plan, lambda job, _: ends(job)).run()


@pytest.mark.parametrize(
    ("play", "tries", "why"),
    [
        (lambda job, _: None, 3, "its worker is gone without a word"),
        (lambda job, _: ends(job, None, reason="timeout"), 3, "ran out of its time"),
        (lambda job, _: ends(job, None, reason="machine"), 3, "was ended by SIGKILL"),
        (lambda job, _: ends(job, 1), 3, "ended with code 1: Traceback"),
        (lambda job, _: ends(job, 2), 1, "Traceback"),
        (
            lambda job, _: ends(job, 2, manifest={"runs": [], "mistake": {"kind": "asked", "reason": "no such model"}}),
            1,
            "no such model",
        ),
        (
            lambda job, _: ends(job, 2, manifest={"runs": [], "mistake": {"kind": "disk", "reason": "disk is full"}}),
            3,
            "disk is full",
        ),
        (lambda job, _: ends(job, 0, manifest=failure("out_of_memory")), 3, "for out_of_memory"),
    ],
)
def test_every_way_to_end(plan: SweepPlan, play: Play, tries: int, why: str) -> None:
    def told(job: Job, number: int) -> None:
        (job.folder / OUTPUT).write_text("much\nTraceback\n")
        if "baseline" in job.cell:
            ends(job)
        else:
            play(job, number)

    drive = Drive(plan, told)
    assert not drive.run()
    assert [drive.engine.begun.count(cell.key) for cell in plan.cells] == [1, tries, tries]
    state = sweep_state(plan.folder)
    reasons = [cell.reason for cell in state.cells[1:]] if state is not None else []
    assert len(reasons) == 2 and all(why in reason for reason in reasons), reasons


@pytest.mark.parametrize("holds", [True, False])
def test_what_waits_for_a_baseline_that_fails_is_not_run(plan: SweepPlan, holds: bool) -> None:
    """Tried twice by fault of the machine, then it is at fault itself. A queue of a cluster begins the others all the
    same; their workers end at once.
    """
    baseline, *others = plan.cells

    def play(job: Job, number: int) -> None:
        if job.cell == baseline.key:
            ends(job, *((None,) if number < 3 else (2,)), reason="machine" if number < 3 else "command")
        elif outcome.has_failed(plan.place(baseline)):
            ends(job, 0, reason=NOT_BEGUN, manifest={})
        else:
            ends(job)

    drive = Drive(plan, play)
    drive.driver.holds = holds
    drive.engine.cancel = lambda cells: [drive.engine.waiting.pop(cell, None) for cell in cells]  # type: ignore
    assert not drive.run()
    assert drive.engine.begun.count(baseline.key) == 3
    assert not holds or drive.engine.begun == [baseline.key] * 3
    assert any("; 2 cells that wait for it are not run" in line for line in drive.said)
    state = sweep_state(plan.folder)
    assert state is not None and states(plan) == ["failed", "waiting", "waiting"]
    assert [cell.reason for cell in state.cells[1:]] == [f"not run, since its baseline failed: {baseline.key}"] * 2
    assert state.cells[0].reason == "it ended with code 2"
    assert [cell.tries for cell in state.cells] == [3, 0, 0] and state.seconds_left is None
    assert state.summary == "0 of 3 cells done, 1 failed, 2 waiting (2 for a baseline that failed)"
    # Again: nothing is run, until the baseline is retried.
    again = Drive(plan, lambda job, _: ends(job))
    again.driver.holds = holds
    assert not again.run() and again.engine.begun == []
    with pytest.raises(UserError, match=f"{others[0].key} has not failed but waits for {baseline.key}: retry that one"):
        forget_failures(plan, [others[0].key])
    assert forget_failures(plan, []) == [baseline]
    assert again.run() and again.engine.begun == [cell.key for cell in plan.cells]
    assert states(plan) == ["done"] * 3


def test_a_driver_that_dies_is_gone_on_with(plan: SweepPlan) -> None:
    # whatever it was at: nothing is run twice that has ended, and nothing is lost
    for moment in range(1, 12):
        for path in sorted(plan.folder.glob("cells/*/*")):
            path.unlink()
        calls = 0
        begun: list[str] = []

        def play(job: Job, number: int, begun: list[str] = begun) -> None:
            begun.append(job.cell)
            ends(job)

        def dies(line: str, moment: int = moment) -> None:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed

        drive = Drive(plan, play)
        drive.driver.say = dies
        try:
            drive.run()
        except Killed:
            assert Drive(plan, play).run()
        assert states(plan) == ["done"] * 3
        assert sorted(begun) == sorted(cell.key for cell in plan.cells)


def test_a_try_is_settled_once(plan: SweepPlan) -> None:
    place = plan.place(plan.cells[0])
    place.mkdir(parents=True)
    (place / ENDED).write_text(json.dumps({"exit_code": 1, "reason": "command", "host": "h", "seconds": 1, "try": "t"}))
    for _ in range(3):  # the driver died between settling and putting the record away
        assert outcome.settle(place, outcome.ending(place), retries=1) == "waiting"
    assert len(tries_in(read_json(place / OUTCOME))) == 1


def test_a_database_that_is_held_waits(plan: SweepPlan) -> None:
    asked: list[int] = []

    def busy(paths: Sequence[Path]) -> bool:
        asked.append(len(paths))
        return False

    assert Drive(plan, lambda job, _: ends(job), busy).run()  # the cells are done all the same
    assert asked[-1] == 3
    later = Drive(plan, lambda job, _: ends(job))
    assert later.run() and len(later.taken) == 3


def test_a_full_disk_is_a_sentence(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    drive = Drive(plan, lambda job, _: ends(job))
    with monkeypatch.context() as patch:
        patch.setattr(outcome, "write_record", full)
        with pytest.raises(UserError, match="No space left on device; cells that run go on"):
            drive.run()
    assert Drive(plan, lambda job, _: ends(job)).run()
    assert states(plan) == ["done"] * 3


def test_lies_in_the_folder_are_no_state(plan: SweepPlan) -> None:
    assert Drive(plan, lambda job, _: ends(job)).run()
    place = plan.place(plan.cells[1])
    for lie in ("[]", "{", json.dumps({"state": "splendid", "tries": "many"}), "[" * 100_000):
        (place / OUTCOME).write_text(lie)
        state = sweep_state(plan.folder)
        assert state is not None and state.cells[1].state == "waiting"
    (plan.folder / "plan.json").write_text(json.dumps({"name": 3, "cells": [{"key": "../../x"}, 3, {"key": "a"}]}))
    state = sweep_state(plan.folder)
    assert state is not None and state.cells == ()


def test_a_driver_that_died_before_it_put_a_failed_try_away(plan: SweepPlan) -> None:
    assert not Drive(plan, lambda job, _: ends(job, 2)).run()
    record = {"exit_code": 2, "reason": "command", "host": "h", "seconds": 1, "try": "t"}
    (plan.place(plan.cells[0]) / ENDED).write_text(json.dumps(record))
    forget_failures(plan, [])
    assert Drive(plan, lambda job, _: ends(job)).run()


def test_failures_are_forgotten_by_who_drives_alone(plan: SweepPlan) -> None:
    assert not Drive(plan, lambda job, _: ends(job, 2)).run()
    drive = Drive(plan, lambda job, _: ends(job))
    drive.driver.first = lambda: forget_failures(plan, [])
    with claimed(plan.folder), pytest.raises(UserError, match="driven already"):
        drive.run()
    assert states(plan) == ["failed", "waiting", "waiting"]
    assert drive.run() and states(plan) == ["done"] * 3


def test_a_disk_that_takes_no_manifest_either(plan: SweepPlan) -> None:
    def full(job: Job, _: int) -> None:
        (job.folder / OUTPUT).write_text("error: results cannot be written: No space left on device")
        ends(job, 2)

    drive = Drive(plan, full)
    assert not drive.run() and drive.engine.begun == [plan.cells[0].key] * 3


def rescued(job: Job, folder: Path) -> None:
    """A cell that found no room for its run, which it saved elsewhere."""
    ends(job, 0, manifest={"runs": [{"recipe": "x", "path": str(folder / RESCUED / job.cell)}], "mistake": None})


def test_rescued_runs_are_brought_home(plan: SweepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as there is room, also after a driver that died while it was at it."""

    def play(job: Job, _: int) -> None:
        (tmp_path / RESCUED / job.cell).mkdir(parents=True)
        (tmp_path / RESCUED / job.cell / "receipt.json").write_text("{}")
        rescued(job, tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(outcome.shutil, "copytree", full)
        with pytest.raises(UserError, match="No space left on device; cells that run go on"):
            Drive(plan, play).run()
    with monkeypatch.context() as patch:
        patch.setattr(outcome, "write_record", full)
        with pytest.raises(UserError, match="No space left on device"):
            Drive(plan, play).run()
    drive = Drive(plan, play)
    assert drive.run() and len(drive.engine.begun) == 2
    homes = [plan.results / "demo" / cell.key for cell in plan.cells]
    assert sorted(drive.taken) == sorted(homes) and all((home / "receipt.json").is_file() for home in homes)
    assert not (tmp_path / RESCUED).exists()


def test_a_rescued_run_that_only_another_machine_sees_is_made_again(plan: SweepPlan, tmp_path: Path) -> None:
    drive = Drive(plan, lambda job, number: rescued(job, tmp_path) if number == 1 else ends(job))
    assert drive.run() and len(drive.engine.begun) == 6
    assert any("had no room, and node1 alone sees where its runs went" in line for line in drive.said)


def test_a_recipe_that_changes_while_its_cell_runs_leaves_it_not_done(plan: SweepPlan, tmp_path: Path) -> None:
    """Which of the two it was run with, nobody can tell."""
    recipe = tmp_path / "mine.yaml"
    text = "name: mine\nsteps: [{method: truncate_svd, matrices: [all], keep: {rank_fraction: 0.5}}]\n"
    recipe.write_text(text)

    def planned() -> SweepPlan:
        return plan_of(sweep_from({**plan.sweep.model_dump(exclude_none=True), "recipes": [str(recipe)]}, "x"), Path())

    def play(job: Job, number: int) -> None:
        if "baseline" not in job.cell:
            recipe.write_text(text.replace("0.5", "0.05"))
        ends(job)

    drive, first = Drive(planned(), play), planned()
    assert not drive.run() and states(first) == ["done", "waiting"]
    assert any(
        "recipe files have changed since it was planned: start the same command again" in line for line in drive.said
    )
    again = Drive(planned(), play)
    assert again.run() and again.engine.begun == [planned().cells[1].key] != [first.cells[1].key]


def leaves_files(job: Job, _: int) -> None:
    """A cell ends well, and its run folder is a whole one."""
    ends(job)
    run = job.folder.parents[3] / "runs" / job.cell
    (run / "samples_x.jsonl").write_text('{"doc_id": 0}\n')
    (run / "receipt.json").write_text(json.dumps({"files": listed_files(run)}))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("samples_x.jsonl", "{", "samples_x.jsonl has 1 bytes of 14"),
        ("samples_x.jsonl", None, "samples_x.jsonl is missing"),
        ("receipt.json", "[]", "receipt.json is not as it was written"),
        ("receipt.json", '{"files": [{}]}', "receipt.json is not as it was written"),
        ("receipt.json", None, "has no receipt.json"),
    ],
)
def test_a_damaged_run_folder_is_told_and_made_anew(plan: SweepPlan, name: str, content: str | None, why: str) -> None:
    """Once, and no other cell, though another may name the folder of the baseline as well."""
    assert Drive(plan, leaves_files).run()
    harmed = plan.cells[0]
    for cell in plan.cells[1:]:
        record = read_json(plan.place(cell) / OUTCOME) or {}
        runs = [str(plan.folder.parents[1] / "runs" / harmed.key), *record["runs"]]
        (plan.place(cell) / OUTCOME).write_text(json.dumps({**record, "runs": runs}))
    file = plan.folder.parents[1] / "runs" / harmed.key / name
    file.unlink() if content is None else file.write_text(content)
    assert [plan.settled(cell) for cell in plan.cells] == [None, "done", "done"]
    with pytest.raises(UserError, match="has not failed, but .*: `lm_eval sweep run` makes it anew"):
        forget_failures(plan, [harmed.key])
    drive = Drive(plan, leaves_files)
    assert drive.run() and drive.engine.begun == [harmed.key]
    assert any(line.startswith(f"{harmed.key}: is run again, since") and why in line for line in drive.said)
    again = Drive(plan, leaves_files)
    assert again.run() and again.engine.begun == []


def test_damage_that_shows_in_no_size_is_undone_where_the_database_refuses_it(plan: SweepPlan) -> None:
    assert Drive(plan, leaves_files).run()
    runs = [plan.folder.parents[1] / "runs" / cell.key for cell in plan.cells]
    (runs[1] / "samples_x.jsonl").write_text('{"doc_id": 9}\n')
    assert plan.undo_damaged([runs[0], runs[2]]) == []  # refused for another reason: a run anew would not help
    assert plan.undo_damaged(runs) == [plan.cells[1]]
    state = sweep_state(plan.folder)
    assert state is not None and [cell.state for cell in state.cells] == ["done", "waiting", "done"]
    assert state.cells[1].reason == f"{runs[1]} is damaged (samples_x.jsonl is not as it was written)"
    drive = Drive(plan, leaves_files)
    assert drive.run() and drive.engine.begun == [plan.cells[1].key]
