"""Text metrics of a whole corpus (BLEU, chrF, TER): each document's own share of what the score is made of, so that a
bootstrap over documents needs no text.

Notable choices: counts and scores are sacrebleu's, with its defaults, as lm-eval calls it. The score of a corpus is a
function of the sums of its documents' counts, which sacrebleu keeps behind names of its own; where they are missing, or
it is not installed, there is no test, and the reason is said. Whether they give the reported score is checked before
they are used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from leaderboard import metrics
from leaderboard.compare.corpus_metrics import Contributions, NoTest


def contributions(metric: str, before: Sequence[str], after: Sequence[str]) -> Contributions:
    """What two runs' `[references, answer]` samples, as JSON, contribute to a metric of kind `TEXT`. Raises `NoTest`.

    A wholly right document is an average one of the two runs, a wholly wrong one an average one without any answer.
    """
    references, answers = _texts(metric, before)
    others, after_answers = _texts(metric, after)
    if references != others:
        raise NoTest(f"the two runs have other references: no paired test of {metric}")
    try:
        from sacrebleu import metrics as classes

        scorer: Any = getattr(classes, metrics.named(metric).sacrebleu or "")()
        first, second, empty = (
            np.array(scorer._extract_corpus_statistics(texts, references), dtype=float)
            for texts in (answers, after_answers, [""] * len(answers))
        )
        of_sums = scorer._compute_score_from_stats
    except ImportError:
        raise NoTest(f"{metric} has a paired test where sacrebleu is installed") from None
    except (AttributeError, TypeError, ValueError, IndexError):
        raise NoTest(f"this sacrebleu gives no counts of single documents: no paired test of {metric}") from None

    def score(sums: np.ndarray) -> np.ndarray:
        return np.array([of_sums([round(value) for value in row]).score for row in sums.tolist()])

    return Contributions(first, second, score, (first + second).mean(axis=0) / 2, empty.mean(axis=0))


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
    texts = (
        isinstance(references, list)
        and isinstance(answers, list)
        and all(isinstance(text, str) for text in (*references, *answers))
    )
    return (references, answers[0]) if texts and references and len(answers) == 1 else None
