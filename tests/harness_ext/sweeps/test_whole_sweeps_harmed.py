"""Whole sweeps that are harmed at random times and gone on with leave what an undisturbed one leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from filelock import FileLock

from tests.harness_ext.sweeps.whole_sweeps import LABELS, WholeSweep, board_of, drive, harms_of, left_by, small_disk

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and ends commands with their workers")
TRIALS = 40
SHORT = (0,)
"""The seed of a killed driver, with further kills."""
SEEDS = [pytest.param(seed, marks=pytest.mark.slow if seed in SHORT else pytest.mark.long) for seed in range(TRIALS)]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> tuple[WholeSweep, float]:
    """A sweep that nothing harms, and its seconds; all workers of a test run share the first one's."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "undisturbed"
    sweep = WholeSweep(folder / "sweep", folder / "tiny")
    with FileLock(f"{folder}.lock"):
        if not (folder / "seconds").exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(make_model("gpt2"), sweep.model)
            sweep.write()
            (folder / "seconds").write_text(str(drive(sweep, [], random.Random(0))))
    return sweep, float((folder / "seconds").read_text())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sweep_that_is_harmed_leaves_what_an_undisturbed_one_leaves(
    tmp_path: Path, undisturbed: tuple[WholeSweep, float], seed: int, record_property: Callable[[str, object], None]
) -> None:
    whole, seconds = undisturbed
    draw = random.Random(seed)
    harms = harms_of(seed, seconds, draw)
    sweep = WholeSweep(tmp_path, whole.model)
    sweep.write()
    full = any(harm.kind == "disk" for harm in harms)
    with small_disk(sweep.results) if full else nullcontext(True) as there:
        if not there:
            pytest.skip("no disk of its own may be mounted here, which is to be filled")
        try:
            took = drive(sweep, harms, draw)
            told = {"seed": seed, "seconds": took, "happened": sweep.happened, "starts": sweep.starts}
            record_property("trial", json.dumps(told))
            print(told)
            assert sweep.is_done() and sweep.processes() == ([], [])
            assert "Traceback" not in sweep.said(), sweep.said()
            found = left_by(sweep.results)
            assert found == left_by(whole.results) and len(found) == 2 * len(LABELS)
            assert board_of(sweep.results) == board_of(whole.results)
        finally:
            sweep.end()
            shutil.copytree(sweep.results / "sweeps", tmp_path / "sweeps", dirs_exist_ok=True) if full else None
