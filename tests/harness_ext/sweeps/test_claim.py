"""One driver at a time: living ones are left alone, dead ones replaced, whatever clocks say."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness_ext.errors import UserError
from harness_ext.sweeps import claim
from harness_ext.sweeps.claim import DriverClaim, claimed
from leaderboard.readers.sweep_life import host, process_start
from leaderboard.readers.sweep_state import DRIVER


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.05)


def write(folder: Path, **changes: object) -> None:
    record = {"host": host(), "pid": os.getpid(), "process_start": process_start(os.getpid()), "token": "x", "count": 0}
    (folder / DRIVER).write_text(json.dumps({**record, **changes}))


def test_a_second_driver_is_told_who_drives(tmp_path: Path) -> None:
    who = f"process {os.getpid()} on {host()}.*sweep status"
    with claimed(tmp_path), pytest.raises(UserError, match=who), claimed(tmp_path):
        pass
    assert not (tmp_path / DRIVER).exists()
    with claimed(tmp_path):
        pass


def test_a_dead_driver_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    boot = (process_start(os.getpid()) or "").rpartition(":")[0]
    for changes in ({"pid": gone.pid, "token": "x"}, {"process_start": f"{boot}:1", "token": "y"}):
        write(tmp_path, **changes)
        began = time.monotonic()
        with claimed(tmp_path):
            assert time.monotonic() - began < 5
        assert not list(tmp_path.iterdir())


def test_a_driver_of_another_machine_lives_while_it_counts(tmp_path: Path) -> None:
    write(tmp_path, host="elsewhere", count=0)
    os.utime(tmp_path / DRIVER, (0, 0))  # no clock decides: this one is of 1970
    ended = threading.Event()

    def count() -> None:
        number = 0
        while not ended.wait(0.02):
            number += 1
            new = tmp_path / "new"
            write_to = json.dumps({"host": "elsewhere", "pid": 1, "token": "x", "count": number})
            new.write_text(write_to)
            new.replace(tmp_path / DRIVER)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        with pytest.raises(UserError, match=r"process \d+ on elsewhere"), claimed(tmp_path, patience_s=5):
            pass
    finally:
        ended.set()
        counting.join()
    os.utime(tmp_path / DRIVER, (2**32, 2**32))  # nor one of 2106
    with claimed(tmp_path, patience_s=0.5):
        pass


def test_a_driver_that_was_taken_over_notices(tmp_path: Path) -> None:
    with claimed(tmp_path) as own:
        write(tmp_path, token="another")
        assert own.lost.wait(5)
    assert json.loads((tmp_path / DRIVER).read_text())["token"] == "another"  # it is not this one's to remove


@pytest.mark.parametrize("found", ["dead", "none", "dead, and so is who followed it", "unreadable"])
def test_of_many_drivers_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """At whatever moment the others look: files are read, linked and written after waits of any length."""
    boot = (process_start(os.getpid()) or "").rpartition(":")[0]
    dead = {"process_start": f"{boot}:1"}
    draw = random.Random(0)

    def late(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            time.sleep(draw.choice((0, 0, 0, 0.001, 0.01)))
            return function(*arguments)

        return call

    for name in ("read_record", "write_record"):
        monkeypatch.setattr(claim, name, late(getattr(claim, name)))
    monkeypatch.setattr(claim.os, "link", late(os.link))
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        if found == "unreadable":
            (folder / DRIVER).write_text("{")
        elif found != "none":
            write(folder, **dead)
            if found != "dead":
                (folder / DRIVER).rename(folder / f".{DRIVER}.after.w")
                write(folder, token="w", **dead)
        assert len(taking(folder, 8)) == 1
        left = json.loads((folder / DRIVER).read_text())
        assert left["process_start"] == process_start(os.getpid())


def taking(folder: Path, drivers: int) -> list[DriverClaim]:
    """Those of some drivers, all at once, that hold the claim in the end."""
    got: list[DriverClaim] = []

    def take(one: DriverClaim) -> None:
        try:
            claim._take(one, folder, 1.0)
        except UserError:
            return
        got.append(one)

    threads = [threading.Thread(target=take, args=(DriverClaim(folder),)) for _ in range(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"), claimed(tmp_path / "none"):
        pass
