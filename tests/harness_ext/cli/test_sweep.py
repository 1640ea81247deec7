"""`lm_eval sweep`: what it ends with and says, and where its cells are told apart from ordinary runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness_ext.cli.sweep import _gpu_time
from harness_ext.sweeps.driver import Driver
from harness_ext.sweeps.plan import plan_of
from harness_ext.sweeps.sweep_file import read_sweep
from leaderboard.errors import Busy
from leaderboard.readers.sweep_life import host, process_start
from leaderboard.readers.sweep_state import DRIVER, JOB, OUTCOME

SWEEP = """
name: s
models: [{pretrained: demo}]
tasks: [int_mult]
recipes: [laser, svd]
run: {limit: 8, batch_size: 8}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path / "sweep.yaml"


def settle(sweep: Path, states: list[str]) -> None:
    """Leave what a driver leaves of cells that ended so."""
    plan = plan_of(read_sweep(sweep), sweep.parent)
    plan.write()
    for cell, state in zip(plan.cells, states, strict=True):
        plan.place(cell).mkdir(parents=True)
        run = sweep.parent / "results" / "demo" / cell.key
        if state == "done":
            run.mkdir(parents=True)
            (run / "receipt.json").write_text("{}")
        tries = [{"why": "" if state == "done" else "it broke", "host": "node1", "seconds": 60.0, "machine": True}]
        (plan.place(cell) / OUTCOME).write_text(json.dumps({"state": state, "runs": [str(run)], "tries": tries}))


@pytest.mark.parametrize(
    ("states", "code", "words"),
    [
        (["done", "done"], 0, "2 of 2 cells done"),
        (["done", "failed"], 1, "it broke"),
        (["failed", "waiting"], 1, "1 failed, 1 waiting (1 for a baseline that failed)"),
        (["done", "waiting"], 3, "1 of 2 cells done, 1 waiting"),
    ],
)
def test_status_ends_by_what_became_of_the_cells(
    lm_eval: Any, sweep: Path, states: list[str], code: int, words: str
) -> None:
    settle(sweep, states)
    ran = lm_eval("sweep", "status", sweep)
    assert ran.code == code and words in ran.out, ran
    rows = json.loads(lm_eval("sweep", "status", sweep, "--json").out)
    assert [row["state"] for row in rows] == states
    if states[0] == "failed":
        assert rows[1]["reason"] == f"not run, since its baseline failed: {rows[0]['cell']}" and "not run" in ran.out
        assert rows[0]["reason"] == "it broke" and ran.out.count("it broke") == 1


def test_a_control_that_was_left_out_is_named_and_is_no_failure(lm_eval: Any, sweep: Path) -> None:
    settle(sweep, ["done", "done"])
    plan = plan_of(read_sweep(sweep), sweep.parent)
    path = plan.place(plan.cells[1]) / OUTCOME
    left_out = [{"recipe": name, "control": "shuffled-labels", "reason": "it learns nothing"} for name in "ab"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "not_made": [*left_out, {"recipe": 3}, "x"]}))
    ran = lm_eval("sweep", "status", sweep)
    assert ran.code == 0 and "2 of 2 cells done" in ran.out
    assert "control not made: shuffled-labels of a, b: it learns nothing\n" in ran.out
    rows = json.loads(lm_eval("sweep", "status", sweep, "--json").out)
    assert rows[0]["not_made"] == [] and rows[1]["not_made"] == [
        "a+shuffled-labels: it learns nothing",
        "b+shuffled-labels: it learns nothing",
    ]


def test_a_driver_that_died_is_told_with_the_way_on(lm_eval: Any, sweep: Path) -> None:
    settle(sweep, ["done", "waiting"])
    plan = plan_of(read_sweep(sweep), sweep.parent)
    with subprocess.Popen(["sleep", "60"]) as process:
        record = {"host": host(), "pid": process.pid, "process_start": process_start(process.pid)}
        process.kill()
    (plan.folder / DRIVER).write_text(json.dumps(record))
    (plan.place(plan.cells[1]) / JOB).write_text(json.dumps(record))
    ran = lm_eval("sweep", "status", sweep)
    assert ran.code == 3 and "1 of 2 cells done, 1 lost" in ran.out and "running" not in ran.out
    assert f"driver: {host()} (process {record['pid']}) has died; start `lm_eval sweep run {sweep}` again" in ran.out


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0.0, "1 GPU minute"),
        (0.04, "2 GPU minutes"),
        (1.2, "72 GPU minutes"),
        (2.54, "2.5 GPU hours"),
        (5000, "5,000 GPU hours"),
    ],
)
def test_short_times_are_minutes(hours: float, words: str) -> None:
    assert _gpu_time(hours) == words


