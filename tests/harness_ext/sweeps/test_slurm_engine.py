"""Cells as Slurm's arrays: the very text that sbatch gets, a Slurm of small scripts, and submitit's local executor."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness_ext.errors import UserError
from harness_ext.storage.whole_files import write_record
from harness_ext.sweeps.engines import EngineOptions, engine
from harness_ext.sweeps.engines.base import Job
from harness_ext.sweeps.engines.slurm import SlurmEngine
from harness_ext.sweeps.engines.slurm_options import slurm_mistakes
from harness_ext.sweeps.job_files import living_process, read_record
from leaderboard.readers.sweep_state import ENDED
from tests.harness_ext.sweeps.slurm_of_scripts import slurm_of_scripts

pytest.importorskip("submitit", reason="submitit is not installed")

RAN = (sys.executable, "-c", "import os; print(os.environ['LM_EVAL_SWEEP_CELL'])")
SLEEPS = (sys.executable, "-c", "import time; time.sleep(600)")


def job(folder: Path, command: tuple[str, ...] = RAN, *, gpus: int = 0, after: tuple[str, ...] = ()) -> Job:
    environment = {"LM_EVAL_SWEEP": "low-rank", "LM_EVAL_SWEEP_CELL": folder.name}
    return Job(folder.name, command, environment, folder, gpus, 14_400, after)


def drain(slurm: SlurmEngine, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while alive := slurm.alive():
        assert time.monotonic() < end, f"still alive: {alive}"
        time.sleep(0.05)


def ended(folder: Path) -> dict[str, Any]:
    record = read_record(folder / ENDED)
    assert record is not None
    return record


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return slurm_of_scripts(tmp_path, monkeypatch)


def scripts(state: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((state / "scripts").iterdir())}


GOLDEN = """#!/bin/bash

# Parameters
#SBATCH --account=project
#SBATCH --array=0-1%1
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterany:100
#SBATCH --error={logs}/%A_%a_0_log.err
#SBATCH --gpus-per-node=4
#SBATCH --job-name={name}
#SBATCH --mem=64GB
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output={logs}/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --signal=USR2@90
#SBATCH --time=245
#SBATCH --wckey=submitit

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {logs}/%A_%a_%t_log.out --error {logs}/%A_%a_%t_log.err {python} -u -m submitit.core._submit\
 {logs}
"""


def test_the_text_that_sbatch_gets(cluster: Path, tmp_path: Path) -> None:
    (cluster / "hold").touch()
    options = {"partition": "gpu", "account": "project", "constraint": "a100|h100", "array_parallelism": 1}
    slurm = engine("slurm", EngineOptions(slurm={**options, "cpus_per_task": 8, "mem_gb": 64}))
    slurm.submit([job(tmp_path / name, gpus=4, after=("base",)) for name in "ab"] + [job(tmp_path / "base", gpus=4)])
    texts = scripts(cluster)
    assert texts.keys() == {"100", "101"}
    logs = tmp_path / ".submitit"
    name = (read_record(tmp_path / "a" / "slurm.json") or {})["name"]
    assert re.fullmatch("lm-eval-sweep-low-rank-[0-9a-f]{12}", name)
    assert texts["101"] == GOLDEN.format(logs=logs, python=sys.executable, name=name)
    assert "--array" not in texts["100"] and "--dependency" not in texts["100"]


def test_cells_that_need_the_same_are_one_array(cluster: Path, tmp_path: Path) -> None:
    (cluster / "hold").touch()
    slurm = SlurmEngine({})
    slurm.submit([job(tmp_path / f"{gpus}-{place}", gpus=gpus) for gpus in (1, 2) for place in range(30)])
    texts = scripts(cluster)
    assert sum("--array=0-29%30" in text for text in texts.values()) == len(texts) == 2


@pytest.mark.slow
def test_cells_run_as_tasks_and_are_adopted(cluster: Path, tmp_path: Path) -> None:
    """The second driver finds them by what the first wrote down; Slurm's silence takes nobody for dead."""
    go = tmp_path / "go"
    wait = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)\nprint('whole')"
    command = (sys.executable, "-c", wait)
    first = SlurmEngine({"partition": "gpu"})
    first.submit([job(tmp_path / name, command) for name in "abc"])
    first.close()
    heir = SlurmEngine({})
    heir.submit([job(tmp_path / name) for name in "abc"])
    assert heir.alive() == {"a", "b", "c"} and len(scripts(cluster)) == 1
    (cluster / "silent").touch()
    assert heir.alive() == {"a", "b", "c"}
    go.touch()
    drain(heir)
    assert [(tmp_path / name / "output.log").read_text() for name in "abc"] == ["whole\n"] * 3
    # What has ended is submitted anew.
    (cluster / "silent").unlink()
    heir.submit([job(tmp_path / "a")])
    drain(heir)
    assert (tmp_path / "a" / "output.log").read_text() == "a\n"


class Killed(BaseException):
    """The driver dies."""


def counts_its_runs(folder: Path) -> tuple[str, ...]:
    """A command that leaves a file for each time that it is run."""
    runs = str(folder / "runs")
    return (sys.executable, "-c", f"import os, uuid; os.makedirs({runs!r} + '/' + uuid.uuid4().hex)")


