"""The former place of `harness_ext.lm_eval_adapter.task_data`, which tasks of others name."""

from harness_ext.lm_eval_adapter.task_data import TRAINING_LIMIT, Row, Source

__all__ = ["TRAINING_LIMIT", "Row", "Source"]
