"""Cells as tasks of Ray: a box of its own, killed workers, and machines that do not see the folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness_ext.errors import UserError
from harness_ext.sweeps.engines.ray import RayEngine
from harness_ext.sweeps.engines.ray_task import work
from harness_ext.sweeps.job_files import living_process, read_record
from leaderboard.readers.sweep_life import process_start
from leaderboard.readers.sweep_state import ASKED, ENDED, JOB, MANIFEST
from tests.harness_ext.sweeps.jobs import drain, ended, job, until

# Looked for and not imported, which would cost every collection of the tests a second.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")]


SECONDS = 180  # a cluster takes its time


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """Two cells at once, whatever the machine has."""
    address = os.environ.pop("RAY_ADDRESS", None)
    engine = RayEngine(jobs=2)
    yield engine
    engine.close()
    if address is not None:
        os.environ["RAY_ADDRESS"] = address


def test_cells_run_with_their_environment(engine: RayEngine, tmp_path: Path) -> None:
    code = "import os; print(os.environ['LM_EVAL_SWEEP_CELL'])"
    manifest = f"; open({str(tmp_path / 'base' / MANIFEST)!r}, 'w').write('{{}}')"
    engine.submit(
        [
            *(job(tmp_path / name, code, after=("base",)) for name in ("a", "b")),
            job(tmp_path / "base", code + manifest),
        ]
    )
    drain(engine, SECONDS)
    for name in ("a", "b", "base"):
        assert (tmp_path / name / "output.log").read_text() == f"{name}\n"
        assert ended(tmp_path / name)["exit_code"] == 0 and (tmp_path / name / JOB).exists()


def test_a_cell_that_is_cancelled_and_one_whose_worker_is_killed(engine: RayEngine, tmp_path: Path) -> None:
    """Neither leaves its command running, and nothing says that they ended by themselves."""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    engine.submit([job(tmp_path / name, code) for name in ("a", "b", "c")])
    output = {name: tmp_path / name / "output.log" for name in ("a", "b")}
    until(lambda: engine.alive() and all(path.exists() and path.read_text() for path in output.values()), SECONDS)
    commands = [int(path.read_text()) for path in output.values()]
    worker = living_process(tmp_path / "b")
    assert worker is not None
    engine.cancel(["a", "c"])
    os.kill(worker, 9)
    drain(engine, SECONDS)
    until(lambda: not any(process_start(command) for command in commands), SECONDS)
    assert (read_record(tmp_path / "a" / ENDED) or {"reason": "machine"})["reason"] == "machine"
    assert not (tmp_path / "b" / ENDED).exists() and not (tmp_path / "c" / JOB).exists()


def test_records_of_a_machine_that_does_not_see_the_folder(engine: RayEngine, tmp_path: Path) -> None:
    cell = job(tmp_path / "a", "import sys; print('far'); open(sys.argv[1], 'w').write('{}')")
    engine.submit([replace(cell, command=(*cell.command, str(tmp_path / "a" / MANIFEST)))])
    # As from the other machine: the folder is not there.
    shutil.move(tmp_path / "a", tmp_path / "moved")
    records = json.loads(work(str(tmp_path / "a"), (tmp_path / "moved" / ASKED).read_text(), "{}"))
    assert records.keys() == {"job.json", "output.log", "manifest.json", "ended.json"}
    assert (records["output.log"], records["manifest.json"]) == ("far\n", "{}") and not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    drain(engine, SECONDS)
    assert ended(tmp_path / "a")["exit_code"] == 0 and (tmp_path / "a" / MANIFEST).read_text() == "{}"


def test_more_gpus_than_any_machine_has(engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cell a needs 64 GPUs and no machine of the Ray cluster has more than \d"):
        engine.submit([job(tmp_path / "a", "", gpus=64)])


DRIVER = """
import sys, time
from pathlib import Path
from harness_ext.sweeps.engines.base import Job
from harness_ext.sweeps.engines.ray import RayEngine
folder = Path(sys.argv[1])
code = "import os, time; print(os.getpid(), os.environ.get('OMP_NUM_THREADS'), flush=True); time.sleep(600)"
engine = RayEngine(jobs=1)
engine.submit([Job("a", (sys.executable, "-c", code), {}, folder, 1, None)])
while engine.alive():
    time.sleep(0.1)
"""


def test_cells_end_with_the_driver_and_have_its_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    output = tmp_path / "a" / "output.log"
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "a")], start_new_session=True) as driver:
        until(lambda: output.exists() and output.read_text().endswith("\n"), SECONDS)
        driver.kill()
    command, threads = output.read_text().split()
    assert threads == "3"
    until(lambda: process_start(int(command)) is None, SECONDS)