@pytest.mark.slow
@pytest.mark.parametrize("cells", ["a", "abc"])
def test_a_driver_that_is_killed_right_after_sbatch(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: str
) -> None:
    """The next one finds the jobs by their name, and nothing is run twice."""

    def dies(path: Path, record: dict[str, Any]) -> None:
        if "job_id" in record and path.parent.name == cells[-1]:
            raise Killed
        write_record(path, record)

    jobs = [job(tmp_path / name, counts_its_runs(tmp_path / name)) for name in cells]
    with monkeypatch.context() as patch:
        patch.setattr("harness_ext.sweeps.engines.slurm.write_record", dies)
        with pytest.raises(Killed):
            SlurmEngine({}).submit(jobs)
    (cluster / "silent").touch()
    with pytest.raises(UserError, match=r"squeue does not answer, and cell \w may be submitted already, as lm-eval"):
        SlurmEngine({}).submit(jobs[-1:])
    (cluster / "silent").unlink()
    heir = SlurmEngine({})
    heir.submit(jobs)
    assert heir.alive() == set(cells) and len(scripts(cluster)) == 1
    drain(heir)
    assert [len(list((tmp_path / name / "runs").iterdir())) for name in cells] == [1] * len(cells)


@pytest.mark.slow
@pytest.mark.parametrize("cells", ["a", "abc"])
def test_an_sbatch_that_gives_up_waiting(cluster: Path, tmp_path: Path, cells: str) -> None:
    """Slurm has taken the job all the same, which would only wait for its arguments."""
    jobs = [job(tmp_path / name, counts_its_runs(tmp_path / name)) for name in cells]
    (cluster / "late").touch()
    with pytest.raises(UserError, match="Slurm takes no job: sbatch: error: .* Socket timed out"):
        SlurmEngine({}).submit(jobs)
    (cluster / "late").unlink()
    heir = SlurmEngine({})
    heir.submit(jobs)
    assert len(scripts(cluster)) == 2
    drain(heir)
    time.sleep(0.5)
    assert [len(list((tmp_path / name / "runs").iterdir())) for name in cells] == [1] * len(cells)


@pytest.mark.slow
def test_cancelling(cluster: Path, tmp_path: Path) -> None:
    slurm = SlurmEngine({})
    slurm.submit([job(tmp_path / "a", SLEEPS)])
    end = time.monotonic() + 30
    while living_process(tmp_path / "a") is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    slurm.cancel(["a", "unknown"])
    drain(slurm)
    while read_record(tmp_path / "a" / ENDED) is None:  # the worker outlives the job for a moment
        assert time.monotonic() < end + 30
        time.sleep(0.02)
    assert ended(tmp_path / "a")["reason"] == "machine"


def test_a_job_that_is_gone_without_a_word(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness_ext.sweeps.engines.slurm._NEWS_SECONDS", 0.2)
    (cluster / "hold").touch()
    slurm = SlurmEngine({})
    slurm.submit([job(tmp_path / "a")])
    assert slurm.alive() == {"a"}
    (cluster / "held").unlink()
    drain(slurm)
    assert not (tmp_path / "a" / ENDED).exists()


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    with pytest.raises(UserError, match=r"takes no job: Could not detect \"srun\".*run the sweep where sbatch works"):
        SlurmEngine({}).submit([job(tmp_path / "a")])


def test_sbatch_refuses(cluster: Path, tmp_path: Path) -> None:
    sbatch = tmp_path / "commands" / "sbatch"
    sbatch.write_text("#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpux' >&2; exit 1\n")
    with pytest.raises(UserError, match="Slurm takes no job: sbatch: error: invalid partition specified: gpux"):
        SlurmEngine({"partition": "gpux"}).submit([job(tmp_path / "a")])


def test_a_cell_without_a_time_limit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cell a has no time limit.*`cells: \{timeout: 4h\}`"):
        SlurmEngine({}).submit([Job("a", RAN, {}, tmp_path / "a", 0, None)])


def test_all_mistakes_of_the_options_at_once() -> None:
    options = {"partiton": "x", "array_parallelism": 0, "account": "a\n#SBATCH --x", "qos": 3, "mem_gb": True}
    assert slurm_mistakes(options) == [
        "slurm.partiton: unknown key; did you mean 'partition'?",
        "slurm.array_parallelism: give a whole number from 1 (found 0)",
        "slurm.account: give one word, as sbatch takes it (found 'a\\n#SBATCH --x')",
        "slurm.qos: give one word, as sbatch takes it (found 3)",
        "slurm.mem_gb: give a whole number from 1 (found true)",
    ]
    with pytest.raises(UserError, match="partiton: unknown key"):
        SlurmEngine(options)
    assert slurm_mistakes({"partition": "gpu", "account": "x", "array_parallelism": 16}) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit drops its processes
def test_submitits_local_executor(cluster: Path, tmp_path: Path) -> None:
    """Its ids are numbers of processes, so that a list of all processes is its queue."""
    (tmp_path / "commands" / "squeue").write_text("#!/bin/bash\nps -eo pid=,stat= | awk '$2 !~ /Z/ {print $1}'\n")
    local = SlurmEngine({"partition": "gpu"}, cluster="local")
    local.submit([job(tmp_path / name) for name in "ab"])
    drain(local)
    assert [(tmp_path / name / "output.log").read_text() for name in "ab"] == ["a\n", "b\n"]
    assert [ended(tmp_path / name)["exit_code"] for name in "ab"] == [0, 0]
