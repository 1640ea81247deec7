"""Loading tasks as they lie on the disk now, with a record of what was read for their identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.lm_eval_adapter import fresh_modules, local_datasets, task_code, task_identity
from harness_ext.lm_eval_adapter.fresh_modules import LoadRecord

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


class FreshTasks(NamedTuple):
    """What lm-eval's manager loaded, and what was seen meanwhile."""

    loaded: Any
    record: LoadRecord


def load_tasks(manager: TaskManager, names: Sequence[str]) -> FreshTasks:
    """Build tasks by name. Raises UserError for one whose items cannot be had."""
    fresh = _load(manager, names)
    roots = [path for task in fresh.loaded["tasks"].values() for path in task_identity.task_roots(task)]
    # What the process had imported before, for reasons of its own, may be an earlier version of a module.
    if stale := fresh_modules.stale_modules(task_code.reachable(roots, fresh.record.reads).keys()):
        fresh_modules.forget(stale)
        fresh = _load(manager, names)
    return fresh


def _load(manager: TaskManager, names: Sequence[str]) -> FreshTasks:
    with local_datasets.loading(), fresh_modules.loading() as record:
        loaded = manager.load(list(names))
    return FreshTasks(loaded, record)
