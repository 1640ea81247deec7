"""What results files leave out and everybody knows: which way a metric is better, and what values it can have.

Notable choices. lm-eval says of each metric whether higher or lower is better, and has no word for a metric that is
best in the middle; a task of ours names such a value in its
metadata. For the bias probes of lm-eval itself (CrowS-Pairs, simple co-occurrence, BBQ) it stands here, so that they
are judged alike wherever a run comes from.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

_LOWER_IS_BETTER = frozenset(
    {
        "perplexity",
        "ppl",
        "token_perplexity",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
        "brier_score",
        "ter",
        "mse",
        "mae",
        "wer",
    }
)
_HIGHER_IS_BETTER = frozenset(
    {
        "acc",
        "acc_norm",
        "acc_mutual_info",
        "acc_all",
        "exact_match",
        "exact",
        "em",
        "f1",
        "mcc",
        "mc1",
        "mc2",
        "bleu",
        "chrf",
        "rouge1",
        "rouge2",
        "rougeL",
        "pass@1",
    }
)
# Shares of choices; differences of log-likelihoods (of CrowS-Pairs as distances, which zero suits as well; the second
# name is from before lm-eval 0.4) and of counts.
_BEST_VALUES = {
    "pct_stereotype": 0.5,
    "pct_male_preferred": 0.5,
    "likelihood_diff": 0.0,
    "likelihood_difference": 0.0,
    "difference_male_female": 0.0,
}
# BBQ's, in all and by category.
_BEST_AT_ZERO = ("amb_bias_score", "disamb_bias_score")


def direction(metric: str, given: Any) -> bool | None:
    """Whether more of a metric is better: as given, else as everybody knows, else None."""
    if isinstance(given, bool):
        return given
    return False if metric in _LOWER_IS_BETTER else True if metric in _HIGHER_IS_BETTER else None


def best_value(metric: str, given: float | None) -> float | None:
    """The value in the middle at which a metric is best: as given, else as known, else None."""
    if given is not None:
        return given
    return 0.0 if metric.startswith(_BEST_AT_ZERO) else _BEST_VALUES.get(metric)


class Range(NamedTuple):
    """The least and the largest value that a metric can have; infinite where there is none."""

    low: float
    high: float


_RANGES = {"mcc": Range(-1.0, 1.0)} | {
    name: Range(0.0, 100.0) for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL")
}
_SHARES = frozenset({"pct_stereotype", "pct_male_preferred"})
_AT_LEAST_ONE = ("perplexity", "ppl")


def value_range(metric: str) -> Range:
    """What values a metric can have, as far as known. Some tasks report shares in percent: a value beyond a limit here
    is of another scale.
    """
    if metric in _RANGES:
        return _RANGES[metric]
    if metric in _LOWER_IS_BETTER:
        return Range(1.0 if metric.endswith(_AT_LEAST_ONE) else 0.0, math.inf)
    return Range(0.0, 1.0) if metric in _SHARES | _HIGHER_IS_BETTER else Range(-math.inf, math.inf)
