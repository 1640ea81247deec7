"""The configuration of a run with recipes: lm-eval's own, and ours beside it."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.engines import ENGINES, Engine
from leaderboard.readers.secrets import secret_values

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.tasks import TaskManager

    from harness_ext.recipe.recipe import Recipe
    from harness_ext.storage.remote import RemoteResults


_WITH_SECRETS = ("model_args", "metadata", "gen_kwargs", "hf_hub_log_args", "wandb_args", "trackio_args")


@dataclass(frozen=True)
class RunConfig:
    """A run with recipes.

    `harness` is lm-eval's full configuration, validated, with `output_path` and `log_samples` set. `model_name` is what
    the user typed after `pretrained=` (`harness.model_args["pretrained"]` holds the folder where that was `demo`).
    `command` is `sys.argv`, or the call from Python, for the receipt. `remote` is where finished runs go as well, where
    the results were asked for in a place with a scheme; `output_path` is then its local mirror.
    """

    harness: EvaluatorConfig
    recipes: tuple[str | Recipe, ...]
    controls: tuple[str, ...]
    model_name: str
    command: tuple[str, ...]
    remote: RemoteResults | None = None

    @property
    def engine(self) -> Engine | None:
        """The inference engine that scores; None where the model is scored by the backend that edits it."""
        return ENGINES.get(str(self.harness.model))

    @property
    def secrets(self) -> set[str]:
        """Tokens, passwords and the like that were given with this run: none of them is written anywhere."""
        given = [getattr(self.harness, name, None) for name in _WITH_SECRETS]
        return secret_values([*given, *self.command])


def resolve_tasks(harness: EvaluatorConfig) -> TaskManager:
    """Find the run's tasks through the index; afterwards `harness.tasks` holds what lm-eval resolved them to.

    Raises `UserError` naming the tasks that do not exist and the nearest names that do.
    """
    from harness_ext.lm_eval_adapter.fast_import import quick_imports
    from harness_ext.lm_eval_adapter.task_index import installed

    with quick_imports(), installed():
        try:
            return harness.process_tasks(harness.metadata)
        except ValueError as error:
            raise UserError(_missing_tasks(harness, str(error))) from error


def _missing_tasks(harness: EvaluatorConfig, message: str) -> str:
    from lm_eval.tasks import TaskManager

    prefix = "Tasks not found: "
    if not message.startswith(prefix):
        return message
    known = TaskManager(include_path=harness.include_path).all_tasks
    lines = [_no_task(name, known) for name in message.removeprefix(prefix).split(", ")]
    return "\n".join([*lines, "`lm_eval ls tasks` lists all tasks; --include_path DIR adds your own"])


def _no_task(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=3)
    return f"no task is called {name!r}" + (f"; did you mean {' or '.join(nearest)}?" if nearest else "")


def missing_tasks(names: Sequence[str], include_path: str | None = None) -> dict[str, str]:
    """A sentence by each of these names that is no task, group, tag, pattern of them, YAML file or folder of such.
    Where the kept index knows them all, lm-eval's task modules are not loaded.
    """
    from harness_ext.lm_eval_adapter.task_index import indexed_kinds, task_manager

    kinds = indexed_kinds()
    unknown = [name for name in names if name not in kinds]
    if not unknown:
        return {}
    from harness_ext.lm_eval_adapter.fast_import import quick_imports

    with quick_imports():
        manager = task_manager(include_path)
    return {
        name: _no_task(name, manager.all_tasks)
        for name in unknown
        if not (_task_files(name) if name.endswith(".yaml") else manager.match_tasks([name]))
        and not (len(names) == 1 and Path(name).is_dir())
    }


def _task_files(pattern: str) -> list[str]:
    return glob.glob(str(Path(pattern).absolute()))
