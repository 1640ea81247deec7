"""Loading tasks as they lie on the disk now, with a record of what was read for their identity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.lm_eval_adapter import fresh_modules, local_datasets, module_names, task_code, task_identity
from harness_ext.lm_eval_adapter.fresh_modules import LoadRecord

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


class FreshTasks(NamedTuple):
    """What lm-eval's manager loaded, and what was seen meanwhile."""

    loaded: Any
    record: LoadRecord


def load_tasks(manager: TaskManager, names: Sequence[str], *, more: bool = False) -> FreshTasks:
    """Build tasks by name. more: beside those that the command has built already, which go on being used.

    Raises UserError for one whose items cannot be had, and where one would run with the module of another.
    """
    if not more:
        fresh_modules.forget()
    fresh = _load(manager, names)
    reached = _reached(fresh)
    if others := fresh_modules.imported_before(reached):
        # What the process had imported, for reasons of its own, may be an earlier version of a module. Those that
        # imported it in this load have to do so again.
        fresh_modules.take_out(others | fresh_modules.names_of(reached))
        fresh = _load(manager, names)
        reached = _reached(fresh)
    module_names.check(_roots(fresh), reached)
    return fresh


def _roots(fresh: FreshTasks) -> dict[str, list[Path]]:
    return {name: task_identity.task_roots(task) for name, task in fresh.loaded["tasks"].items()}


def _reached(fresh: FreshTasks) -> dict[Path, list[task_code.Edge]]:
    return task_code.reachable((path for roots in _roots(fresh).values() for path in roots), fresh.record.reads)


def _load(manager: TaskManager, names: Sequence[str]) -> FreshTasks:
    with local_datasets.loading(), fresh_modules.loading() as record:
        loaded = manager.load(list(names))
    return FreshTasks(loaded, record)
