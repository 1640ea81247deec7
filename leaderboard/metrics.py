"""The one table of what a metric is: which way it is better, its values, its margin, and how its score is computed.

A metric that `METRICS` lacks is a mean of documents, of unknown direction and range. To add one, add its entry: the
readers, the judge and the history dispatch on the table and name no metric.

Notable choices. lm-eval says of each metric whether higher or lower is better, and has no word for a metric that is
best in the middle; a task of ours names such a value in its metadata. For the bias probes of lm-eval (CrowS-Pairs,
simple co-occurrence, BBQ) it stands here, so that they are judged alike wherever a run comes from. What a results file
says of its own metric comes before the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

DEFAULT_MARGIN = 0.02
"""Within how much a recipe counts as the same, where scores lie in [0, 1]."""
GOLD_LOG_LIKELIHOOD = "gold_loglikelihood"
"""Of the right answer to a document, in nats, summed over its tokens: read from the responses, not from lm-eval's
scores.
"""
GOLD_NAMES = frozenset({GOLD_LOG_LIKELIHOOD, "gold_logprob", "log_loss"})
"""The same by the names that tasks of ours give it, of which `log_loss` is its negative."""
ACC_MUTUAL_INFO = "acc_mutual_info"
"""A task with this metric has each choice scored twice: its second half of responses are the choices alone."""


class Kind(Enum):
    """How the score of a run is computed from its documents."""

    MEAN = "mean of the documents' numbers"
    PERPLEXITY = "exp(-sum of log-likelihoods / sum of weights)"
    BITS = "-sum of log-likelihoods / sum of weights / ln 2"
    CONFUSION = "function of the 2 x 2 table of (gold, prediction)"
    TEXT = "sacrebleu's corpus score of (references, answer)"


class Range(NamedTuple):
    """The least and the largest value that a metric can have; infinite where there is none."""

    low: float
    high: float

    @property
    def is_unit(self) -> bool:
        """Whether all values lie within [0, 1]."""
        return self.low >= 0 and self.high <= 1


ANY = Range(-math.inf, math.inf)
"""That of a metric without limits, or of which none are known."""


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    higher_is_better: None where unknown. best_value: where the best value lies in the middle. range: possible values.
    scale: what a score of one is in the metric's units, 100 for BLEU; the default margin is `DEFAULT_MARGIN` of it.
    None: relative to the score for `PERPLEXITY` and `BITS`; for `MEAN`, one where all values lie in [0, 1], else twice
    their standard deviation. weighted: each sample is a (log-likelihood, number of words or bytes) pair. of_table: for
    `CONFUSION`, the score `[draws]` of tables `[draws, gold, prediction]`. sacrebleu: for `TEXT`, the class in
    `sacrebleu.metrics`.
    """

    higher_is_better: bool | None = None
    best_value: float | None = None
    range: Range = ANY
    scale: float | None = None
    kind: Kind = Kind.MEAN
    weighted: bool = False
    of_table: Callable[[np.ndarray], np.ndarray] | None = None
    sacrebleu: str | None = None

    @property
    def of_likelihoods(self) -> bool:
        """Whether the score is computed from the texts' log-likelihoods."""
        return self.kind in (Kind.PERPLEXITY, Kind.BITS)


def f1(table: np.ndarray) -> np.ndarray:
    """F1 of the positive class, `[draws, 2, 2] -> [draws]`; 0 where nothing is positive, as scikit-learn has it."""
    import numpy as np  # this module is read by commands that need no arrays

    hits, errors = table[:, 1, 1], table[:, 0, 1] + table[:, 1, 0]
    return np.divide(2 * hits, 2 * hits + errors, out=np.zeros_like(hits), where=(2 * hits + errors) > 0)


def mcc(table: np.ndarray) -> np.ndarray:
    """Matthews correlation, `[draws, 2, 2] -> [draws]`; 0 where a margin is empty."""
    import numpy as np

    numerator = table[:, 1, 1] * table[:, 0, 0] - table[:, 0, 1] * table[:, 1, 0]
    product = table.sum(axis=1).prod(axis=1) * table.sum(axis=2).prod(axis=1)
    return np.divide(numerator, np.sqrt(product), out=np.zeros_like(numerator), where=product > 0)


_UNIT, _PERCENT = Range(0.0, 1.0), Range(0.0, 100.0)
_FROM_ZERO, _FROM_ONE = Range(0.0, math.inf), Range(1.0, math.inf)
_SHARE = Metric(True, range=_UNIT)
_ERROR = Metric(False, range=_FROM_ZERO)
_ROUGE = Metric(True, range=_PERCENT)
_PERPLEXITY = Metric(False, range=_FROM_ONE, kind=Kind.PERPLEXITY, weighted=True)
_PREFERENCE = Metric(best_value=0.5, range=_UNIT)  # a share of choices
_DIFFERENCE = Metric(best_value=0.0)  # of log-likelihoods (CrowS-Pairs' are distances, which zero suits too) or counts

