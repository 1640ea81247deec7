"""Folders of edited weights: bounded, whole or not at all, never swept while a process uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness_ext.errors import UserError
from harness_ext.storage.weight_folders import LIMIT_VARIABLE, WeightFolders, user_folders

HOLDER = """
import sys, time
from pathlib import Path
from harness_ext.storage.weight_folders import WeightFolders
def fill(folder):
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    if sys.argv[3] == "filling":
        print("ready", flush=True); time.sleep(60)
folders = WeightFolders(Path(sys.argv[1]), 0)
folders.get(sys.argv[2], 1000, fill)
print("ready", flush=True)
time.sleep(60)
"""


def filled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 1000)


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def made_old(root: Path) -> None:
    for path in root.iterdir():
        os.utime(path, (time.time() - 3600, time.time() - 3600))


def test_a_folder_is_filled_once(tmp_path: Path) -> None:
    first = WeightFolders(tmp_path).get("one", 1000, filled)
    again = WeightFolders(tmp_path).get("one", 1000, lambda folder: pytest.fail("it is there"))
    assert first == again and (again / "model.safetensors").stat().st_size == 1000


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_folder_is_filled_again(tmp_path: Path, damage: str) -> None:
    folders = WeightFolders(tmp_path)
    path = folders.get("one", 1000, filled) / "model.safetensors"
    folders.release()
    path.write_bytes(b"x") if damage == "cut" else path.unlink()
    assert (WeightFolders(tmp_path).get("one", 1000, filled) / "model.safetensors").stat().st_size == 1000


def test_the_least_recently_used_go_first_and_none_in_use(tmp_path: Path) -> None:
    folders = WeightFolders(tmp_path, limit_bytes=3000)
    for place, name in enumerate(("one", "two", "three", "four")):
        os.utime(folders.get(name, 1000, filled), (place + 1, place + 1))
    folders.sweep()
    assert names(tmp_path) == {"one", "two", "three", "four"}
    used = WeightFolders(tmp_path, limit_bytes=3000)
    used.get("one", 1000, filled)
    os.utime(tmp_path / "one", (1, 1))
    folders.release()
    assert names(tmp_path) == {"one", "three", "four"}
    used.release()
    WeightFolders(tmp_path, limit_bytes=0).sweep()
    assert names(tmp_path) == set()


def test_what_fails_leaves_nothing_and_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        filled(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot be written to .*No space left on device; make room") as refused:
        WeightFolders(tmp_path).get("one", 1000, full)
    assert "\n" not in str(refused.value) and names(tmp_path) == set()
    with pytest.raises(UserError, match=r"only .* GiB are free"):
        WeightFolders(tmp_path).get("one", 1 << 60, filled)
    with pytest.raises(ZeroDivisionError):
        WeightFolders(tmp_path).get("one", 1000, lambda folder: 1 / 0)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("state", ["holding", "filling"])
def test_a_killed_process_leaves_what_the_next_sweep_removes(tmp_path: Path, state: str) -> None:
    command = [sys.executable, "-c", HOLDER, tmp_path, "one", state]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
    try:
        made_old(tmp_path)
        WeightFolders(tmp_path, limit_bytes=0).sweep()
        assert len(names(tmp_path)) == 1, "a living process uses it"
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    made_old(tmp_path)
    WeightFolders(tmp_path, limit_bytes=0).sweep()
    assert names(tmp_path) == set()


def test_the_bound_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(UserError, match="must be a number of GiB"):
        user_folders()
