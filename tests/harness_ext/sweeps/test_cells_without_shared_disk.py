"""Cells as on machines that share no disk: one finds the baseline of another, and what is brought together equals one
run, and the same sweep into a folder.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harness_ext.storage.remote import RemoteResults
from harness_ext.sweeps.engines.base import Job
from harness_ext.sweeps.engines.local import LocalEngine
from harness_ext.sweeps.job_files import read_record
from leaderboard.readers.sweep_state import ENDED, MANIFEST
from tests.harness_ext.s3_server import s3_bucket
from tests.harness_ext.sweeps.whole_sweeps import board_of, left_by

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


SWEEP = """
name: apart
output_path: {place}
models: [{{pretrained: demo}}]
tasks: [int_mult]
recipes: [laser, "svd:keep.rank_fraction=0.5"]
controls: [random-subspace]
run: {{batch_size: 16, limit: 24, device: cpu}}
cells: {{recipes_per_cell: 1}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_sweep_into_a_url_leaves_what_one_into_a_folder_leaves(
    lm_eval: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str
) -> None:
    """The cells upload, the driver brings home and takes in: run folders and board are the same. So are they on a
    machine that has none of it and ingests the URL.
    """
    with ExitStack() as stack:
        url = f"file://{tmp_path}/bucket"
        if scheme == "s3":
            url = stack.enter_context(s3_bucket(tmp_path, monkeypatch))
        for name, place in (("url", url), ("folder", "folder")):
            (tmp_path / f"{name}.yaml").write_text(SWEEP.format(place=place))
            ran = lm_eval("sweep", "run", f"{name}.yaml")
            assert ran.code == 0 and "3 of 3 cells done" in ran.out, ran.err
        receipts, cells = left_by(tmp_path / "folder"), board_of(tmp_path / "folder")
        assert len(receipts) == 5
        assert left_by(tmp_path / "results") == receipts and board_of(tmp_path / "results") == cells
        assert len(RemoteResults(url).names("demo")) == 5

        shutil.rmtree(tmp_path / "results")
        shutil.rmtree(RemoteResults(url).mirror)
        assert lm_eval("ingest", url).code == 0
        assert left_by(tmp_path / "results") == receipts and board_of(tmp_path / "results") == cells
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"secret-of-the-test" in path.read_bytes()]
