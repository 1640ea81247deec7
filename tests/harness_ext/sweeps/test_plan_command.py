"""`lm_eval sweep plan` refuses what `run` would refuse, in a sentence, before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness_ext.lm_eval_adapter.engines import Engine

SWEEP = "name: s\nmodels: [{pretrained: demo, gpus: 4}]\ntasks: [int_mlt]\nrecipes: [laser]\n"

WRONG = """
name: s
models:
  - {model: vlm, pretrained: demo}
  - {model: vllm, pretrained: /no/such/folder, gpus: 99}
  - {pretrained: demo, dtype: float99, model_args: {load_in_4bit: true, max_length: -1, peft: ./no-adapter}}
  - {model: openai-completions, pretrained: x}
  - {pretrained: demo, gpus: true}
  - {pretrained: demo}
  - {pretrained: demo}
tasks: [int_mlt, int_mult, int_mult, "arc_esy"]
recipes: [lasr, svd, svd, "svd:keep.rnk=2", "laser:keep.rank=[3,4]", "laser:keep.rank=4"]
controls: [noise, noise]
run: {limit: -3, batch_size: banana, device: banana, seed: x, num_fewshot: -1, include_path: no-tasks}
exclude: [{model: "*70B"}]
cells: {retries: -1, timeout: soon}
"""
TOLD = {
    "models.0.model": ["lm-eval has no such backend; did you mean 'vllm'?"],
    "models.1.model": ["needs the package vllm, which is not installed: pip install"],
    "models.1.pretrained": ["there is no model folder /no/such/folder; give"],
    "models.1.gpus": ["needs 99 GPUs and this machine has none"],
    "models.2.dtype": ["dtype=float99 is no dtype", "give auto, float32"],
    "models.2.model_args.load_in_4bit": ["packed weights"],
    "models.2.model_args.max_length": ["a whole number of tokens"],
    "models.2.model_args.peft": ["there is no adapter folder ./no-adapter"],
    "models.3.model": ["lie with a server"],
    "models.4.gpus": ["should be a whole number (found true)"],
    "models.5": ["is the same as models.4"],
    "models.6": ["is the same as models.4"],
    "tasks.0": ["no task is called 'int_mlt'; did you mean int_mult"],
    "tasks.2": ["int_mult stands in tasks.1 already"],
    "tasks.3": ["no task is called 'arc_esy'; did you mean arc_easy"],
    "recipes.0": ["unknown recipe 'lasr': did you mean 'laser'?"],
    "recipes.2": ["svd stands in recipes.1 already: leave one of them out"],
    "recipes.3": ["'svd:keep.rnk=2', steps.0.keep.rnk: unknown key, did you mean 'rank'?"],
    "recipes.5": ["laser:keep.rank=4 stands in recipes.4 already"],
    "controls.1": ["noise stands in controls.0 already"],
    "run.limit": ["-3 leaves no document to score: give a number"],
    "run.batch_size": ["'banana' is no batch size: give a whole number from 1, auto, or auto:N"],
    "run.device": ["'banana' is no device: give cpu, cuda, cuda:N"],
    "run.seed": ["'x' is no seed: give one whole number for all, or four"],
    "run.num_fewshot": ["give a whole number from 0 (found -1)"],
    "run.include_path": ["there is no folder no-tasks"],
    "exclude.0": ["fits no pair"],
    "cells.retries": ["greater than or equal to 0 (found -1)"],
    "cells.timeout": ["such as 90m or 4h"],
}


@pytest.mark.parametrize(
    ("engine", "gpus", "words"),
    [
        ("slrm", "", "--on slrm: no such engine; did you mean 'slurm'?"),
        ("slurm", "", "  - cells.timeout: is missing. Slurm wants a time limit: give one in the sweep file"),
        (
            "local",
            "0,1",
            "  - models.0.gpus: demo needs 4 GPUs and this machine has 2: lower its `gpus` to 2 or less",
        ),
        (
            "local",
            "",
            "this machine has none: lower its `gpus` to 1 or 0, with which its cells compute on the CPU, or",
        ),
        ("local", "0,1,2,3", "  - tasks.0: no task is called 'int_mlt'; did you mean int_mult"),
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
    assert ran.code == 2 and words in ran.err and not (tmp_path / "results").exists()


@pytest.mark.slow
def test_all_mistakes_are_in_one_list(
    lm_eval: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(Engine, "installed", property(lambda engine: engine.name != "vllm"))
    (tmp_path / "sweep.yaml").write_text(WRONG)
    planned, ran = (lm_eval("sweep", action, "sweep.yaml") for action in ("plan", "run"))
    first, *lines = planned.err.splitlines()
    assert planned.code == 2 and first == "error: sweep sweep.yaml cannot be used:"
    assert (ran.code, ran.err) == (planned.code, planned.err) and not (tmp_path / "results").exists()
    told = dict(line.removeprefix("  - ").split(": ", 1) for line in lines)
    assert len(told) == len(lines), lines
    assert {key: next((words for words in TOLD[key] if words not in told.get(key, "")), None) for key in TOLD} == (
        dict.fromkeys(TOLD)
    ), planned.err
    assert told.keys() == TOLD.keys()


def test_a_list_of_mistakes_is_not_cut(lm_eval: Callable[..., Any], tmp_path: Path) -> None:
    names = [f"lasr{number}" for number in range(60)]
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("int_mlt", "int_mult").replace("[laser]", str(names)))
    told = lm_eval("sweep", "plan", "sweep.yaml").err
    assert all(f"  - recipes.{number}: unknown recipe 'lasr{number}'" in told for number in range(60))


def test_what_nodes_of_ray_have_is_not_looked_for_here(lm_eval: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("demo", "/models/of/nodes").replace("int_mlt", "int_mult"))
    assert lm_eval("sweep", "plan", "sweep.yaml", "--on", "ray").code == 0
    assert "models.0.pretrained: there is no model folder /models" in lm_eval("sweep", "plan", "sweep.yaml").err


@pytest.mark.slow
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


LACKING = {
    "ray": "ray is not installed: pip install 'lm-eval-recipes[ray]', or use --on local",
    "slurm": "submitit is not installed: pip install 'lm-eval-recipes[slurm]'; the PATH has no sbatch, srun, squeue,"
    " scancel: start the sweep where it has, as on a login node, or use --on local",
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", LACKING)
def test_an_engine_that_this_machine_lacks(
    lm_eval: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str
) -> None:
    """The plan is told all the same, with a note; nothing is made or written where the sweep is refused."""
    monkeypatch.setitem(sys.modules, {"ray": "ray", "slurm": "submitit"}[engine], None)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    text = SWEEP.replace("int_mlt", "int_mult").replace(", gpus: 4", "") + "cells: {timeout: 4h}\n"
    (tmp_path / "sweep.yaml").write_text(f"{text}output_path: file://{tmp_path}/bucket\n")
    note = f"`sweep run --on {engine}` would be refused here: {LACKING[engine]}"
    planned = lm_eval("sweep", "plan", "sweep.yaml", "--on", engine)
    assert planned.code == 0 and "2 of 2 cells to run" in planned.out and planned.err.endswith(f"note: {note}\n")
    rows = json.loads(lm_eval("sweep", "plan", "sweep.yaml", "--on", engine, "--json").out)
    assert [(row["cells"], row["note"]) for row in rows] == [(2, note)]
    assert json.loads(lm_eval("sweep", "plan", "sweep.yaml", "--json").out)[0]["note"] is None
    for action in ("run", "retry"):
        refused = lm_eval("sweep", action, "sweep.yaml", "--on", engine)
        assert (refused.code, refused.err) == (2, f"error: {LACKING[engine]}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]
