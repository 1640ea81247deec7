"""Data that a recipe learns from: documents, statistics of them, and what is kept of these.

What another package needs to add a statistic is here; `harness_ext.methods.statistic_registry` says how it is called.
"""

from harness_ext.methods.statistic_registry import Statistic, one_per_component, one_per_input, statistic

__all__ = ["Statistic", "one_per_component", "one_per_input", "statistic"]
