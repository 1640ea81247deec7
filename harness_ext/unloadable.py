"""Says which task's data set could not be loaded, where lm-eval's own tasks let the exception through.

Our tasks say so themselves (`task_data`). For lm-eval's the failing task is found among the frames of the traceback: its `download` calls `load_dataset`, which offline, or for
absent, gated and renamed data sets, raises a dozen kinds of exceptions that name no task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import TYPE_CHECKING

from harness_ext.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.task import Task


@contextmanager
def named() -> Iterator[None]:
    """Inside this block, a data set of lm-eval's own tasks that cannot be loaded is a UserError with the task, the data set and what to do; all else passes unchanged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        task = _downloading(error)
        if task is None:
            raise
        raise UserError(_message(task, error)) from error


def _downloading(error: Exception) -> Task | None:
    """The task whose data set was being loaded when `error` was raised; None where it comes from elsewhere, or from a function of the task's own."""
    from lm_eval.api.task import ConfigurableTask

    for frame, _ in walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "download" and isinstance(owner, ConfigurableTask):
            return None if callable(owner.config.custom_dataset) else owner
    return None


def _message(task: Task, error: Exception) -> str:
    arguments = ", ".join(repr(part) for part in (task.DATASET_PATH, task.DATASET_NAME) if part)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"task {task.config.task}: its data set cannot be loaded ({reason}). It is lm-eval's own task, which takes its items from the Hugging Face hub or from that hub's cache: "
        f"where there is a network, run it once, or `datasets.load_dataset({arguments})`, and name the folder of that cache here by HF_HOME=DIR"
    )
