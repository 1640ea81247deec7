"""Text metrics of a whole corpus (BLEU, chrF, TER): each document's own share of what the score is made of, so that a bootstrap over documents needs no text.

Notable choices: counts and scores are sacrebleu's, with its defaults, as lm-eval calls it. The score of a corpus is a function of the sums of its documents' counts,
which sacrebleu keeps behind names of its own; where they are missing, or it is not installed, there is no test, and the reason is said. Whether they give the reported score is
checked before they are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

METRICS = {"bleu": "BLEU", "chrf": "CHRF", "ter": "TER"}
"""The metric's name in lm-eval -> its class in sacrebleu."""
POINTS = 100.0
"""What a score of one is in these metrics' units."""


class NoTest(Exception):
    """A corpus metric cannot be tested; the message is the reason, shown beside the difference."""


class Counts(NamedTuple):
    """One run's counts of every document `[n, k]`, and `[draws, k] -> [draws]`, the score of their sums."""

    values: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]


def counts(metric: str, parts: Sequence[str]) -> Counts:
    """What `(references, answer)` samples, as JSON, contribute to a metric of `METRICS`. Raises `NoTest`."""
    references, answers = _texts(metric, parts)
    try:
        from sacrebleu import metrics

        scorer: Any = getattr(metrics, METRICS[metric])()
        values = np.array(scorer._extract_corpus_statistics(answers, references), dtype=float)
        of_sums = scorer._compute_score_from_stats
    except ImportError:
        raise NoTest(f"{metric} has a paired test where sacrebleu is installed") from None
    except (AttributeError, TypeError, ValueError, IndexError):
        raise NoTest(f"this sacrebleu gives no counts of single documents: no paired test of {metric}") from None
    return Counts(values, lambda sums: np.array([of_sums([int(value) for value in row]).score for row in sums]))


def _texts(metric: str, parts: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """(the first references of all documents, then the second, and so on; the answers)."""
    pairs = [_pair(part) for part in parts]
    if not pairs or any(pair is None for pair in pairs) or len({len(pair[0]) for pair in pairs if pair}) != 1:
        raise NoTest(f"its samples are not one answer and equally many references each: no paired test of {metric}")
    found = [pair for pair in pairs if pair]
    return [list(stream) for stream in zip(*(references for references, _ in found))], [answer for _, answer in found]


def _pair(part: str) -> tuple[list[str], str] | None:
    try:
        references, answer = json.loads(part)
    except (TypeError, ValueError):
        return None
    references, answers = ([each] if isinstance(each, str) else each for each in (references, answer))
    texts = isinstance(references, list) and isinstance(answers, list) and all(isinstance(text, str) for text in (*references, *answers))
    return (references, answers[0]) if texts and references and len(answers) == 1 else None