METRICS: dict[str, Metric] = {
    "acc": _SHARE,
    "acc_norm": _SHARE,
    ACC_MUTUAL_INFO: _SHARE,
    "acc_all": _SHARE,
    "exact_match": _SHARE,
    "exact": _SHARE,
    "em": _SHARE,
    "mc1": _SHARE,
    "mc2": _SHARE,
    "pass@1": _SHARE,
    "rouge1": _ROUGE,
    "rouge2": _ROUGE,
    "rougeL": _ROUGE,
    "brier_score": _ERROR,
    "mse": _ERROR,
    "mae": _ERROR,
    "wer": _ERROR,
    "f1": Metric(True, range=_UNIT, scale=1.0, kind=Kind.CONFUSION, of_table=f1),
    "mcc": Metric(True, range=Range(-1.0, 1.0), scale=1.0, kind=Kind.CONFUSION, of_table=mcc),
    "bleu": Metric(True, range=_PERCENT, scale=100.0, kind=Kind.TEXT, sacrebleu="BLEU"),
    "chrf": Metric(True, range=_PERCENT, scale=100.0, kind=Kind.TEXT, sacrebleu="CHRF"),
    "ter": Metric(False, range=_FROM_ZERO, scale=100.0, kind=Kind.TEXT, sacrebleu="TER"),
    "perplexity": Metric(False, range=_FROM_ONE, kind=Kind.PERPLEXITY),
    "token_perplexity": _PERPLEXITY,
    "word_perplexity": _PERPLEXITY,
    "byte_perplexity": _PERPLEXITY,
    "bits_per_byte": Metric(False, range=_FROM_ZERO, kind=Kind.BITS, weighted=True),
    "ppl": Metric(False, range=_FROM_ONE),
    GOLD_LOG_LIKELIHOOD: Metric(True, range=Range(-math.inf, 0.0)),
    "pct_stereotype": _PREFERENCE,
    "pct_male_preferred": _PREFERENCE,
    "likelihood_diff": _DIFFERENCE,
    "likelihood_difference": _DIFFERENCE,  # its name before lm-eval 0.4
    "difference_male_female": _DIFFERENCE,
}
RIGHT_ANSWER_METRICS = frozenset(
    {"acc", "acc_norm", "acc_bytes", ACC_MUTUAL_INFO, "exact_match", "em", "f1", "mcc", "brier_score", "likelihood"}
)
"""Metrics of multiple choice that say of a choice that it is right. A probe for bias has others."""
FAMILIES: dict[str, Metric] = {"amb_bias_score": _DIFFERENCE, "disamb_bias_score": _DIFFERENCE}
"""Metrics by the beginning of their names: BBQ's, in all and by category."""
CLUSTERS: dict[str, str] = {
    "babi": "passage",
    "belebele_*": "flores_passage",
    "boolq": "passage",
    "boolq-seq2seq": "passage",
    "drop": "passage",
    "logiqa": "context",
    "mc_taco": "sentence",
    "mlqa_*": "context",
    "multirc": "paragraph",
    "qa4mre_*": "document_str",
    "qasper_*": "title",
    "record": "passage",
    "squadv2": "context",
    "super_glue-boolq-t5-prompt": "passage",
    "super_glue-multirc-t5-prompt": "paragraph",
    "winogender_*": "occupation",
    "xquad_*": "context",
}
"""lm-eval's own tasks with several documents on one passage, or made from one sentence: a task's name, or how it begins
-> the field of a document that is equal for them. Only fields that the task's own YAML or code names.
"""
_UNKNOWN = Metric()


def named(metric: str) -> Metric:
    """What is known of a metric, by its name in a results file."""
    known = METRICS.get(metric)
    if known is None:
        known = next((entry for beginning, entry in FAMILIES.items() if metric.startswith(beginning)), _UNKNOWN)
    return known


def direction(metric: str, reported: Any) -> bool | None:
    """Whether more of a metric is better: as reported, else as known, else None."""
    return reported if isinstance(reported, bool) else named(metric).higher_is_better


def best_value(metric: str, reported: float | None) -> float | None:
    """The value in the middle at which a metric is best: as reported, else as known, else None."""
    return named(metric).best_value if reported is None else reported


def cluster_field(task: str) -> str | None:
    """The field of its documents that names the group of dependent ones, for a task of lm-eval; None where none is
    known.
    """
    return next((field for name, field in CLUSTERS.items() if fnmatchcase(task, name)), None)


def value_range(metric: str) -> Range:
    """What values a metric can have, as far as known. Some tasks report shares in percent: a value beyond a limit here
    is of another scale.
    """
    return named(metric).range
