"""All samples of one task, and the hashes that make runs comparable.

Notable choice: runs of one model answer the same documents, often with the same scores, so that samples share what they
have in common: an object for each would take longer to make than to read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from leaderboard.readers.safe_json import canonical, clean, document_text
from leaderboard.readers.same_document import SampleContents


class SampleScore(NamedTuple):
    """One metric of one document. Exactly one of `value` and `parts` is set, or neither where it was not finite.

    `value` is a number in the metric's own units, or a text's log-likelihood where `weight` (words or bytes) is set.
    `parts` is JSON: a (gold, prediction) pair and the like, for metrics that only exist over a whole corpus.
    """

    value: float | None
    weight: float | None = None
    parts: str | None = None


class Document(NamedTuple):
    """What was asked, under one filter. `source`, `prompt` and `target` are as they were read: `texts` makes them
    storable, which a store needs once, however many runs answer. `contents` tells
    it from others, however it is written; None where nobody read it from a file.
    """

    filter: str
    doc_id: int | None
    doc_key: str
    doc_hash: str
    prompt_hash: str
    target_hash: str
    cluster: str | None
    source: Any
    prompt: str
    target: str
    contents: SampleContents | None = None

    def texts(self) -> dict[str, str]:
        """The document as JSON in the order of its own keys, its prompt and its target."""
        return {
            "document": clean(document_text(self.source)),
            "prompt": clean(self.prompt),
            "target": clean(self.target),
        }


class SampleOutcome(NamedTuple):
    """The scores of a sample by metric, and their canonical text."""

    scores: dict[str, SampleScore]
    text: str


def outcome(scores: dict[str, SampleScore]) -> SampleOutcome:
    """With its text: the metrics in the order of their names."""
    return SampleOutcome(scores, ",".join([_canonical_score(metric, scores[metric]) for metric in sorted(scores)]))


def _canonical_score(metric: str, score: SampleScore) -> str:
    """`canonical` of metric and score; numbers, which nearly all are, without the encoder."""
    if score.value is not None and score.weight is None:
        return f"[{json.encoder.encode_basestring(metric)},{score.value!r},null,null]"
    return canonical([metric, *score])


@dataclass(frozen=True)
class Samples:
    """A task's samples, one for each document and filter, in the file's order. All lists have one entry a sample;
    `occurrence` counts copies of one document in that order, which says nothing of which copy is which in another file;
    `size` is that of the lines, in bytes. `gold` is the right answer's log-likelihood in nats (see `gold_answer`), for
    samples of the first filter, since all filters share the responses; None where the samples do not tell it;
    `gold_words` is that answer's length.
    """

    documents: list[Document] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    filtered_responses: list[str] = field(default_factory=list)
    outcomes: list[SampleOutcome] = field(default_factory=list)
    occurrence: list[int] = field(default_factory=list)
    size: int = 0
    gold: list[float | None] | None = None
    gold_words: list[float | None] | None = None

    def __len__(self) -> int:
        return len(self.documents)

    @cached_property
    def identities(self) -> list[str]:
        """Which document each sample is of."""
        return [f"{document.doc_key}:{occurrence}" for document, occurrence in zip(self.documents, self.occurrence)]

    @cached_property
    def distinct(self) -> int:
        """How many documents there are, counted once however many filters there are."""
        return len(set(self.identities))


def documents_hash(samples: Samples) -> str:
    """A hash of the set of documents that does not depend on their order (lm-eval's `task_hashes` does)."""
    return _hash_of(set(samples.identities))


def log_likelihoods(samples: Samples) -> tuple[int, str]:
    """How many distinct log-likelihood texts the first filter holds, and a hash of all of them to the bit."""
    first = samples.documents[0].filter if samples else ""
    pairs = [
        (identity, responses)
        for identity, responses, document in zip(samples.identities, samples.responses, samples.documents)
        if document.filter == first
    ]
    return len({responses for _, responses in pairs}), _hash_of(
        [f"{identity}:{responses}" for identity, responses in pairs]
    )


def content_hash(samples: Samples) -> str:
    """A hash of everything that came out for these samples, independent of their order. Each line is `canonical` of a
    list, written out because there are millions.
    """
    text = json.encoder.encode_basestring
    filters = {name: text(name) for name in {document.filter for document in samples.documents}}
    columns = (samples.documents, samples.occurrence, samples.responses, samples.filtered_responses, samples.outcomes)
    return _hash_of(
        [
            f'["{document.doc_key}",{occurrence},{filters[document.filter]},{text(responses)},'
            f"{text(filtered)},[{found.text}]]"
            for document, occurrence, responses, filtered, found in zip(*columns)
        ]
    )


def _hash_of(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "replace")).hexdigest()
