"""One job run by a worker: its records, its bounded output, and every way in which it can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness_ext.storage.whole_files import write_record
from harness_ext.sweeps.bounded_log import BoundedLog
from harness_ext.sweeps.job_files import Heartbeats, living_process, read_record
from harness_ext.sweeps.outcome import ending
from harness_ext.sweeps.worker import WITH_PARENT, call, start
from leaderboard.readers.sweep_life import process_start
from leaderboard.readers.sweep_state import ASKED, ENDED, HEARTBEAT, JOB, MANIFEST, OUTCOME, OUTPUT


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def asked(folder: Path, command: list[str], timeout_s: float | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    write_record(folder / ASKED, {"cell": folder.name, "command": command, "gpus": 0, "timeout_s": timeout_s})
    return folder


def until(true: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def record(path: Path) -> dict[str, Any]:
    found = read_record(path)
    assert found is not None
    return found


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_command_that_ends_by_itself(tmp_path: Path, code: int) -> None:
    folder = asked(tmp_path / "cell", python(f"print('said'); raise SystemExit({code})"))
    assert call(str(folder), json.dumps({"LM_EVAL_SWEEP": "s"})) == 0
    ended = record(folder / ENDED)
    assert (ended["exit_code"], ended["signal"], ended["reason"]) == (code, None, "command")
    assert (folder / OUTPUT).read_text() == "said\n"
    job = record(folder / JOB)
    assert job["cell"] == "cell" and job["command"] == python(f"print('said'); raise SystemExit({code})")
    assert job["host"] == ended["host"] == os.uname().nodename
    assert living_process(folder) is None


def test_the_environment_reaches_the_command_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-to-be-seen-anywhere")
    monkeypatch.setenv("PWD", "/a/folder/of/mine")  # what a shell calls the folder is no password
    folder = asked(
        tmp_path / "cell",
        python(
            "import os; print(os.environ['SHOWN'], 'x' + os.environ['HF_TOKEN'] + 'y', os.environ['PWD'], flush=True)"
        ),
    )
    call(str(folder), json.dumps({"SHOWN": "given"}))
    assert (folder / OUTPUT).read_text() == "given x***y /a/folder/of/mine\n"
    assert not [path for path in folder.rglob("*") if b"not-to-be-seen" in path.read_bytes()]


@pytest.mark.slow
def test_a_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    child = "import subprocess, time; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); time.sleep(600)"
    folder = asked(tmp_path / "cell", python(child), timeout_s=1.0)
    call(str(folder), "{}")
    ended = record(folder / ENDED)
    assert ended["reason"] == "timeout" and ended["signal"] == "SIGTERM"
    assert process_start(int((folder / OUTPUT).read_text())) is None


def test_a_worker_that_is_told_to_end_ends_its_command(tmp_path: Path) -> None:
    folder = asked(tmp_path / "cell", python("import os, time; print(os.getpid(), flush=True); time.sleep(600)"))
    worker = start(folder, {})
    command = int(until((folder / OUTPUT).read_text))
    assert living_process(folder) == worker.pid
    worker.terminate()
    assert worker.wait(30) == 0
    assert record(folder / ENDED)["reason"] == "machine" and process_start(command) is None


def test_a_killed_command_is_the_machines_failure(tmp_path: Path) -> None:
    folder = asked(tmp_path / "cell", python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    call(str(folder), "{}")
    ended = record(folder / ENDED)
    assert (ended["exit_code"], ended["signal"], ended["reason"]) == (None, "SIGKILL", "machine")


def test_a_command_that_fails_since_it_was_told_to_end_is_the_machines_failure(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); print(1, flush=True);"
    folder = asked(tmp_path / "cell", python(code + "time.sleep(600)"))
    worker = start(folder, {})
    until((folder / OUTPUT).read_text)
    worker.send_signal(signal.SIGUSR2)
    worker.wait(30)
    assert (record(folder / ENDED)["exit_code"], record(folder / ENDED)["reason"]) == (1, "machine")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_worker_takes_its_command_along(tmp_path: Path) -> None:
    folder = asked(tmp_path / "cell", python("import os, time; print(os.getpid(), flush=True); time.sleep(600)"))
    worker = start(folder, {})
    command = int(until((folder / OUTPUT).read_text))
    worker.kill()
    worker.wait(30)
    until(lambda: process_start(command) is None)
    assert living_process(folder) is None and not (folder / ENDED).exists()


ORPHAN = """
import os, signal, time
from harness_ext.sweeps.worker import die_with_parent
parent = os.getpid()
dies = die_with_parent(signal.SIGKILL, parent)
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    dies()
    print("lives", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_process_whose_parent_died_before_it_could_ask_dies_as_well(tmp_path: Path) -> None:
    assert subprocess.run(python(ORPHAN), capture_output=True, text=True, check=True).stdout == ""
    folder = asked(tmp_path / "cell", python("print('said')"))
    worker = [sys.executable, "-m", "harness_ext.sweeps.worker", str(folder), WITH_PARENT]
    assert subprocess.run([*worker, str(os.getppid())], check=False).returncode == -signal.SIGTERM
    assert not (folder / JOB).exists()
    assert subprocess.run([*worker, str(os.getpid())], check=False).returncode == 0
    assert record(folder / ENDED)["exit_code"] == 0


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    folder = asked(tmp_path / "cell", ["/no/such/command"])
    call(str(folder), "{}")
    assert record(folder / ENDED)["exit_code"] == 127
    assert (folder / OUTPUT).read_text() == "error: /no/such/command cannot be run: No such file or directory\n"


def test_one_worker_a_folder(tmp_path: Path) -> None:
    folder = asked(tmp_path / "cell", python("import time; print('first', flush=True); time.sleep(600)"))
    first = start(folder, {})
    until((folder / OUTPUT).read_text)
    assert start(folder, {}).wait(30) == 3
    assert living_process(folder) == first.pid and (folder / OUTPUT).read_text() == "first\n"
    first.terminate()
    first.wait(30)


@pytest.mark.slow
def test_the_heartbeat_counts(tmp_path: Path) -> None:
    folder = asked(tmp_path / "cell", python("import time; time.sleep(600)"))
    worker = start(folder, {})
    until(lambda: (folder / HEARTBEAT).exists() and (folder / HEARTBEAT).read_text() == "2\n")
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)


