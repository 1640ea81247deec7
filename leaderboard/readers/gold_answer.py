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
from typing import Any, NamedTuple

from leaderboard.metrics import ACC_MUTUAL_INFO, GOLD_LOG_LIKELIHOOD, RIGHT_ANSWER_METRICS
from leaderboard.readers.records import ReportedScore
from leaderboard.readers.safe_json import finite
from leaderboard.readers.same_document import DocumentText
from leaderboard.readers.samples import Document, Samples

BYTES_OF_A_WORD = 12
_FLAGS = {"True": True, "False": False}
_BETWEEN_PAIRS = frozenset({"]],[[", "]]]\n[[["})


class Answered(NamedTuple):
    """The log-likelihoods of a document's choices, and whether each was the greedy continuation of its prompt."""

    likelihoods: list[float]
    greedy: list[bool]


class _Sample(NamedTuple):
    """What is known of one sample. accuracy: its `acc`, None where the task has none."""

    document: Document
    answered: Answered
    accuracy: float | None


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
    found = _right_ones(samples, metrics)
    if found is None:
        return None
    return GoldAnswers(
        [sample.answered.likelihoods[place] for sample, place in found],
        [_length(sample.document, place) for sample, place in found],
    )


def words_of(text: str) -> float:
    """The words of an answer: those between spaces, or one for every `BYTES_OF_A_WORD` where that is more, since not
    every language writes spaces. At least one.
    """
    return float(max(1, len(text.split()), math.ceil(len(text.strip().encode()) / BYTES_OF_A_WORD)))


def _length(document: Document, place: int) -> float | None:
    text = _text(document)
    return words_of(text.requests[place][1]) if text is not None and place < len(text.requests) else None


def _right_ones(samples: Samples, metrics: Collection[str]) -> list[tuple[_Sample, int]] | None:
    """Each sample with the place of its right answer among its responses."""
    answers = responses_of(samples.responses)
    if not answers:
        return None
    if ACC_MUTUAL_INFO in metrics:  # the second half are the choices without their question
        halves = [len(answered.likelihoods) // 2 for answered in answers]
        answers = [
            Answered(answered.likelihoods[:half], answered.greedy[:half]) for answered, half in zip(answers, halves)
        ]
    accuracies = [outcome.scores.get("acc") for outcome in samples.outcomes]
    known = [
        _Sample(document, answered, accuracy and accuracy.value)
        for document, answered, accuracy in zip(samples.documents, answers, accuracies)
    ]
    if all(len(answered.likelihoods) == 1 for answered in answers):
        return [(sample, 0) for sample in known] if all(map(_is_right_one, known)) else None
    if RIGHT_ANSWER_METRICS.isdisjoint(metrics):
        return None
    for rule in (_by_place, _by_text, _by_accuracy):
        places = _places(known, rule)
        if places is not None:
            return list(zip(known, places))
    return None


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


def responses_of(texts: Sequence[str]) -> list[Answered] | None:
    """The responses of log-likelihood requests, from the JSON text of each sample's `resps`; None where one is of
    another form.
    """
    return _plain_responses(texts) or _any_responses(texts)


def _plain_responses(texts: Sequence[str]) -> list[Answered] | None:
    """Those as lm-eval writes them since 0.4.4, `[[["-1.5","False"]],[["-2.5","True"]]]`, without a JSON parser: all
    texts are cut at their quotation marks at once.
    """
    parts = "\n".join(texts).split('"')
    around, strings = parts[::2], parts[1::2]
    if (
        (around[0], around[-1]) != ("[[[", "]]]")
        or set(around[1::2]) != {","}
        or not set(around[2:-1:2]) <= _BETWEEN_PAIRS
        or not set(strings[1::2]) <= _FLAGS.keys()
    ):
        return None
    try:
        likelihoods = list(map(float, strings[::2]))
    except ValueError:
        return None
    greedy = [_FLAGS[flag] for flag in strings[1::2]]
    found, first = [], 0
    for text in texts:
        end = first + text.count('"') // 4
        found.append(Answered(likelihoods[first:end], greedy[first:end]))
        first = end
    return found


def _any_responses(texts: Sequence[str]) -> list[Answered] | None:
    found = []
    for text in texts:
        response = json.loads(text)
        pairs = [_pair(one) for one in response] if isinstance(response, list) else []
        if not pairs or None in pairs:
            return None
        likelihoods, greedy = zip(*(pair for pair in pairs if pair is not None))
        found.append(Answered(list(likelihoods), list(greedy)))
    return found


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


def _is_right_one(sample: _Sample) -> bool:
    if sample.accuracy is not None:
        return sample.accuracy == float(sample.answered.greedy[0])
    text = _text(sample.document)
    return text is not None and len(text.requests) == 1 and text.requests[0][1].strip() == text.target.strip() != ""


_Rule = Callable[[_Sample], "int | None"]


def _places(samples: Sequence[_Sample], rule: _Rule) -> list[int] | None:
    """Which choice is right in each sample by one rule; None where it fails in one, or contradicts its accuracy."""
    places = []
    for sample in samples:
        place = rule(sample)
        if place is None or not 0 <= place < len(sample.answered.likelihoods) or not _agrees(sample, place):
            return None
        places.append(place)
    return places


def _agrees(sample: _Sample, place: int) -> bool:
    return sample.accuracy is None or sample.accuracy == float(_likeliest(sample) == place)


def _likeliest(sample: _Sample) -> int:
    """The first of equals, as numpy's `argmax`."""
    likelihoods = sample.answered.likelihoods
    return likelihoods.index(max(likelihoods))


def _by_place(sample: _Sample) -> int | None:
    target = sample.document.target
    return int(target) if target.isdecimal() and len(target) < 5 else None


def _by_text(sample: _Sample) -> int | None:
    text = _text(sample.document)
    if text is None:
        return None
    target, count = text.target.strip(), len(sample.answered.likelihoods)
    named = [place for place, (_, answer) in enumerate(text.requests[:count]) if answer.strip() == target]
    return named[0] if len(named) == 1 else None


def _by_accuracy(sample: _Sample) -> int | None:
    text = _text(sample.document)
    requests = text.requests if text is not None else ()
    if len(requests) != 2 or len(sample.answered.likelihoods) != 2 or requests[0][1] != requests[1][1]:
        return None
    likeliest = _likeliest(sample)
    return {1.0: likeliest, 0.0: 1 - likeliest}.get(-1.0 if finite(sample.accuracy) is None else sample.accuracy or 0.0)
