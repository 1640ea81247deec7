"""What two runs answered, beside what it scored: changed answers, how far the choices' probabilities moved, and the
right answer's log-likelihood.

These need the stored responses, which are text and slow to read, so they are worked out for a pair of runs and not for
a whole board. Notable choices:
- For multiple choice the answer is the likeliest choice, the first of equals; for generation it is the filtered text; a
  bare log-likelihood is no answer.
- The divergence is the mean over documents of `sum_k p_k^B ln(p_k^B / p_k^R)`, the `p` a softmax of the choices'
  log-likelihoods.
- The drop of the right answer's log-likelihood is the most sensitive of all measures. It is shown and never gated:
  models may be less sure and as right.
- A task with responses of any other form has none of these, and a document whose response cannot be read makes its task
  such a one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from leaderboard import metrics
from leaderboard import statistics as stats
from leaderboard.statistics import Estimate
from leaderboard.store.database import Store


class Choices(NamedTuple):
    """Of one task: the share of documents whose answer changed, the mean divergence in nats, and the mean drop of the
    right answer's log-likelihood. None: it has none.
    """

    documents: int
    changed: float | None
    divergence: Estimate | None
    gold_drop: Estimate | None


def of_tasks(store: Store, baseline: str, recipe: str, tasks: tuple[tuple[str, str], ...]) -> dict[str, Choices]:
    """task -> its choices, of (task, filter) pairs in which the two runs may be compared; without the tasks that have
    none.
    """
    found = {task: compare_choices(store, baseline, recipe, task, filter_name) for task, filter_name in tasks}
    return {
        task: of_task
        for task, of_task in found.items()
        if of_task is not None and any(value is not None for value in of_task[1:])
    }


def record(found: Choices) -> dict[str, float | None]:
    """Every number in full, for a file."""
    row: dict[str, float | None] = {"documents": found.documents, "changed": found.changed}
    for name, estimate in (("divergence", found.divergence), ("gold_drop", found.gold_drop)):
        row |= {
            f"{name}{end}": None if estimate is None else value
            for end, value in zip(("", "_low", "_high"), estimate or (None, None, None))
        }
    return row


class _Document(NamedTuple):
    """Both responses to a document: the log-likelihoods `[k]` of its choices, and which of them is right."""

    before: np.ndarray
    after: np.ndarray
    target: int | None


class _Text(NamedTuple):
    """Both responses to a document of a task that generates, as JSON."""

    before: str
    after: str


# Copies of one document may be logged in any order: those of two runs are put side by side by what was answered.
_IN_ORDER = (
    "(SELECT *, row_number() OVER (PARTITION BY run_id, doc_key ORDER BY filtered_responses) AS copy FROM samples WHERE"
    " run_id IN ($1, $2) AND task = $3 AND filter = $4)"
)


def compare_choices(store: Store, baseline: str, recipe: str, task: str, filter_name: str) -> Choices | None:
    """The choices of one task and filter in two runs that may be compared; None where the responses are of no known
    form.
    """
    rows = store.rows(
        "SELECT t.output_type, b.filtered_responses AS before, r.filtered_responses AS after, d.target, EXISTS (FROM"
        f" scores s WHERE s.run_id = $2 AND s.task = $3 AND s.metric = $5) AS doubled FROM {_IN_ORDER} b JOIN"
        f" {_IN_ORDER} r USING (task, filter, doc_key, copy) JOIN run_tasks t ON t.run_id = r.run_id AND t.task ="
        " r.task LEFT JOIN (SELECT doc_key, any_value(target) AS target FROM docs WHERE task = $3 GROUP BY doc_key) d"
        " USING (doc_key) WHERE b.run_id = $1 AND r.run_id = $2 AND b.task = $3 AND b.filter = $4",
        [baseline, recipe, task, filter_name, metrics.ACC_MUTUAL_INFO],
    )
    documents = [_document(row) for row in rows]
    found = [document for document in documents if document is not None]
    return _summary(found) if found and len(found) == len(documents) else None


def _document(row: dict[str, Any]) -> _Document | _Text | None:
    before, after = json.loads(row["before"]), json.loads(row["after"])
    if row["output_type"] == "generate_until":
        return _Text(_text(before), _text(after))
    if row["output_type"] not in ("multiple_choice", "loglikelihood"):
        return None
    first, second = log_likelihoods(before), log_likelihoods(after)
    if first is None or second is None or len(first) != len(second):
        return None
    if row["doubled"]:  # the second half are the choices without their question
        first, second = first[: len(first) // 2], second[: len(second) // 2]
    target = 0 if len(first) == 1 else target_index(row["target"], len(first))
    return _Document(first, second, target)


def _text(response: Any) -> str:
    return json.dumps(response, sort_keys=True)


def log_likelihoods(response: Any) -> np.ndarray | None:
    """One number a choice; a bare log-likelihood is a choice of one, stored as the pair itself."""
    if isinstance(response, list) and len(response) == 2 and not isinstance(response[0], list):
        response = [response]
    try:
        values = np.array([float(choice[0]) for choice in response], dtype=float)
    except (TypeError, ValueError, IndexError, KeyError):
        return None
    return values if len(values) and not np.isnan(values).any() and np.isfinite(values).any() else None


def target_index(target: Any, choices: int) -> int | None:
    """Which choice a stored target names; None where it names none."""
    try:
        index = int(target)
    except (TypeError, ValueError):
        return None
    return index if 0 <= index < choices else None


def _summary(found: Sequence[_Document | _Text]) -> Choices:
    texts = [document for document in found if isinstance(document, _Text)]
    if texts:
        return Choices(
            len(found), sum(document.before != document.after for document in texts) / len(found), None, None
        )
    documents = [document for document in found if isinstance(document, _Document)]
    several = all(len(document.before) > 1 for document in documents)
    changed = (
        sum(int(np.argmax(document.before)) != int(np.argmax(document.after)) for document in documents)
        / len(documents)
        if several
        else None
    )
    divergence = (
        _mean([stats.choice_divergence(document.before, document.after) for document in documents]) if several else None
    )
    gold = [
        float(document.before[document.target]) - float(document.after[document.target])
        for document in documents
        if document.target is not None
    ]
    return Choices(len(documents), changed, divergence, _mean(gold) if len(gold) == len(documents) else None)


def _mean(values: Sequence[float]) -> Estimate | None:
    """The mean with its t interval; None where a value is infinite."""
    return stats.paired_interval(np.array(values)) if all(map(math.isfinite, values)) else None