def test_a_command_that_prints_a_lot_keeps_the_disk_safe(tmp_path: Path) -> None:
    code = "import sys; [sys.stdout.write(f'{n:07d}' * 1000 + '\\n') for n in range(10_000)]"
    folder = asked(tmp_path / "cell", python(code))
    call(str(folder), "{}")
    text = (folder / OUTPUT).read_bytes()
    assert text.startswith(b"0000000") and text.endswith(b"0009999\n")
    assert b" bytes left out ...\n" in text and len(text) < 1.4e6


@pytest.mark.parametrize("block", [1, 7, 100, 10_000])
def test_a_log_is_its_head_and_its_tail(tmp_path: Path, block: int) -> None:
    text = b"".join(b"%06d" % number for number in range(500))
    log = BoundedLog(tmp_path / "log", head=60, tail=120)
    most = 0
    for place in range(0, len(text), block):
        log.write(text[place : place + block])
        most = max(most, (tmp_path / "log").stat().st_size)
    log.close()
    marker = b"\n... %d bytes left out ...\n" % (len(text) - 60 - 120)
    assert (tmp_path / "log").read_bytes() == text[:60] + marker + text[-120:]
    assert most <= 60 + 40 + 2 * 120


def test_a_log_within_its_bounds_is_whole(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log", head=60, tail=120)
    log.write(b"x" * 180)
    log.close()
    assert (tmp_path / "log").read_bytes() == b"x" * 180


@pytest.mark.parametrize("block", [1, 3, 5, 100])
def test_secrets_stay_out_of_a_log_however_they_are_printed(tmp_path: Path, block: int) -> None:
    log = BoundedLog(tmp_path / "log", ["secret-word", "secret"])
    text = b"a secret-word, a secre, a secret and secret-wor"
    for place in range(0, len(text), block):
        log.write(text[place : place + block])
    log.close()
    assert b"secret" not in (tmp_path / "log").read_bytes()
    assert (tmp_path / "log").read_bytes() == b"a ***, a secre, a *** and ***-wor"


def test_heartbeats_of_another_machine(tmp_path: Path) -> None:
    """Alive while it counts, whatever its clock says; dead after a while without a count, or once it has ended."""
    heartbeats = Heartbeats(patience_s=10)
    assert not heartbeats.alive(tmp_path, 0)
    write_record(tmp_path / JOB, {"host": "elsewhere", "pid": 1})
    assert heartbeats.alive(tmp_path, 0) and heartbeats.alive(tmp_path, 9)
    (tmp_path / HEARTBEAT).write_text("4\n")
    assert heartbeats.alive(tmp_path, 11)
    os.utime(tmp_path / HEARTBEAT, (0, 0))
    assert heartbeats.alive(tmp_path, 20) and not heartbeats.alive(tmp_path, 21)
    (tmp_path / HEARTBEAT).write_text("5\n")
    assert heartbeats.alive(tmp_path, 22)
    write_record(tmp_path / ENDED, {})
    assert not heartbeats.alive(tmp_path, 22)


def test_a_worker_imports_nothing_heavy() -> None:
    code = (
        "import sys, harness_ext.sweeps.worker; print({'torch', 'transformers', 'pydantic', 'duckdb'} & {*sys.modules})"
    )
    told = subprocess.run(python(code), capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


@pytest.mark.parametrize(
    ("left", "runs"),
    [
        ({}, True),
        ({OUTCOME: {"state": "done"}}, True),
        ({OUTCOME: {"state": "failed"}}, False),
        ({OUTCOME: {"state": "waiting"}}, False),
        ({ENDED: {"exit_code": 1, "reason": "command"}}, False),
        ({ENDED: {"exit_code": 0, "reason": "command"}, MANIFEST: {"runs": [], "mistake": None}}, True),
    ],
)
def test_a_command_is_not_begun_where_what_it_waits_for_is_not_done(
    tmp_path: Path, left: dict[str, dict[str, Any]], runs: bool
) -> None:
    (tmp_path / "baseline").mkdir()
    for name, content in left.items():
        write_record(tmp_path / "baseline" / name, content)
    folder = asked(tmp_path / "cell", python("print('said')"))
    write_record(folder / ASKED, {**record(folder / ASKED), "after": ["baseline"]})
    assert call(str(folder), "{}") == 0
    ended = ending(folder)
    assert ended.begun == runs and (folder / OUTPUT).read_text() == ("said\n" if runs else "")
