"""Whether two documents ask for the same, however they are written: digests of what is asked, folded.

lm-eval's `doc_hash` covers every column and every space of a document. These digests do not: whitespace, case, Unicode
form, kinds of quotes and dashes, the order of columns and of choices, and the examples before a question do not count.
Whoever draws documents to learn from and whoever reads a run compute them alike, the one from requests that are built,
the other from a samples file.

A document has up to three kinds of them, each with its own opening:
- `document`: all its columns, sorted by name;
- `choices`: every choice with its prompt, sorted;
- `answer`: prompt and right answer as one text, so that it is also that of a text which holds both.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Request = tuple[str, str]
"""A prompt and what is scored after it; the latter is empty where the model writes it itself."""

_INVISIBLE = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_ALIKE = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4`", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
)
# Between two digits a space says where a number ends.
_SPACE = re.compile(r"(?<=\d)(\s)\s*(?=\d)|\s+")
_END = re.compile(r"[.!?;,:]+$")
_LABEL = re.compile(r"(?:^|(?<=\s))\(?([A-Za-z]|[1-9])[.):]\s+")
_EXAMPLES_END = "\n\n"


class DocumentText(NamedTuple):
    """What is known of one document. requests: all that the model is asked; target: the right answer as text, or the
    place of the right one among the requests, counted from 0. source: the document, as JSON has it.
    """

    requests: tuple[Request, ...]
    target: str
    source: Any = None


def fold(text: str) -> str:
    """A text without what does not change its meaning: Unicode form, case, whitespace, invisible characters."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).translate(_ALIKE)
        text = unicodedata.normalize("NFKC", text.casefold())
    return _SPACE.sub(lambda gap: " " if gap[1] else "", text.lower().translate(_ALIKE)).strip()


def content_digests(document: DocumentText, *beginnings: str) -> frozenset[str]:
    """SHA-256 in hex of everything that tells this document, as it is asked and, where its prompts begin with one of
    `beginnings` (a description of the task), without that.
    """
    found = {_digest("document", _canonical(document.source))} if isinstance(document.source, dict) else set()
    for requests in {document.requests, *(_without(beginning, document.requests) for beginning in beginnings)}:
        found |= _of_requests(requests, document.target)
    return frozenset(found)


def digests_in_samples(document: DocumentText, num_fewshot: int | None) -> frozenset[str]:
    """The same of a document in a samples file. Where examples stand before the question, what follows the last blank
    line is taken for the question too.
    """
    found = content_digests(document)
    if not num_fewshot:
        return found
    asked = tuple((context.rpartition(_EXAMPLES_END)[2], answer) for context, answer in document.requests)
    return found | _of_requests(asked, document.target)


@dataclass
class SampleContents:
    """A document of a samples file, and its digests once they are asked for: runs of one model share their
    documents.
    """

    text: DocumentText
    _digests: dict[bool, frozenset[str]] = field(default_factory=dict, compare=False, repr=False)

    def digests(self, num_fewshot: int | None) -> frozenset[str]:
        """See `digests_in_samples`."""
        examples = bool(num_fewshot)
        if examples not in self._digests:
            self._digests[examples] = digests_in_samples(self.text, num_fewshot)
        return self._digests[examples]


def text_digests(text: str) -> frozenset[str]:
    """Those of a text: of all of it, and of every line and sentence, each of which may be a question with its
    answer.
    """
    parts = {text, *text.splitlines(), *re.split(r"(?<=[.!?])\s+", text.replace("\n", " "))}
    return frozenset(_digest("answer", folded) for part in parts if (folded := _END.sub("", fold(part))))


def requests_of(arguments: Any) -> tuple[Request, ...]:
    """The requests in a sample's `arguments`, as 0.4.x writes them (`gen_args_0.arg_0`) or as earlier versions did
    (lists). Empty where they hold more than texts (an image), which then is what is asked.
    """
    if isinstance(arguments, dict):
        listed = [
            [value for _, value in sorted(one.items())] if isinstance(one, dict) else one for one in arguments.values()
        ]
    else:
        listed = list(arguments) if isinstance(arguments, (list, tuple)) else []
        if listed and isinstance(listed[0], str):
            listed = [listed]
    return plain_requests(listed)


def plain_requests(arguments: Iterable[Any]) -> tuple[Request, ...]:
    """Prompt and continuation of each request, from its arguments; empty where there is more than text in one."""
    found = []
    for one in arguments:
        if not isinstance(one, (list, tuple)) or not one or len(one) > 2 or not isinstance(one[0], str):
            return ()
        found.append((one[0], one[1] if len(one) == 2 and isinstance(one[1], str) else ""))
    return tuple(found)


def right_answer(requests: Sequence[Request], target: str) -> Request | None:
    """The prompt with its right answer; None where the target does not say which of several it is."""
    if len(requests) == 1:
        context, answer = requests[0]
        # Of a text that is scored whole, the target is the text.
        return context, answer or ("" if context == target else target)
    if target.isdecimal() and int(target) < len(requests):
        return requests[int(target)]
    named = [request for request in requests if fold(request[1]) == fold(target)]
    return named[0] if len(named) == 1 else None


def _of_requests(requests: Sequence[Request], target: str) -> set[str]:
    found = set()
    answered = right_answer(requests, target)
    if answered is not None and (text := _END.sub("", fold(" ".join(answered)))):
        found.add(_digest("answer", text))
    # Those of an unconditional likelihood ask nothing.
    asked = [request for request in requests if request[0]] or list(requests)
    if len(asked) > 1:
        prompts = {context: fold(in_one_order(context)) for context, _ in asked}
        lines = sorted({f"{prompts[context]}\x1f{fold(answer)}" for context, answer in asked})
        found.add(_digest("choices", *lines))
    return found


def _without(beginning: str, requests: Sequence[Request]) -> tuple[Request, ...]:
    return tuple((context.removeprefix(beginning), answer) for context, answer in requests)


def _digest(kind: str, *parts: str) -> str:
    return hashlib.sha256("\x1e".join((kind, *parts)).encode("utf-8", "replace")).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(_folded(value), sort_keys=True, ensure_ascii=False, default=str)


def _folded(value: Any) -> Any:
    if isinstance(value, str):
        return fold(value)
    if isinstance(value, dict):
        return {fold(str(key)): _folded(one) for key, one in value.items()}
    return [_folded(one) for one in value] if isinstance(value, (list, tuple)) else value


def in_one_order(text: str) -> str:
    """A text in which choices that are listed by consecutive letters or numbers (`A. red B. blue`) stand sorted and
    without their labels.
    """
    parts, end = [], 0
    for start, stop, choices in _listings(text):
        parts += [text[end:start], *sorted(choices, key=fold)]
        end = stop
    return "\n".join([*parts, text[end:]]) if parts else text


def _listings(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """Where each listing of choices starts and ends, and its choices."""
    labels = list(_LABEL.finditer(text))
    place = 0
    while place < len(labels):
        last = place
        if labels[place][1] in "Aa1":
            while last + 1 < len(labels) and ord(labels[last + 1][1]) == ord(labels[last][1]) + 1:
                last += 1
        if last > place:
            run = labels[place : last + 1]
            line = text.find("\n", run[-1].end())
            stop = len(text) if line < 0 else line
            edges = [*(label.start() for label in run[1:]), stop]
            yield run[0].start(), stop, [text[label.end() : edge].strip() for label, edge in zip(run, edges)]
        place = last + 1
