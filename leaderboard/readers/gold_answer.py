"""The log-likelihood of the right answer (the gold answer) to each document, read from its responses.

lm-eval logs the log-likelihood of every choice, and scores only which is the largest: accuracy can rise while the right
answers become less likely. Both are sums over an answer's tokens, in nats, not normalised by its length.

Notable choices:
- It is absent rather than wrong. A task has it where its metrics speak of right answers, each sample holds one pair of
  (log-likelihood, is greedy) a request, and one rule names the right one in every document and agrees with what lm-eval
  scored: the likeliest choice is the named one where `acc` is 1, and another where it is 0.
- The rules, in this order: the target is the place of the right choice; it is the text of one; or, for two choices that
  differ in their prompt alone (Winogrande), `acc` itself tells it.
- Of a single request the answer is the right one where it is the target; `acc`, where there is one, must be whether it
  was greedy, and then is enough.
- Nobody says it of documents with several right answers, of bias probes (which have none) and of texts scored whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from leaderboard.metrics import ACC_MUTUAL_INFO, GOLD_LOG_LIKELIHOOD, RIGHT_ANSWER_METRICS
from leaderboard.readers.records import ReportedScore
from leaderboard.readers.safe_json import finite
from leaderboard.readers.same_document import DocumentText
from leaderboard.readers.samples import Document, Samples

BYTES_OF_A_WORD = 12
_FLAGS = {"True": True, "False": False}
_BETWEEN_PAIRS = frozenset({"]],[[", "]]]\n[[["})


class Responses(NamedTuple):
    """The log-likelihoods of each sample's choices, and whether its first was the greedy continuation."""

    likelihoods: list[list[float]]
    greedy: list[bool]


_Rule = Callable[[Document, list[float], "float | None"], "int | None"]
"""Which choice of a document is right, from its log-likelihoods and its accuracy, where the task has one."""


class GoldAnswers(NamedTuple):
    """Of each sample the right answer's log-likelihood in nats and its length in words (None where unknown)."""

    likelihoods: list[float]
    words: list[float | None]


def gold_log_likelihoods(samples: Samples, metrics: Collection[str]) -> list[float] | None:
    """The right answer's log-likelihood in nats, one a sample; None where the samples do not tell it for certain.

    metrics: the names of the metrics that the task reports. A value is infinite or NaN where the response is.
    """
    found = gold_answers(samples, metrics)
    return None if found is None else found.likelihoods


