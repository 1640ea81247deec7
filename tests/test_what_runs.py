"""Which tests run: none that would begin too late, and of each grid over families a sample that leaves nothing out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest


def _pytest(repository: Path, *arguments: str, until: str = "inf") -> str:
    environment = {**os.environ, "LM_EVAL_RECIPES_TESTS_UNTIL": until}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_nothing_begins_when_the_time_is_over(repository: Path) -> None:
    assert " passed" not in _pytest(repository, "tests/harness_ext/test_progress.py", until="1")


@pytest.mark.slow
def test_a_third_of_each_grid_over_families_is_slow_and_the_rest_long(repository: Path) -> None:
    grid = "tests/harness_ext/editing/test_pipeline.py::test_undo_is_bit_exact"
    collected = {
        markers: {
            line for line in _pytest(repository, "--collect-only", "-m", markers, grid).splitlines() if "::" in line
        }
        for markers in ("not slow", "slow and not long", "slow and long")
    }
    default, slow, long = collected.values()
    assert len(default | slow | long) == len(default) + len(slow) + len(long) and len(long) == 2 * len(slow)
    told = ("svd:keep.rank=3", "identity", "random-subspace:per_head=true,keep.rank=2")
    for specification, dtype in product(told, ("float32", "bfloat16", "float16", "float64")):
        assert any(specification in case and re.search(rf"\b{dtype}\b", case) for case in slow), (specification, dtype)
