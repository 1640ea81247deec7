"""`lm_eval sweep plan` refuses what `run` would refuse, in a sentence, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
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


def test_a_plan_loads_no_task_modules_where_the_index_knows_the_tasks(tmp_path: Path) -> None:
    """They load the data set libraries, which takes a second."""
    from harness_ext.lm_eval_adapter.task_index import default_root, saved_rows

    saved_rows(default_root())
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("int_mlt", "arc_easy, int_mult").replace(", gpus: 4", ""))
    code = (
        "import sys; from harness_ext.cli import main; sys.argv = ['lm_eval', 'sweep', 'plan', 'sweep.yaml']; main();"
        " print([name for name in ('datasets', 'torch', 'lm_eval.tasks') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
