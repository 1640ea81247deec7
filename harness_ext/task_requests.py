"""The former place of `harness_ext.lm_eval_adapter.task_types`, which tasks of others name."""

from harness_ext.lm_eval_adapter.task_types import OpenAnswer, RankedAnswer, RequestsTask, TokenWindow

__all__ = ["OpenAnswer", "RankedAnswer", "RequestsTask", "TokenWindow"]
