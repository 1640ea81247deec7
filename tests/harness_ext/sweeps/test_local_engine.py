"""Cells as processes of this machine: slots, GPUs, order, cancelling, and a driver that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness_ext.errors import UserError
from harness_ext.sweeps.engines import EngineOptions, engine
from harness_ext.sweeps.engines.base import Job, ready
from harness_ext.sweeps.engines.local import LocalEngine
from harness_ext.sweeps.job_files import HOLDER, NOT_BEGUN, living_process
from harness_ext.sweeps.visible_gpus import visible_gpus
from leaderboard.readers.sweep_state import ENDED, JOB, MANIFEST
from tests.harness_ext.sweeps.jobs import drain, ended, job, until


def times(folder: Path) -> tuple[float, float]:
    """When a cell of `TIMED` began and ended."""
    begun, end = (folder / "output.log").read_text().split()
    return float(begun), float(end)


TIMED = "import time; print(time.monotonic(), flush=True); time.sleep(0.2); print(time.monotonic())"


@pytest.mark.slow
def test_cells_run_one_after_another_in_one_slot(tmp_path: Path) -> None:
    local = LocalEngine(gpus=[])
    local.submit([job(tmp_path / name, TIMED) for name in "abc"])
    seen = drain(local)
    assert seen[0] == {"a", "b", "c"}
    spans = [times(tmp_path / name) for name in "abc"]
    assert spans[0][1] <= spans[1][0] and spans[1][1] <= spans[2][0]
    assert all(ended(tmp_path / name)["exit_code"] == 0 for name in "abc")


def test_slots_run_side_by_side(tmp_path: Path) -> None:
    """Each of two waits for the other's file, so both must run."""
    wait = "import pathlib, time, os; d = pathlib.Path({!r}); (d / os.environ['LM_EVAL_SWEEP_CELL']).touch()\n"
    wait += "while len(list(d.iterdir())) < 2: time.sleep(0.01)"
    (tmp_path / "met").mkdir()
    local = LocalEngine(jobs=2, gpus=[])
    local.submit([job(tmp_path / name, wait.format(str(tmp_path / "met")), timeout_s=30) for name in "ab"])
    drain(local)
    assert [ended(tmp_path / name)["reason"] for name in "ab"] == ["command", "command"]


@pytest.mark.slow
def test_each_cell_has_gpus_of_its_own(tmp_path: Path) -> None:
    show = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], time.monotonic(), flush=True); time.sleep(0.3);"
    show += "print(time.monotonic())"
    local = LocalEngine(gpus=["0", "1", "2"])
    sizes = {"a": 2, "b": 1, "c": 3, "d": 1}
    local.submit([job(tmp_path / name, show, gpus=gpus) for name, gpus in sizes.items()])
    drain(local)
    spans = {name: (tmp_path / name / "output.log").read_text().split() for name in sizes}
    assert {name: len(span[0].split(",")) for name, span in spans.items()} == sizes
    for one, (devices, begun, end) in spans.items():
        for other, (devices_of_other, begun_of_other, end_of_other) in spans.items():
            if one < other and float(begun) < float(end_of_other) and float(begun_of_other) < float(end):
                assert not set(devices.split(",")) & set(devices_of_other.split(","))


def test_more_gpus_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cell a needs 4 GPUs and .* has 2: lower `gpus` of its model"):
        LocalEngine(gpus=["0", "1"]).submit([job(tmp_path / "a", TIMED, gpus=4)])
    assert not (tmp_path / "a").exists()


