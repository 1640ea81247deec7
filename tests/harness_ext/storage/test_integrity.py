"""What is wrong with a run folder, and what becomes of folders that a killed process left."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness_ext.storage.integrity import damage, listed_files
from harness_ext.storage.rundir import sweep

RESULTS, SAMPLES = "results_2026.json", "samples_a_b_2026.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one task, `a_b`, with three documents and two filters."""
    folder = tmp_path / "laser-1"
    folder.mkdir()
    (folder / RESULTS).write_text(json.dumps({"configs": {"a_b": {}}}))
    rows = [{"doc_id": number, "filter": name} for number in range(3) for name in ("none", "strict")]
    (folder / SAMPLES).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def receipt(folder: Path, *, listed: bool) -> dict[str, Any]:
    """A receipt of today, or one of before files were listed."""
    files = {"files": listed_files(folder)} if listed else {}
    return {"status": "complete", "tasks": {"a_b": {"scored": 3}}, **files}


@pytest.mark.parametrize("listed", [True, False])
def test_a_whole_run_is_whole_and_a_file_more_does_no_harm(run: Path, listed: bool) -> None:
    written = receipt(run, listed=listed)
    assert damage(run, written) is None
    (run / "note.txt").write_text("seen")
    assert damage(run, written) is None


@pytest.mark.parametrize(
    ("name", "content", "of_list", "by_counting"),
    [
        (RESULTS, None, f"{RESULTS} is missing", "its results are missing"),
        (RESULTS, '{"configs"', f"{RESULTS} has 10 bytes of 24", f"{RESULTS} is cut or not JSON"),
        (RESULTS, "", f"{RESULTS} has 0 bytes of 24", f"{RESULTS} is cut or not JSON"),
        (RESULTS, '{"configs": {"c": {}}}', f"{RESULTS} has 22 bytes of 24", f"{RESULTS} has no a_b"),
        (SAMPLES, None, f"{SAMPLES} is missing", "the samples of a_b are missing"),
        (SAMPLES, "", f"{SAMPLES} has 0 bytes of 198", f"{SAMPLES} has 0 documents of 3"),
        (SAMPLES, '{"doc_id": 0}\n', f"{SAMPLES} has 14 bytes of 198", f"{SAMPLES} has 1 documents of 3"),
        (SAMPLES, '{"doc_id": 0}\n{"doc', f"{SAMPLES} has 19 bytes of 198", f"{SAMPLES} is cut or not JSON"),
        (SAMPLES, '{"doc_id": 0}', f"{SAMPLES} has 13 bytes of 198", f"{SAMPLES} is cut or not JSON"),
        (SAMPLES, "\0" * 198, f"{SAMPLES} is not as it was written", f"{SAMPLES} is cut or not JSON"),
    ],
)
def test_damage_is_named(run: Path, name: str, content: str | None, of_list: str, by_counting: str) -> None:
    today, before = receipt(run, listed=True), receipt(run, listed=False)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    assert (damage(run, today), damage(run, before)) == (of_list, by_counting)


@pytest.mark.parametrize(
    "change",
    [{"files": []}, {"files": 3}, {"files": [{}]}, {"files": {"a": 1}}, {"tasks": None}, {"tasks": {"a_b": 1}}],
)
def test_a_receipt_that_says_nothing_of_use_is_damage(run: Path, change: dict[str, Any]) -> None:
    written = receipt(run, listed="files" in change) | change
    assert str(damage(run, written)).startswith("receipt.json ")


# Killed before the last step


@pytest.fixture
def dead() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def left_by(run: Path, process: int, suffix: str = "") -> Path:
    return run.rename(run.parent / f".laser-1{suffix}.tmp-{process}")


def test_a_run_that_was_whole_but_not_renamed_gets_its_place(run: Path, dead: int) -> None:
    (run / "receipt.json").write_text(json.dumps(receipt(run, listed=True)))
    left_by(run, dead)
    sweep(run.parent)
    assert (run / "receipt.json").is_file() and [path.name for path in run.parent.iterdir()] == ["laser-1"]


@pytest.mark.parametrize("listed", [True, False])
def test_a_run_that_was_not_whole_is_removed(run: Path, dead: int, listed: bool) -> None:
    if listed:
        (run / "receipt.json").write_text(json.dumps(receipt(run, listed=True)))
        (run / SAMPLES).write_text("")
    left_by(run, dead)
    sweep(run.parent)
    assert not list(run.parent.iterdir())


def test_the_new_run_goes_before_the_one_that_it_replaces(run: Path, dead: int) -> None:
    import shutil

    shutil.copytree(run, run.parent / "damaged")
    (run / "receipt.json").write_text(json.dumps(receipt(run, listed=True)))
    left_by(run, dead)
    left_by(run.parent / "damaged", dead, ".old")
    sweep(run.parent)
    assert (run / "receipt.json").is_file() and len(list(run.parent.iterdir())) == 1


def test_without_the_new_run_the_old_one_comes_back(run: Path, dead: int) -> None:
    left_by(run, dead, ".old")
    sweep(run.parent)
    assert (run / SAMPLES).is_file()
