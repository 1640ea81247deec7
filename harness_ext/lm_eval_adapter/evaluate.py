"""Scoring one variant with lm-eval, and saving what lm-eval saves.

`simple_evaluate` scores, with every setting of the command; lm-eval's own tracker writes the files. The results say
which backend was asked for, since lm-eval only sees a finished model object. The files are read back, because lm-eval
logs a failed write and goes on.

A patch: `get_git_commit_hash` of `lm_eval.evaluator` while a variant is scored, since lm-eval's own has git print an
error for every variant where the folder is no repository. The others are in `unchanged`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness_ext.lm_eval_adapter.borrowed import replaced
from harness_ext.lm_eval_adapter.unchanged import Unchanged
from harness_ext.ranks.group import current
from leaderboard.readers.results import settings_without_secrets
from leaderboard.readers.secrets import without_known

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    from harness_ext.lm_eval_adapter.config import RunConfig

log = logging.getLogger("lm_eval.recipes")


def evaluate(
    lm: LM, tasks: Sequence[Task | Group], task_manager: TaskManager, config: RunConfig, unchanged: Unchanged
) -> dict[str, Any] | None:
    """Score the model as it is on tasks that are built already. unchanged: what earlier variants of the session have in
    common with this one. Returns lm-eval's results, samples included; the tracker is under `_tracker`. Only the first
    of several ranks has results; the others return None.
    """
    from lm_eval.loggers import EvaluationTracker

    harness = config.harness
    seed = harness.seed or [None] * 4
    tracker = EvaluationTracker(
        **{key: value for key, value in harness.hf_hub_log_args.items() if key != "output_path"}
    )
    with _quiet_git(), unchanged.reused():
        results = _simple_evaluate(lm, tasks, task_manager, config, tracker, seed)
    if results is None:
        return None
    results["config"]["model"] = tracker.general_config_tracker.model_source = harness.model
    return {**results, "_tracker": tracker}


def _simple_evaluate(
    lm: LM,
    tasks: Sequence[Task | Group],
    task_manager: TaskManager,
    config: RunConfig,
    tracker: EvaluationTracker,
    seed: list[int | None],
) -> dict[str, Any] | None:
    from lm_eval import simple_evaluate

    harness = config.harness
    _ask_for_ranks(tasks, given=hasattr(lm, "answer_rank"))
    return simple_evaluate(
        model=lm,
        model_args={**harness.model_args, "pretrained": config.model_name},
        tasks=list(tasks),
        num_fewshot=harness.num_fewshot,
        batch_size=harness.batch_size,
        max_batch_size=harness.max_batch_size,
        device=harness.device,
        cache_requests=harness.cache_requests.get("cache_requests", False),
        rewrite_requests_cache=harness.cache_requests.get("rewrite_requests_cache", False),
        delete_requests_cache=harness.cache_requests.get("delete_requests_cache", False),
        limit=harness.limit,
        # Every rank has all answers and works out the metrics; only the first reports their standard errors.
        **({} if current().first else {"bootstrap_iters": 0}),
        samples=harness.samples,
        check_integrity=harness.check_integrity,
        write_out=harness.write_out,
        log_samples=True,
        evaluation_tracker=tracker,
        system_instruction=harness.system_instruction,
        apply_chat_template=harness.apply_chat_template,
        fewshot_as_multiturn=harness.fewshot_as_multiturn,
        gen_kwargs=harness.gen_kwargs,
        task_manager=cast("TaskManager", _BuiltTasks(task_manager)),
        predict_only=harness.predict_only,
        random_seed=seed[0],
        numpy_random_seed=seed[1],
        torch_random_seed=seed[2],
        fewshot_random_seed=seed[3],
        confirm_run_unsafe_code=harness.confirm_run_unsafe_code,
        metadata=harness.metadata,
    )


class _BuiltTasks:
    """In the place of lm-eval's task manager, which refuses groups that have a task in common: hands over what is built
    as it is. lm-eval asks a manager for nothing else.
    """

    def __init__(self, manager: TaskManager) -> None:
        self.task_index = manager.task_index

    @staticmethod
    def load(built: Sequence[Task | Group]) -> dict[str, Any]:
        groups = {group.name: group for item in built for group in _groups_in(item)}
        tasks = {task.task_name: task for item in built for task in _tasks_in(item)}
        children = {name: group.child_names for name, group in groups.items()}
        return {"tasks": tasks, "groups": groups, "group_map": children}


def _tasks_in(item: Any) -> Sequence[Task]:
    return item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]


def _groups_in(item: Any) -> Sequence[Group]:
    return [item, *item.get_all_groups()] if hasattr(item, "get_all_groups") else []


def _ask_for_ranks(tasks: Sequence[Task | Group], *, given: bool) -> None:
    """Tell the tasks that can report an answer's rank whether this backend gives it."""
    for task in (task for item in tasks for task in _tasks_in(item)):
        if hasattr(task, "ranks"):
            task.ranks = given


