"""Loading tasks as they lie on the disk now, with a record of what was read for their identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.errors import UserError, nearest
from harness_ext.lm_eval_adapter import fresh_modules, local_datasets, module_names, task_code, task_identity
from harness_ext.lm_eval_adapter.fresh_modules import LoadRecord

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager


class FreshTasks(NamedTuple):
    """What lm-eval's manager loaded, and what was seen meanwhile."""

    loaded: Any
    record: LoadRecord


def check_known(name: str, manager: TaskManager) -> None:
    """Raise UserError for the name of a task to learn from that lm-eval does not know, offering one that it knows."""
    if name not in manager.all_tasks:
        raise UserError(
            f"calibration: there is no task {name!r}: {nearest(name, manager.all_tasks)}; --include_path DIR adds yours"
        )


def load_tasks(manager: TaskManager, names: Sequence[str], *, more: bool = False) -> FreshTasks:
    """Build tasks by name. more: beside those that the command has built already, which go on being used.

    Raises UserError for one whose items cannot be had, where one would run with the module of another, and where two of
    the names have a task in different forms.
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
        # One by one, since lm-eval refuses names that have a task in common.
        loaded = together({name: manager.load([name]) for name in names})
    return FreshTasks(loaded, record)


def together(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What lm-eval's manager loaded for several names, as if for all at once: a task or group that some of them have in
    common is one object, so that it is scored once and all groups sum it up.

    Raises UserError where two of the names have a task in different forms.
    """
    tasks: dict[str, Task] = {}
    owners: dict[str, str] = {}
    groups: dict[str, Group] = {}
    for owner, part in parts.items():
        for name, task in part["tasks"].items():
            if name in tasks and _form(task) != _form(tasks[name]):
                first = owners[name]
                raise UserError(
                    f"task {name} is asked in one way by {first} and in another by {owner}: ask for {first} and"
                    f" {owner} in two commands"
                )
            tasks.setdefault(name, task)
            owners.setdefault(name, owner)
        for name, group in part.get("groups", {}).items():
            groups.setdefault(name, group)
    for group in groups.values():
        for child in list(group):
            # Takes the place of its own.
            group.add(tasks[child.task_name] if hasattr(child, "task_name") else groups[child.name])
    return {"tasks": tasks, "groups": groups, "group_map": {name: group.child_names for name, group in groups.items()}}


def _form(task: Task) -> tuple[dict[str, Any], int | None]:
    return task_identity.configuration(task), task.config.num_fewshot