def test_the_gpus_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-ab")
    assert visible_gpus() == ["3", "GPU-ab"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    query = tmp_path / "nvidia-smi"
    query.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    query.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert visible_gpus() == ["0", "1"]
    query.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert visible_gpus() == []


@pytest.mark.slow
def test_cells_wait_for_the_baseline(tmp_path: Path) -> None:
    manifest = tmp_path / "baseline" / MANIFEST
    local = LocalEngine(jobs=4, gpus=[])
    local.submit(
        [
            job(tmp_path / "laser", TIMED, after=("baseline",)),
            job(tmp_path / "baseline", f"{TIMED}; open({str(manifest)!r}, 'w').write('{{}}')"),
        ]
    )
    drain(local)
    assert times(tmp_path / "baseline")[1] <= times(tmp_path / "laser")[0]


def test_cells_of_a_failed_baseline_are_not_begun(tmp_path: Path) -> None:
    local = LocalEngine(jobs=4, gpus=[])
    local.submit(
        [job(tmp_path / "laser", TIMED, after=("baseline",)), job(tmp_path / "baseline", "raise SystemExit(1)")]
    )
    drain(local)
    assert ended(tmp_path / "baseline")["exit_code"] == 1
    assert ended(tmp_path / "laser")["reason"] == NOT_BEGUN
    assert not (tmp_path / "laser" / "output.log").read_text()


def test_what_is_ready() -> None:
    def named(cell: str, *after: str) -> Job:
        return Job(cell, ("true",), {}, Path(cell), 1, None, after)

    jobs = [named("a", "z"), named("b", "c"), named("c"), named("d", "gone")]
    assert [one.cell for one in ready(jobs, {"z"})] == ["c", "d"]


def test_cancelling_what_waits_and_what_runs(tmp_path: Path) -> None:
    local = LocalEngine(gpus=[])
    local.submit([job(tmp_path / name, "import time; print(1, flush=True); time.sleep(600)") for name in "ab"])
    until((tmp_path / "a" / "output.log").read_text)
    local.cancel(["a", "b", "unknown"])
    drain(local)
    assert ended(tmp_path / "a")["reason"] == "machine" and not (tmp_path / "b" / JOB).exists()


DRIVER = """
import sys, time
from pathlib import Path
from harness_ext.sweeps.engines.base import Job
from harness_ext.sweeps.engines.local import LocalEngine
folder = Path(sys.argv[1])
local = LocalEngine(jobs=2, gpus=["0", "1", "2"])
wait = "import time, pathlib\\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.02)\\nprint('whole')"
code = wait.format(str(folder / "go"))
local.submit([Job(name, (sys.executable, "-c", code), {}, folder / name, 1, None) for name in "ab"])
print("submitted", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_workers_outlive_their_driver_and_are_adopted(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    )
    with driver:
        assert driver.stdout is not None and driver.stdout.readline() == b"submitted\n"
        until(lambda: all(living_process(tmp_path / name) for name in "ab"))
        os.killpg(driver.pid, signal.SIGKILL)
    processes = {name: living_process(tmp_path / name) for name in "ab"}
    assert None not in processes.values()
    local = LocalEngine(jobs=3, gpus=["0", "1", "2"])
    show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    local.submit([job(tmp_path / "a", "raise SystemExit(9)"), job(tmp_path / "b", "raise SystemExit(9)")])
    local.submit([job(tmp_path / "c", show)])
    until(lambda: local.alive() == {"a", "b"})
    # The adopted hold the GPUs that the dead driver gave them.
    assert (tmp_path / "c" / "output.log").read_text() == "2\n"
    assert {name: living_process(tmp_path / name) for name in "ab"} == processes
    (tmp_path / "go").touch()
    drain(local)
    assert [(tmp_path / name / "output.log").read_text() for name in "ab"] == ["whole\n", "whole\n"]


def test_a_cell_is_tried_again_when_the_worker_before_has_ended(tmp_path: Path) -> None:
    """Its last record may be settled while it still takes its leave; it is not the worker of the next try."""
    local = LocalEngine(gpus=[])
    local._workers["a"] = subprocess.Popen(["sleep", "0.5"])
    local.submit([job(tmp_path / "a", "print('ran')")])
    drain(local)
    assert (tmp_path / "a" / "output.log").read_text() == "ran\n"
    assert (tmp_path / "a" / HOLDER).read_text() == ""  # nobody is taken for its worker


def test_a_worker_is_known_before_its_record_is_there(tmp_path: Path) -> None:
    """A driver that begins again in that moment takes the record of an earlier try away, or so it believes."""
    first = LocalEngine(gpus=["0"])
    first.submit([job(tmp_path / "a", "import time; time.sleep(600)")])
    until((tmp_path / "a" / JOB).exists)
    process = living_process(tmp_path / "a")
    first.close()
    (tmp_path / "a" / JOB).unlink()
    heir = LocalEngine(gpus=["0"])
    heir.submit([job(tmp_path / name, "raise SystemExit(9)") for name in "ab"])
    assert heir.alive() == {"a", "b"} and living_process(tmp_path / "a") == process
    assert not (tmp_path / "b" / JOB).exists()  # the only GPU is taken
    heir.cancel(["a", "b"])
    until((tmp_path / "a" / ENDED).exists)
    assert ended(tmp_path / "a")["reason"] == "machine"


def test_an_adopted_cell_can_be_cancelled(tmp_path: Path) -> None:
    first = LocalEngine(gpus=[])
    first.submit([job(tmp_path / "a", "import time; time.sleep(600)")])
    until(lambda: living_process(tmp_path / "a"))
    first.close()
    heir = LocalEngine(gpus=[])
    heir.submit([job(tmp_path / "a", "raise SystemExit(9)")])
    heir.cancel(["a"])
    drain(heir)
    assert ended(tmp_path / "a")["reason"] == "machine"


def test_a_cell_that_runs_on_another_machine_is_left_there(tmp_path: Path) -> None:
    """It is adopted, and takes no slot of this machine; it is over when it says so."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / JOB).write_text(json.dumps({"cell": "a", "host": "elsewhere", "pid": 1, "devices": "0"}))
    local = LocalEngine(gpus=["0"])
    local.submit([job(tmp_path / "a", "raise SystemExit(9)"), job(tmp_path / "b", "print('ran')")])
    until(lambda: local.alive() == {"a"})
    assert (tmp_path / "b" / "output.log").read_text() == "ran\n" and not (tmp_path / "a" / "asked.json").exists()
    (tmp_path / "a" / ENDED).write_text("{}")
    assert local.alive() == set()


def test_another_process_of_the_same_number_is_no_worker(tmp_path: Path) -> None:
    local = LocalEngine(gpus=[])
    (tmp_path / "a").mkdir()
    record = {"cell": "a", "host": os.uname().nodename, "pid": os.getpid(), "process_start": "an earlier boot:1"}
    (tmp_path / "a" / JOB).write_text(json.dumps(record))
    local.submit([job(tmp_path / "a", "print('ran')")])
    drain(local)
    assert (tmp_path / "a" / "output.log").read_text() == "ran\n"


def test_a_job_is_made_anew_after_an_earlier_try(tmp_path: Path) -> None:
    local = LocalEngine(gpus=[])
    for code in (1, 0):
        local.submit([job(tmp_path / "a", f"raise SystemExit({code})")])
        drain(local)
        assert ended(tmp_path / "a")["exit_code"] == code


@pytest.mark.parametrize(
    ("words", "hidden"), [(("--token", "abcdefgh"), "***"), (("--model_args", "pretrained=x,token=abcdefgh"), "token=")]
)
def test_a_command_with_a_secret_is_refused(tmp_path: Path, words: tuple[str, ...], hidden: str) -> None:
    asked = Job("a", ("lm_eval", "run", *words), {}, tmp_path / "a", 1, None)
    with pytest.raises(UserError, match="the command of cell a holds a secret") as caught:
        LocalEngine(gpus=[]).submit([asked])
    assert hidden in str(caught.value) and "abcdefgh" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_an_environment_with_a_secret_is_refused(tmp_path: Path) -> None:
    asked = Job("a", ("lm_eval",), {"HF_TOKEN": "abcdefgh", "X": "1"}, tmp_path / "a", 1, None)
    with pytest.raises(UserError, match="the environment of cell a names HF_TOKEN: cells inherit it"):
        LocalEngine(gpus=[]).submit([asked])


def test_engines_by_name() -> None:
    assert isinstance(engine("local", EngineOptions(jobs=3)), LocalEngine)
    with pytest.raises(UserError, match=r"--on slrum: no such engine; did you mean 'slurm'\?"):
        engine("slrum")


@pytest.mark.parametrize(("name", "package", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")])
def test_an_engine_whose_package_is_absent(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = f"{package} is not installed: pip install 'lm-eval-recipes[{extra}]', or use --on local"
    with pytest.raises(UserError) as caught:
        engine(name)
    assert str(caught.value) == message


def test_no_engine_is_imported_without_being_asked_for() -> None:
    code = "import sys; import harness_ext.sweeps.engines as engines; engines.engine('local')\n"
    code += "print({'ray', 'submitit', 'fsspec', 'torch'} & {*sys.modules})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        LocalEngine(gpus=[]).submit([job(tmp_path / "a", TIMED)])
