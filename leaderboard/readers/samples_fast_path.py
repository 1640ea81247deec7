"""Lines of samples in the form that lm-eval writes them now, without parsing what is known already.

    {"doc_id": .., "doc": .., "target": .., "arguments": .., "resps": .., "filtered_resps": .., "filter": .., ..,
    "target_hash": "..", "acc": ..}
    ------------------- head ---------------------------              ..                   ..  ------- about
    -------------------  - scores -

Head and about say which document it is: every run of a model asks the same, and they are most of the text. Scores are
few. So both are parsed once and found again by their text.

Nothing is taken on trust. Where a line is cut, each part, closed and opened by braces of our own, must be JSON by
itself; then so is the line, and its keys are those of its parts. No key may come in two parts. Whatever
does not fit is left to the parser, line by line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic_core import from_json

from leaderboard.readers.safe_json import canonical_each
from leaderboard.readers.samples import Document, SampleOutcome

KNOWN_BYTES = 64 * 2**20  # before all is forgotten
_VALUE_BYTES = 1024  # what a value takes beside its text, about
_HASH = b', "target_hash": "'
_HASH_END = len(_HASH) + 64 + 1  # a SHA-256 in hex, and its quotation mark
_RESPONSES = frozenset({"resps", "filtered_resps"})
_OF_DOCUMENT = _RESPONSES | {
    "doc_id",
    "doc",
    "target",
    "arguments",
    "filter",
    "metrics",
    "doc_hash",
    "prompt_hash",
    "target_hash",
}
_NOT_PLAIN = bytes(set(range(256)) - set(range(32)) - {ord("\\")})  # deleted, they leave what is not plain


class Lines(NamedTuple):
    """What lines say, as columns."""

    documents: list[Document]
    responses: list[str]
    filtered_responses: list[str]
    outcomes: list[SampleOutcome]

    def extend(self, more: Lines) -> None:
        """Add further lines at the end."""
        self.documents.extend(more.documents)
        self.responses.extend(more.responses)
        self.filtered_responses.extend(more.filtered_responses)
        self.outcomes.extend(more.outcomes)


class Known:
    """What was parsed for samples of one form: documents, and scores, by their texts."""

    def __init__(
        self,
        metrics: frozenset[str],
        document: Callable[[dict[str, Any]], Document],
        outcome: Callable[[dict[str, Any]], SampleOutcome],
    ) -> None:
        self._metrics, self._document, self._outcome = metrics, document, outcome
        self._documents: dict[tuple[bytes, bytes], Document] = {}
        self._outcomes: dict[bytes, SampleOutcome] = {}
        self.size = 0  # of what is known, in bytes

    def read(self, lines: Sequence[bytes]) -> Lines | None:
        """What the lines say, or None where one is not as usual."""
        try:
            parts = [self._split(line) for line in lines]
            documents, responses, filtered, outcomes = map(list, zip(*parts))
            texts = _canonical_texts(responses + filtered)
        except ValueError:
            return None
        return Lines(documents, texts[: len(lines)], texts[len(lines) :], outcomes)

    def _split(self, line: bytes) -> tuple[Document, bytes, bytes, SampleOutcome]:
        head, _, rest = line.partition(b', "resps": ')
        responses, _, rest = rest.partition(b', "filtered_resps": ')
        filtered, _, rest = rest.partition(b', "filter": ')
        end = rest.find(_HASH) + _HASH_END
        about, scores = rest[:end], rest[end:]
        return (
            self._documents.get((head, about)) or self._learn_document(head, about),
            responses,
            filtered,
            self._outcomes.get(scores) or self._learn_outcome(scores),
        )

    def _learn_document(self, head: bytes, about: bytes) -> Document:
        first, second = _object(head + b"}"), _object(b'{"filter": ' + about + b"}")
        if (
            "doc" not in first
            or not first.keys().isdisjoint(second)
            or not (first.keys() | second.keys()).isdisjoint(_RESPONSES | self._metrics)
        ):
            raise ValueError("a key that belongs elsewhere")
        self._make_room(len(head) + len(about))
        return self._documents.setdefault((head, about), self._document(first | second))

    def _learn_outcome(self, scores: bytes) -> SampleOutcome:
        if not scores.startswith(b", "):
            raise ValueError("no scores")
        value = _object(b"{" + scores[2:])
        if not value.keys().isdisjoint(_OF_DOCUMENT):
            raise ValueError("a key that belongs elsewhere")
        self._make_room(len(scores))
        return self._outcomes.setdefault(scores, self._outcome(value))

    def _make_room(self, count: int) -> None:
        self.size += count + _VALUE_BYTES
        if self.size > KNOWN_BYTES:
            self._documents.clear()
            self._outcomes.clear()
            self.size = count + _VALUE_BYTES


def _object(text: bytes) -> dict[str, Any]:
    value = from_json(text, cache_strings="keys")
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _canonical_texts(texts: Sequence[bytes]) -> list[str]:
    """`canonical` of JSON texts. Raises `ValueError` where one is no JSON.

    Nearly all are lists of plain strings, of which canonical means without spaces. They differ in their strings only,
    which any text without a backslash or control character may be: it suffices to look at what is around them, of which
    few kinds occur.
    """
    together = b"\n".join(texts)
    if together.translate(None, _NOT_PLAIN) == b"\n" * (len(texts) - 1):
        parts = together.decode("utf-8").split('"')
        around = "\0".join(parts[::2]).replace(" ", "")
        kinds = around.split("\n")
        if len(kinds) == len(texts) and set(around) <= set("[],\0\n"):
            for kind in set(kinds):
                from_json(kind.replace("\0", '""'))
            parts[::2] = around.split("\0")
            return '"'.join(parts).split("\n")
    return canonical_each([from_json(text) for text in texts])
