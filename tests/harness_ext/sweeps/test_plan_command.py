"""`lm_eval sweep plan` refuses what `run` would refuse, in a sentence, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SWEEP = "name: s\nmodels: [{pretrained: demo, gpus: 4}]\ntasks: [int_mlt]\nrecipes: [laser]\n"


@pytest.mark.parametrize(
    ("engine", "gpus", "words"),
    [
        ("slrm", "", "--on slrm: no such engine; did you mean 'slurm'?"),
        ("slurm", "", "Slurm wants a time limit: give one in the sweep file"),
        ("local", "0,1", "demo needs 4 GPUs and this machine has 2: lower its `gpus`"),
        ("local", "0,1,2,3", "no task is called 'int_mlt'; did you mean int_mult"),
    ],
)
def test_what_run_would_refuse(
    lm_eval: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    engine: str,
    gpus: str,
    words: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    ran = lm_eval("sweep", "plan", "sweep.yaml", "--on", engine)
    assert ran.code == 2 and f"error: {words}" in ran.err and not (tmp_path / "results").exists()