@pytest.mark.parametrize(
    ("states", "last"),
    [
        (["done", "done"], "0 of 2 cells to run"),
        (["done", "failed"], "0 of 2 cells to run; 1 failed, which `lm_eval sweep retry {sweep}` runs"),
        (["waiting", "waiting"], "2 of 2 cells to run: about "),
    ],
)
def test_a_plan_tells_time_of_what_is_to_run_alone(
    lm_eval: Any, sweep: Path, monkeypatch: pytest.MonkeyPatch, states: list[str], last: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settle(sweep, states)
    last, told = last.format(sweep=sweep), lm_eval("sweep", "plan", sweep).out
    assert told.splitlines()[-1].startswith(last) and "GPU " not in told
    assert told.endswith(f"\n{last}\n") or states[0] == "waiting"


def test_the_columns_of_a_plan_are_explained(repository: Path, lm_eval: Any, sweep: Path) -> None:
    text = (repository / "harness_ext" / "sweeps" / "README.md").read_text(encoding="utf-8")
    columns = lm_eval("sweep", "plan", sweep).out.split("\n", 1)[0].split()
    assert columns[0] == "MODEL" and columns[1:] == re.findall(r"^- ([A-Z_]+): ", text, re.MULTILINE)


def test_the_time_left_is_told_in_minutes(lm_eval: Any, sweep: Path) -> None:
    settle(sweep, ["done", "waiting"])
    plan = plan_of(read_sweep(sweep), sweep.parent)
    (plan.place(plan.cells[1]) / JOB).write_text(
        json.dumps({"host": host(), "pid": os.getpid(), "process_start": process_start(os.getpid())})
    )
    assert "1 of 2 cells done, 1 running; about 30 s left" in lm_eval("sweep", "status", sweep).out


def test_a_model_left_without_recipes_is_told(lm_eval: Any, sweep: Path) -> None:
    sweep.write_text(SWEEP + "exclude: [{model: '*', recipe: '*'}]\n")
    ran = lm_eval("sweep", "plan", sweep)
    assert ran.code == 0
    assert "note: `exclude` takes every recipe from demo: the baseline alone is run" in ran.err


@pytest.mark.parametrize("change", ["limit", "recipe"])
def test_status_compares_with_what_the_file_says_now(lm_eval: Any, sweep: Path, change: str) -> None:
    """Whoever waits for its exit code would go on too soon."""
    recipe = sweep.parent / "mine.yaml"
    recipe.write_text("name: mine\nsteps: [{method: truncate_svd, matrices: [all], keep: {rank: 2}}]\n")
    sweep.write_text(SWEEP.replace("svd]", f"{recipe}]"))
    settle(sweep, ["done", "done"])
    assert lm_eval("sweep", "status", sweep).code == 0
    changed, old, new = (sweep, "limit: 8", "limit: 4") if change == "limit" else (recipe, "rank: 2", "rank: 3")
    before = changed.read_text()
    changed.write_text(before.replace(old, new))
    ran, done, waiting = lm_eval("sweep", "status", sweep), *((0, 2) if change == "limit" else (1, 1))
    assert ran.code == 3 and f"{done} of 2 cells done, {waiting} waiting" in ran.out
    assert f"note: {waiting} of 2 cells are new, since the sweep file, or a file that it names, has changed" in ran.err
    assert [row["state"] for row in json.loads(lm_eval("sweep", "status", sweep, "--json").out)].count("done") == done
    changed.write_text(before)
    assert lm_eval("sweep", "status", sweep).code == 0


def test_status_tells_of_a_damaged_run_folder(lm_eval: Any, sweep: Path) -> None:
    settle(sweep, ["done", "done"])
    plan = plan_of(read_sweep(sweep), sweep.parent)
    run = sweep.parent / "results" / "demo" / plan.cells[1].key
    (run / "receipt.json").write_text(json.dumps({"files": [{"name": "samples_x.jsonl", "bytes": 3}]}))
    ran = lm_eval("sweep", "status", sweep, "--json")
    reason = f"{run} is damaged (samples_x.jsonl is missing)"
    assert ran.code == 3 and [row["reason"] for row in json.loads(ran.out)] == ["", reason]
    ran = lm_eval("sweep", "status", sweep)
    # a reason goes over lines where the folder's name is long
    assert "1 of 2 cells done, 1 waiting" in ran.out and "damaged (samples_x" in " ".join(ran.out.split())


def test_a_sweep_that_is_none(lm_eval: Any, sweep: Path) -> None:
    ran = lm_eval("sweep", "status", sweep)
    assert ran.code == 2 and "has no sweep yet: `lm_eval sweep run" in ran.err


@pytest.mark.parametrize("action", ["run", "retry"])
def test_a_failed_cell_is_an_exit_code(lm_eval: Any, sweep: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    settle(sweep, ["done", "failed"])
    monkeypatch.setattr(Driver, "run", lambda self: False)
    assert lm_eval("sweep", action, sweep, "--on", "local").code == 1


@pytest.mark.parametrize(
    ("words", "states", "code", "told"),
    [
        (("nonsense",), None, 2, "no cell is called nonsense"),
        ((), None, 3, "no cell has failed; `lm_eval sweep run"),
        ((), ["done", "waiting"], 3, "runs the 1 that are not done"),
        ((), ["done", "done"], 0, "no cell has failed\n"),
        (("demo-laser",), ["failed", "waiting"], 2, "has not failed but waits for demo-baseline"),
    ],
)
def test_retry_without_failures_makes_nothing(
    lm_eval: Any,
    sweep: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    states: list[str] | None,
    code: int,
    told: str,
) -> None:
    monkeypatch.setattr(Driver, "run", lambda self: pytest.fail("it drives"))
    if states:
        settle(sweep, states)
    before = {path: path.stat().st_mtime_ns for path in sweep.parent.rglob("*")}
    ran = lm_eval("sweep", "retry", sweep, *words)
    assert ran.code == code and told in ran.err, ran
    assert {path: path.stat().st_mtime_ns for path in sweep.parent.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--on", "slurmm"), "did you mean 'slurm'?"),
        (("--jobs", "0"), "--jobs 0 must be 1 or more"),
        (("--jobs", "2", "--on", "slurm"), "in the sweep file, as `slurm: {array_parallelism: 2}`"),
    ],
)
def test_mistakes_are_a_sentence(lm_eval: Any, sweep: Path, words: tuple[str, ...], told: str) -> None:
    ran = lm_eval("sweep", "run", sweep, *words)
    assert ran.code == 2 and told in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("s3://AKIAEXAMPLE:secret-word@bucket/x", "s3://***@bucket/x holds credentials"),
        ("file://{}/sweep.yaml/results", "cannot be used"),
        ("nosuch://bucket/x", "nosuch"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_before_any_cell(
    lm_eval: Any, sweep: Path, monkeypatch: pytest.MonkeyPatch, place: str, told: str
) -> None:
    monkeypatch.setattr(Driver, "run", lambda self: pytest.fail("it drives"))
    sweep.write_text(SWEEP + f"output_path: '{place.format(sweep.parent)}'\n")
    ran = lm_eval("sweep", "run", sweep)
    assert ran.code == 2 and told in ran.err and "Traceback" not in ran.err and "secret-word" not in ran.err + ran.out
    written = [path for path in sweep.parent.rglob("*") if path.is_file() and path != sweep]
    assert not any(b"secret-word" in path.read_bytes() for path in written)


def test_a_store_that_somebody_holds_leaves_the_cells_done(
    lm_eval: Any, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(paths: Any, database: Path) -> None:
        raise Busy(f"{database} is being written, by process 4711. Again later.")

    settle(sweep, ["done", "done"])
    monkeypatch.setattr("leaderboard.ingest.ingest", busy)
    ran = lm_eval("sweep", "run", sweep)
    assert ran.code == 0 and "2 of 2 cells done" in ran.out
    assert "is being written, by process 4711. Again later; 2 run folders wait, and nothing of them is lost" in ran.err


def test_a_manifest_says_what_came_of_a_run_and_leaves_the_database_alone(lm_eval: Any, tmp_path: Path) -> None:
    run = ("run", "--model", "hf", "--model_args", "pretrained=demo", "--tasks", "int_mult", "--limit", "8")
    ran = lm_eval(
        *run,
        "--batch_size",
        "8",
        "--recipe",
        "laser",
        "--control",
        "shuffled-labels",
        "--manifest",
        "out/manifest.json",
    )
    assert ran.code == 0, ran.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    reason = "the recipe learns nothing from calibration documents"
    assert manifest["not_made"] == [{"recipe": "laser", "control": "shuffled-labels", "reason": reason}]
    assert [entry["recipe"] for entry in manifest["runs"]] == ["baseline", "laser"] and manifest["mistake"] is None
    for entry in manifest["runs"]:
        receipt = json.loads((Path(entry["path"]) / "receipt.json").read_text())
        assert receipt["spec_id"] == entry["spec_id"] and entry["failure"] is None and not entry["kept"]
    assert not list(tmp_path.glob("results/*.duckdb"))

    wrong = lm_eval(*run, "--recipe", "svd:layers=[99]", "--manifest", "out/manifest.json")
    assert wrong.code == 2
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert told["mistake"]["kind"] == "asked" and told["mistake"]["reason"] in wrong.err
    plain = lm_eval(*run, "--manifest", "out/manifest.json")
    assert plain.code == 2 and "--manifest is for" in plain.err
