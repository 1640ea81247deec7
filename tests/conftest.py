"""Settings for the whole suite: no network, no user's caches, one thread for each numerical library.

The variables are set at import, before a test module can import a library that reads them only once.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
_HOME = tempfile.TemporaryDirectory(prefix="lm-eval-recipes-tests-")

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
