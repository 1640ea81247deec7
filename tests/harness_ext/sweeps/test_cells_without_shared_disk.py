"""Two cells as on two machines that share no disk: the second finds the baseline of the first; both equal one run."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness_ext.storage.remote import RemoteResults
from harness_ext.sweeps.engines.base import Job
from harness_ext.sweeps.engines.local import LocalEngine
from harness_ext.sweeps.job_files import read_record
from leaderboard.readers.sweep_state import ENDED, MANIFEST

RUN = ("run", "--model", "hf", "--model_args", "pretrained=demo", "--tasks", "int_mult", "--limit", "24")
RUN += ("--batch_size", "16", "--device", "cpu")


def scores(root: Path) -> dict[str, Any]:
    """By recipe, the digest of its weights and what each document got."""
    found = {}
    for path in root.glob("demo/*/receipt.json"):
        receipt = json.loads(path.read_text())
        (samples,) = path.parent.glob("samples_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        found[receipt["recipe"]["label"]] = (receipt["weights"]["digest_after"], [row["resps"] for row in rows])
    return found


@pytest.mark.slow
def test_cells_of_two_machines_equal_one_run(demo_run, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    jobs = [
        Job(
            recipe,
            (
                *(sys.executable, "-m", "harness_ext", *RUN, "--recipe", recipe, "--output_path", url),
                *("--manifest", str(tmp_path / "cells" / recipe / MANIFEST)),
            ),
            {"LM_EVAL_RECIPES_CACHE": str(tmp_path / "cache" / recipe)},
            tmp_path / "cells" / recipe,
            gpus=0,
            timeout_s=600,
            after=after,
        )
        for recipe, after in (("baseline", ()), ("laser", ("baseline",)))
    ]
    local = LocalEngine(jobs=2, gpus=[])
    local.submit(jobs)
    end = time.monotonic() + 600
    while local.alive():
        assert time.monotonic() < end
        time.sleep(0.1)
    for job in jobs:
        assert (read_record(job.folder / ENDED) or {})["exit_code"] == 0, (job.folder / "output.log").read_text()
    assert "baseline: kept from" in (tmp_path / "cells/laser/output.log").read_text()

    RemoteResults(url).pull(tmp_path / "together")
    assert demo_run("--recipe", "laser", "--output_path", tmp_path / "serial").code == 0
    assert scores(tmp_path / "together") == scores(tmp_path / "serial") and len(scores(tmp_path / "serial")) == 2
