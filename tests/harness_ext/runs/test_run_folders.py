"""What a run leaves on the disk: whole, or not at all; and made anew where it was damaged."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path

import pytest

from harness_ext.storage import rundir
from tests.harness_ext.runs.outputs import samples


def test_scratch_folders_of_killed_processes_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f"lm-eval-recipes-{gone.pid}-abc").mkdir()
    kept = rundir.scratch_folder()
    again = rundir.scratch_folder()
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, again.name}


@pytest.mark.slow
def test_a_run_that_cannot_be_written_is_saved_elsewhere(
    demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    real = rundir._sync

    def full_disk(folder: Path) -> None:
        if "results" in folder.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder)

    monkeypatch.setattr(rundir, "_sync", full_disk)
    ran = demo_run("--recipe", "baseline", limit=8)
    assert "No space left on device" in ran.err and "the run is safe in" in ran.err
    (path,) = tmp_path.glob("lm-eval-recipes-rescued/baseline-*/receipt.json")
    assert json.loads(path.read_text())["status"] == "complete"
    assert not list(tmp_path.glob("results/demo/.*"))


@pytest.mark.slow
def test_a_short_write_of_lm_evals_is_noticed(demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.loggers import EvaluationTracker

    real = EvaluationTracker.save_results_samples

    def short(self, task_name: str, samples: list) -> None:
        real(self, task_name, samples[:-1])

    monkeypatch.setattr(EvaluationTracker, "save_results_samples", short)
    monkeypatch.setattr(rundir, "rescue_folders", lambda: [tmp_path / "elsewhere"])
    ran = demo_run("--recipe", "baseline", limit=8)
    assert ran.code == 2 and "could not write its results completely" in ran.err
    assert not list(tmp_path.glob("results/demo/*")) and not list(tmp_path.glob("elsewhere/*"))


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, alive = tmp_path / f".laser-1.tmp-{gone.pid}", tmp_path / f".laser-2.tmp-{os.getppid()}"
    dead.mkdir()
    alive.mkdir()
    rundir.sweep(tmp_path)
    assert not dead.exists() and alive.exists()


def test_what_another_machine_may_be_writing_is_left_to_it_for_a_week(tmp_path: Path) -> None:
    """Machines that share a results folder know nothing of each other's processes."""
    fresh, old = (tmp_path / f".laser-{number}.tmp-99999999-another" for number in (1, 2))
    for folder in (fresh, old):
        folder.mkdir()
    then = time.time() - rundir.KEPT_SECONDS - 60
    os.utime(old, (then, then))
    rundir.sweep(tmp_path)
    assert fresh.exists() and not old.exists()
    with rundir.writing(tmp_path / "laser-3") as ours:
        assert ours.name.endswith(f".tmp-{os.getpid()}-{rundir.safe_name(platform.node())}")
        rundir.sweep(tmp_path)
        assert ours.exists()


# Damaged run folders


def _cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _without_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _one_digit_changed(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace("0", "1", 1))


DAMAGE = {
    "samples cut": ("samples_*", _cut, r"samples_int_mult_\S+ has"),
    "samples with fewer rows": ("samples_*", _without_last_line, r"samples_int_mult_\S+ has"),
    "samples empty": ("samples_*", lambda path: path.write_bytes(b""), r"samples_int_mult_\S+ has 0 bytes"),
    "samples gone": ("samples_*", Path.unlink, r"samples_int_mult_\S+ is missing"),
    "samples changed": ("samples_*", _one_digit_changed, r"samples_int_mult_\S+ is not as it was written"),
    "results cut": ("results_*", _cut, r"results_\S+ has"),
    "results gone": ("results_*", Path.unlink, r"results_\S+ is missing"),
    "receipt cut": ("receipt.json", _cut, r"receipt\.json is missing or cannot be read"),
    "receipt gone": ("receipt.json", Path.unlink, r"receipt\.json is missing or cannot be read"),
    "receipt empty": (
        "receipt.json",
        lambda path: path.write_bytes(b""),
        r"receipt\.json is missing or cannot be read",
    ),
}


@pytest.mark.slow
def test_a_damaged_run_is_made_anew_by_the_same_command(demo_run, tmp_path: Path) -> None:
    import re

    arguments, size = ("--recipe", "baseline"), {"limit": 8}
    assert "baseline: done" in demo_run(*arguments, **size).err
    for what, (pattern, damage, words) in DAMAGE.items():
        (path,) = tmp_path.glob(f"results/demo/baseline-*/{pattern}")
        damage(path)
        ran = demo_run(*arguments, **size)
        assert ran.code == 0, what
        assert re.search(rf"baseline: the run in \S+ is damaged \({words}.*\) and is made anew", ran.err), (
            what,
            ran.err,
        )
        assert "baseline: done" in ran.err
        assert len(samples(tmp_path, "baseline", "int_mult")) == 8
        assert not list(tmp_path.glob("results/demo/.*"))
    ran = demo_run(*arguments, **size)
    assert "baseline: kept" in ran.err and "damaged" not in ran.err


@pytest.mark.slow
def test_a_receipt_of_another_run_does_not_stand_for_this_one(demo_run, tmp_path: Path) -> None:
    import shutil

    demo_run("--recipe", "laser", limit=8)
    (baseline,), (laser,) = (list(tmp_path.glob(f"results/demo/{name}-*")) for name in ("baseline", "laser"))
    shutil.copy(baseline / "receipt.json", laser / "receipt.json")
    ran = demo_run("--recipe", "laser", limit=8)
    assert "baseline: kept" in ran.err and "laser: done" in ran.err
    assert json.loads((laser / "receipt.json").read_text())["recipe"]["name"] == "laser"
    shutil.rmtree(baseline)
    shutil.copytree(laser, baseline)
    ran = demo_run("--recipe", "laser", limit=8)
    assert "baseline: done" in ran.err and "laser: kept" in ran.err


@pytest.mark.slow
def test_a_damaged_run_stays_until_the_new_one_is_whole(
    demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_run("--recipe", "baseline", limit=8)
    (path,) = tmp_path.glob("results/demo/baseline-*/samples_*")
    _cut(path)
    left = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(
            "harness_ext.runs.session.Session._evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        demo_run("--recipe", "baseline", limit=8)
    assert path.read_bytes() == left
    assert "baseline: done" in demo_run("--recipe", "baseline", limit=8).err and not path.exists()


@pytest.mark.slow
def test_a_whole_run_beside_a_damaged_one_is_kept(demo_run, tmp_path: Path) -> None:
    import shutil

    demo_run("--recipe", "baseline", limit=8)
    (folder,) = tmp_path.glob("results/demo/baseline-*")
    shutil.copytree(folder, folder.with_name("a-copy"))
    _cut(next((folder.with_name("a-copy")).glob("samples_*")))
    ran = demo_run("--recipe", "baseline", limit=8)
    assert f"kept from {folder.relative_to(tmp_path)}" in ran.err and "damaged" not in ran.err
