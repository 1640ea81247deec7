"""The former place of `harness_ext.lm_eval_adapter.task_index`."""

from harness_ext.lm_eval_adapter.task_index import task_manager

__all__ = ["task_manager"]
