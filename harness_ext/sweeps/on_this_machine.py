"""What is wrong with a sweep file for the machine that starts it, and the engine that is to run its cells: told with
the file's own mistakes, before anything runs. What is on a hub is for the run to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness_ext.sweeps.swept_models import model_mistakes_here, models_in
from harness_ext.sweeps.told_secrets import place_mistakes_here
from harness_ext.sweeps.visible_gpus import visible_gpus


def mistakes_here(data: Mapping[str, Any], engine: str) -> Iterator[str]:
    """A sentence each, beginning with its key. data: the plain data of the file. engine: `local`, `ray` or `slurm`;
    the nodes of Ray have packages and disks of their own, which are not looked at.
    """
    if engine != "ray":
        yield from model_mistakes_here(data)
    yield from _of_tasks(data)
    yield from place_mistakes_here(data)
    if engine == "local":
        yield from _of_gpus(data)
    cells = data.get("cells", {})
    if engine == "slurm" and isinstance(cells, Mapping) and cells.get("timeout") is None:
        yield (
            "cells.timeout: is missing. Slurm wants a time limit: give one in the sweep file, `cells: {timeout: 4h}`"
        )


def _of_tasks(data: Mapping[str, Any]) -> Iterator[str]:
    from harness_ext.lm_eval_adapter.config import missing_tasks

    tasks, run = data.get("tasks"), data.get("run")
    folder = run.get("include_path") if isinstance(run, Mapping) else None
    if isinstance(folder, str) and not Path(folder).is_dir():
        yield f"run.include_path: there is no folder {folder}"
        folder = None
    texts = {
        f"tasks.{number}": [name.strip() for name in task.split(",")]
        for number, task in enumerate(tasks if isinstance(tasks, list) else ())
        if isinstance(task, str) and task
    }
    wrong = missing_tasks([name for names in texts.values() for name in names], folder or None)
    for place, names in texts.items():
        for name in names:
            if name in wrong:
                yield f"{place}: {wrong[name]} (`lm_eval ls tasks` lists them; run.include_path adds your own)"


def _of_gpus(data: Mapping[str, Any]) -> Iterator[str]:
    wanted = {place: model for place, model in models_in(data) if _gpus(model) > 1}
    there = len(visible_gpus()) if wanted else 0
    for place, model in wanted.items():
        if (needed := _gpus(model)) > max(there, 1):
            way_out = (
                f"lower its `gpus` to {there} or less"
                if there
                else ("lower its `gpus` to 1 or 0, with which its cells compute on the CPU")
            )
            yield (
                f"{place}.gpus: {model.get('pretrained')} needs {needed} GPUs and this machine has {there or 'none'}:"
                f" {way_out}, or use --on slurm or --on ray"
            )


def _gpus(model: Mapping[str, Any]) -> int:
    gpus = model.get("gpus", 1)
    return gpus if type(gpus) is int else 1