@contextmanager
def _quiet_git() -> Iterator[None]:
    """Let lm-eval look up the commit without an error message of git's where the folder is no repository. The answer
    is the same.
    """
    from harness_ext.lm_eval_adapter.borrowed import evaluator, get_commit_from_path

    original = evaluator.get_git_commit_hash

    def commit() -> str | None:
        try:
            outside = subprocess.run(["git", "rev-parse"], capture_output=True, check=False).returncode != 0
        except OSError:
            outside = False  # no git: lm-eval's own says nothing then
        return get_commit_from_path(os.getcwd()) if outside else original()

    with replaced(evaluator, "get_git_commit_hash", commit):
        yield


def save(evaluated: Mapping[str, Any], folder: Path, config: RunConfig) -> None:
    """Write `results_*.json` and `samples_*.jsonl` into a folder, and report to the services that the command names.

    Raises OSError where a file is missing or short after lm-eval wrote it.
    """
    from lm_eval.utils import handle_non_serializable

    results = settings_without_secrets(
        {key: value for key, value in evaluated.items() if key not in ("samples", "_tracker")}
    )
    samples, tracker = without_known(evaluated["samples"], config.secrets), evaluated["_tracker"]
    if config.harness.show_config:
        print(json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False))
    tracker.output_path = str(folder / "results.json")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    _read_back(folder, tracker.date_id, {task: len(samples[task]) for task in results["configs"]})
    if tracker.push_results_to_hub or tracker.push_samples_to_hub:
        tracker.recreate_metadata_card()
    _log_elsewhere(config, results, samples)


def _read_back(folder: Path, date: str, counts: Mapping[str, int]) -> None:
    try:
        json.loads((folder / f"results_{date}.json").read_text(encoding="utf-8"))
        for task, count in counts.items():
            with (folder / f"samples_{task}_{date}.jsonl").open("rb") as file:
                if sum(1 for line in file if line.endswith(b"\n")) != count:
                    raise ValueError("short")
    except (ValueError, FileNotFoundError) as error:
        raise OSError(f"lm-eval could not write its results completely to {folder}") from error


def _log_elsewhere(config: RunConfig, results: dict[str, Any], samples: dict[str, Any]) -> None:
    """Weights & Biases and Trackio, one run a variant, as lm-eval does it: a service that fails never costs a
    result.
    """
    harness = config.harness
    for arguments, name, extra in (
        (harness.wandb_args, "WandbLogger", (harness.wandb_config_args,)),
        (harness.trackio_args, "TrackioLogger", ()),
    ):
        if not arguments:
            continue
        try:
            import lm_eval.loggers as loggers

            logger = getattr(loggers, name)(arguments, *extra)
            logger.post_init(results)
            logger.log_eval_result()
            logger.log_eval_samples(samples)
            logger.run.finish() if name == "WandbLogger" else logger.finish()
        except Exception as error:
            log.warning("Logging to %s failed: %s", name.removesuffix("Logger"), error)
