"""The former place of `harness_ext.lm_eval_adapter.backend`."""

from harness_ext.lm_eval_adapter.backend import RecipeLM

__all__ = ["RecipeLM"]