def gold_answers(samples: Samples, metrics: Collection[str]) -> GoldAnswers | None:
    """The same with the answers' lengths."""
    responses = responses_of(samples.responses) if samples.responses else None
    if responses is None:
        return None
    likelihoods = responses.likelihoods
    if ACC_MUTUAL_INFO in metrics:  # the second half are the choices without their question
        likelihoods = [values[: len(values) // 2] for values in likelihoods]
    places = _right_places(samples, responses._replace(likelihoods=likelihoods), metrics)
    if places is None:
        return None
    return GoldAnswers(
        [values[place] for values, place in zip(likelihoods, places)], list(map(_length, samples.documents, places))
    )


def _right_places(samples: Samples, responses: Responses, metrics: Collection[str]) -> list[int] | None:
    """Which choice is right, one a sample."""
    scores = [outcome.scores.get("acc") for outcome in samples.outcomes]
    accuracies = [None if score is None else score.value for score in scores]
    if all(len(values) == 1 for values in responses.likelihoods):
        right = all(map(_is_right_one, samples.documents, responses.greedy, accuracies))
        return [0] * len(samples) if right else None
    if RIGHT_ANSWER_METRICS.isdisjoint(metrics):
        return None
    columns = samples.documents, responses.likelihoods, accuracies
    found = (_by_rule(*columns, rule) for rule in (_by_place, _by_text, _by_accuracy))
    return next((places for places in found if places is not None), None)


@lru_cache(65_536)
def words_of(text: str) -> float:
    """The words of an answer: those between spaces, or one for every `BYTES_OF_A_WORD` where that is more, since not
    every language writes spaces. At least one.
    """
    return float(max(1, len(text.split()), math.ceil(len(text.strip().encode("utf-8", "replace")) / BYTES_OF_A_WORD)))


def _length(document: Document, place: int) -> float | None:
    text = _text(document)
    return words_of(text.requests[place][1]) if text is not None and place < len(text.requests) else None


def with_gold(samples: Samples, metrics: Collection[str]) -> Samples:
    """The samples with their right answers: of the first filter, and None for all others, which have the same
    responses. None at all for a task that reports a metric of this name itself.
    """
    found = None if GOLD_LOG_LIKELIHOOD in metrics else gold_answers(samples, metrics)
    if found is None:
        return samples
    first = samples.documents[0].filter
    gold = [value if row.filter == first else None for value, row in zip(found.likelihoods, samples.documents)]
    return replace(samples, gold=gold, gold_words=found.words)


def gold_score(task: str, samples: Samples | None) -> list[ReportedScore]:
    """The mean of a task's gold log-likelihoods as a score with lm-eval's standard error, or nothing."""
    values = [value for value in (samples.gold or () if samples else ()) if value is not None]
    if samples is None or not values:
        return []
    count, beyond = len(values), next((value for value in values if not math.isfinite(value)), None)
    mean = math.fsum(values) / count if beyond is None else beyond
    spread = math.fsum((value - mean) ** 2 for value in values) if beyond is None and count > 1 else None
    return [
        ReportedScore(
            task=task,
            metric=GOLD_LOG_LIKELIHOOD,
            filter=samples.documents[0].filter,
            score=finite(mean),
            reported=str(mean),
            stderr=None if spread is None else math.sqrt(spread / (count - 1) / count),
            higher_is_better=True,
            best_value=None,
            margin=None,
            is_primary=False,
            is_group=False,
        )
    ]


def responses_of(texts: Sequence[str]) -> Responses | None:
    """The responses of log-likelihood requests, from the JSON text of each sample's `resps`; None where one is of
    another form.
    """
    return _plain_responses(texts) or _any_responses(texts)


def _plain_responses(texts: Sequence[str]) -> Responses | None:
    """Those as lm-eval writes them since 0.4.4, `[[["-1.5","False"]],[["-2.5","True"]]]`, without a JSON parser: all
    texts are cut at their quotation marks at once.
    """
    parts = "\n".join(texts).split('"')
    around, strings, flags = parts[::2], parts[1::4], parts[3::4]
    if (
        (around[0], around[-1]) != ("[[[", "]]]")
        or set(around[1::2]) != {","}
        or not set(around[2:-1:2]) <= _BETWEEN_PAIRS
        or not set(flags) <= _FLAGS.keys()
    ):
        return None
    try:
        values = list(map(float, strings))
    except ValueError:
        return None
    ends = list(accumulate(text.count('"') // 4 for text in texts))
    starts = [0, *ends[:-1]]
    return Responses(
        [values[start:end] for start, end in zip(starts, ends)], [_FLAGS[flags[start]] for start in starts]
    )


def _any_responses(texts: Sequence[str]) -> Responses | None:
    likelihoods, greedy = [], []
    for text in texts:
        response = json.loads(text)
        pairs = [_pair(one) for one in response] if isinstance(response, list) else []
        known = [pair for pair in pairs if pair is not None]
        if not known or len(known) != len(pairs):
            return None
        likelihoods.append([likelihood for likelihood, _ in known])
        greedy.append(known[0][1])
    return Responses(likelihoods, greedy)


def _pair(response: Any) -> tuple[float, bool] | None:
    """The (log-likelihood, is greedy) of one request, in as many lists of one as there are; None for another form."""
    while isinstance(response, list) and len(response) == 1:
        (response,) = response
    if not isinstance(response, list) or len(response) != 2:
        return None
    likelihood, greedy = response
    greedy = _FLAGS.get(greedy) if isinstance(greedy, str) else greedy
    if not isinstance(greedy, bool) or isinstance(likelihood, bool) or not isinstance(likelihood, (int, float, str)):
        return None
    try:
        return float(likelihood), greedy
    except (ValueError, OverflowError):
        return None


def _text(document: Document) -> DocumentText | None:
    return None if document.contents is None else document.contents.text


def _is_right_one(document: Document, greedy: bool, accuracy: float | None) -> bool:
    if accuracy is not None:
        return accuracy == greedy
    text = _text(document)
    return text is not None and len(text.requests) == 1 and text.requests[0][1].strip() == text.target.strip() != ""


def _by_rule(
    documents: Sequence[Document], likelihoods: Sequence[list[float]], accuracies: Sequence[float | None], rule: _Rule
) -> list[int] | None:
    """The right choices by one rule; None where it fails for one document, or contradicts its accuracy."""
    found = []
    for document, values, accuracy in zip(documents, likelihoods, accuracies):
        place = rule(document, values, accuracy)
        if place is None or not 0 <= place < len(values):
            return None
        if accuracy is not None and accuracy != (_likeliest(values) == place):
            return None
        found.append(place)
    return found


def _likeliest(values: list[float]) -> int:
    """The first of equals, as numpy's `argmax`."""
    return values.index(max(values))


def _by_place(document: Document, values: list[float], accuracy: float | None) -> int | None:
    target = document.target
    return int(target) if target.isdecimal() and len(target) < 5 else None


def _by_text(document: Document, values: list[float], accuracy: float | None) -> int | None:
    text = _text(document)
    if text is None:
        return None
    target = text.target.strip()
    named = [place for place, (_, answer) in enumerate(text.requests[: len(values)]) if answer.strip() == target]
    return named[0] if len(named) == 1 else None


def _by_accuracy(document: Document, values: list[float], accuracy: float | None) -> int | None:
    text = _text(document)
    requests = text.requests if text is not None else ()
    if accuracy not in (0.0, 1.0) or len(values) != 2 or len(requests) != 2 or requests[0][1] != requests[1][1]:
        return None
    likeliest = _likeliest(values)
    return likeliest if accuracy else 1 - likeliest
