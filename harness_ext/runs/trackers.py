"""Experiment trackers: one run a variant in Weights & Biases, Trackio or MLflow, by their own clients.

The run folders stay the truth: what a tracker gets are scores that are stored and judged already, so that one that
fails costs a warning, never a result. A variant keeps its run there when the command is given again. Where a tracker
stores is settled by its own variables (`WANDB_MODE`, `MLFLOW_TRACKING_URI`, ...), and so are its credentials.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError, nearest
from leaderboard.readers.secrets import without_known, without_secrets

if TYPE_CHECKING:
    from harness_ext.runs.execution import JudgedRuns
    from harness_ext.runs.progress import ProgressReport
    from harness_ext.storage.rundir import FinishedRun
    from leaderboard.board.cell import Cell

PROJECT = "lm-eval-recipes"
"""Project or experiment, where the tracker's own variable names none."""
_PARAMETER_LENGTH = 6000
"""Characters; the longest value that MLflow takes for a parameter."""


@dataclass(frozen=True)
class TrackedRun:
    """A variant as a tracker gets it. run_id: the store's, equal for equal runs. metrics: finite numbers by
    `task/metric/name`. words: verdicts by `task/metric/verdict`.
    """

    run_id: str
    name: str
    group: str
    config: Mapping[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def _to_wandb(run: TrackedRun) -> None:
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    with wandb.init(
        project=project, id=run.run_id, name=run.name, group=run.group, config=dict(run.config), resume="allow"
    ) as there:
        there.log(run.metrics)
        there.summary.update(run.words)


def _to_trackio(run: TrackedRun) -> None:
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    # Trackio knows a run by its name alone.
    name = f"{run.name}-{run.run_id[:10]}"
    config = {**run.config, "verdicts": run.words}
    there = trackio.init(project=project, name=name, group=run.group, config=config, resume="allow")
    try:
        there.log(run.metrics)
    finally:
        trackio.finish()


def _to_mlflow(run: TrackedRun) -> None:
    import mlflow

    experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    known = mlflow.search_runs(
        [experiment.experiment_id],
        filter_string=f"tags.`lm_eval.run_id` = '{run.run_id}'",
        output_format="list",
        max_results=1,
    )
    verdicts = {f"verdict.{_mlflow_name(name)}": word for name, word in run.words.items()}
    tags = {"lm_eval.run_id": run.run_id, "lm_eval.group": run.group, **verdicts}
    asked = {"run_id": known[0].info.run_id} if known else {"run_name": run.name}
    with mlflow.start_run(**asked):
        mlflow.set_tags(tags)
        # Parameters of a run cannot be changed there; equal runs have equal ones.
        if not known:
            mlflow.log_params(
                {_mlflow_name(key): str(value)[:_PARAMETER_LENGTH] for key, value in flat(run.config)}, synchronous=True
            )
        mlflow.log_metrics({_mlflow_name(key): value for key, value in run.metrics.items()}, synchronous=True)


def _mlflow_name(name: str) -> str:
    """The name with `_` for what MLflow allows in none."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


TRACKERS: dict[str, Callable[[TrackedRun], None]] = {
    "mlflow": _to_mlflow,
    "trackio": _to_trackio,
    "wandb": _to_wandb,
}
"""By the name of the package, which is also that of the flag."""


def asked_trackers(given: str | Sequence[str] | None, where: str = "--trackers") -> tuple[str, ...]:
    """The trackers in a list, or a text with commas, each once. where: what gave them, for messages.

    Raises UserError for unknown ones and those whose package is not installed, all at once; nothing of them is
    imported.
    """
    if given is None:
        return ()
    names = _names(given)
    if not names:
        raise UserError(f"{where} names none: give one or more of {', '.join(TRACKERS)}")
    mistakes = unknown_trackers(names)
    mistakes += [
        f"{where} {name} needs the package {name}, which is not installed: pip install {name}"
        for name in names
        if name in TRACKERS and find_spec(name) is None
    ]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return names


def unknown_trackers(given: str | Sequence[str]) -> list[str]:
    """A sentence for each name that is no tracker's."""
    return [
        f"no tracker is called {name!r}; {nearest(name, TRACKERS)}" for name in _names(given) if name not in TRACKERS
    ]


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    parts = [given] if isinstance(given, str) else given
    words = (word.strip() for part in parts for word in str(part).split(","))
    return tuple(dict.fromkeys(word for word in words if word))


def track(names: Sequence[str], runs: Sequence[TrackedRun], report: ProgressReport) -> None:
    """Tell every tracker of every run. One that fails is warned about once, and told no more."""
    for name in names:
        try:
            for run in runs:
                TRACKERS[name](run)
            report.line(f"{name}: {len(runs)} {'run' if len(runs) == 1 else 'runs'} tracked")
        # A client may raise anything, and wandb ends its process where it finds no login.
        except (Exception, SystemExit) as error:
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            report.warn(f"{name} could not be told of the runs ({what}); they are stored and judged all the same")


def tracked_runs(
    runs: Sequence[FinishedRun], judged: JudgedRuns, secrets: set[str], environment: Mapping[str, str] = os.environ
) -> list[TrackedRun]:
    """The variants of a command, baseline first, as they are judged; those that the store does not have are left out.

    They are one group: that of the sweep where this is a cell of one, else of all that is compared with this baseline.
    """
    by_spec = {run.receipt["spec_id"]: run for run in runs}
    known = {judged.run_of[spec]: run for spec, run in by_spec.items() if spec in judged.run_of}
    if not known:
        return []
    group = environment.get("LM_EVAL_SWEEP") or f"{runs[0].receipt['model']['name']}-{next(iter(known))[:10]}"
    tracked = {
        run_id: TrackedRun(run_id, run.receipt["recipe"]["label"], group, _config(run.receipt, secrets))
        for run_id, run in known.items()
    }
    for cell in judged.board:
        if cell.run_id in tracked:
            _add_cell(tracked[cell.run_id], cell)
    return list(tracked.values())


def _config(receipt: Mapping[str, Any], secrets: set[str]) -> dict[str, Any]:
    """What was asked, without secrets: model, recipe, control, settings and the versions it was run by."""
    recipe = receipt["recipe"]
    config = {
        "model": receipt["model"],
        "recipe": {**recipe["resolved"], "label": recipe["label"], "control_of": recipe["control_of"]},
        "control": recipe["control"],
        "tasks": sorted(receipt["tasks"]),
        "settings": receipt["settings"],
        "seeds": receipt["seeds"],
        "versions": receipt["versions"],
        "totals": receipt["totals"],
        "status": receipt["status"],
    }
    return without_known(without_secrets(config), secrets)


def _add_cell(run: TrackedRun, cell: Cell) -> None:
    """Add the scores, difference, interval and verdict of a cell, of its other metrics, and against its controls."""
    for one in (cell, *cell.further):
        key = f"{one.task}/{one.metric}" + ("" if one.filter == "none" else f",{one.filter}")
        _add_numbers(run, key, one)
        for pair in one.against_controls:
            _add_numbers(run, f"{key}/against {pair.control}", pair)


def _add_numbers(run: TrackedRun, key: str, cell: Cell) -> None:
    numbers = {
        "score": cell.score,
        "baseline": cell.baseline_score,
        "difference": cell.delta,
        "low": cell.low,
        "high": cell.high,
        "q": cell.q_value,
    }
    run.metrics.update(
        {f"{key}/{name}": value for name, value in numbers.items() if value is not None and math.isfinite(value)}
    )
    run.words[f"{key}/verdict"] = cell.verdict


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its keys, joined by dots."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
