"""lm-eval's `samples_<task>_<date>.jsonl`: one line per document and filter.

Notable choices:
- A document is known by `doc_key`, a hash of task, document, prompt and target, never by its position or `doc_id`:
  lm-eval logs other ids than those of the documents where `--samples` names them in another order. Where a task holds
  the same document twice, `occurrence` counts the copies in the order of the file, and nothing is paired by it.
- Numbers in `resps` are strings; they are kept as text, so that "the same to the bit" can be asked of them.
- A metric's sample may be a number, a (log-likelihood, weight) pair, or the parts of a corpus metric.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from leaderboard import metrics
from leaderboard.errors import Unreadable
from leaderboard.readers.gold_answer import with_gold
from leaderboard.readers.jsonl import parse_line, read_lines
from leaderboard.readers.records import NO_FILTER
from leaderboard.readers.safe_json import canonical, canonical_each, clean, finite, integer
from leaderboard.readers.same_document import DocumentText, SampleContents, requests_of
from leaderboard.readers.samples import Document, SampleOutcome, Samples, SampleScore, outcome
from leaderboard.readers.samples_fast_path import KNOWN_BYTES, Known, Lines

LOG_LIKELIHOOD_OUTPUTS = frozenset({"loglikelihood", "multiple_choice", "loglikelihood_rolling"})
_BLOCK = 500  # lines that are read in one go
_LONGEST_NAME = 80  # of a cluster


@dataclass(frozen=True)
class SampleForm:
    """What a task's results say of its samples. `default_filter` is that of samples which name none, as before
    0.4.4.
    """

    task: str
    metrics: frozenset[str]
    cluster_by: str | None = None
    default_filter: str = NO_FILTER


class SamplesReader:
    """Reads samples files. Of runs that answer the same documents, all but the first are read in half the time by one
    reader.
    """

    def __init__(self) -> None:
        self._known: dict[SampleForm, Known] = {}
        self._size = 0

    def read(self, path: Path, form: SampleForm) -> Samples:
        """All samples of one task, in the file's order. Raises `Unreadable`."""
        if self._size > KNOWN_BYTES:
            self._known.clear()
            self._size = 0
        known = self._known.get(form) or self._known.setdefault(
            form, Known(form.metrics, lambda line: _document(line, form), lambda line: _outcome(line, form))
        )
        columns, size, before = Lines([], [], [], []), 0, known.size
        for numbered in _blocks(path):
            lines = [line for _, line in numbered]
            found = None
            if set(map(type, lines)) == {bytes}:
                size += sum(map(len, lines))
                found = known.read(lines)
            columns.extend(found or _parsed(numbered, path, form))
        self._size += known.size - before
        occurrence = _occurrences([(document.doc_key, document.filter) for document in columns.documents])
        return with_gold(Samples(*columns, occurrence, size), form.metrics)


def _blocks(path: Path) -> Iterator[list[tuple[int, Any]]]:
    lines = read_lines(path)
    while block := list(islice(lines, _BLOCK)):
        yield block


def _parsed(numbered: Sequence[tuple[int, Any]], path: Path, form: SampleForm) -> Lines:
    """The same as `Known.read` of lines in any form. Raises `Unreadable`."""
    lines = []
    for number, text in numbered:
        line = parse_line(text, path, number)
        if not isinstance(line, dict) or "doc" not in line:
            raise Unreadable(f"{path.name} line {number} is not a sample of lm-eval (no `doc`)")
        lines.append(line)
    responses, filtered = (canonical_each([line.get(name) for line in lines]) for name in ("resps", "filtered_resps"))
    return Lines(
        [_document(line, form) for line in lines], responses, filtered, [_outcome(line, form) for line in lines]
    )


def _document(line: dict[str, Any], form: SampleForm) -> Document:
    prompt = first_prompt(line.get("arguments"))
    target = str(line.get("target"))
    hashes = _hashes(line, prompt, target)
    source = line["doc"]
    cluster = source.get(form.cluster_by) if form.cluster_by and isinstance(source, dict) else None
    return Document(
        filter=clean(str(line.get("filter") or form.default_filter)),
        doc_id=integer(line.get("doc_id")),
        doc_key=_sha("\x1f".join((form.task, *hashes)))[:32],
        doc_hash=hashes[0],
        prompt_hash=hashes[1],
        target_hash=hashes[2],
        cluster=None if cluster is None else _short(canonical(cluster)),
        source=source,
        prompt=prompt,
        target=target,
        contents=SampleContents(DocumentText(requests_of(line.get("arguments")), target, source)),
    )


def _short(cluster: str) -> str:
    """The name of a cluster; of a passage its digest, since it stands beside every score."""
    return cluster if len(cluster) <= _LONGEST_NAME else _sha(cluster)[:32]


def _outcome(line: dict[str, Any], form: SampleForm) -> SampleOutcome:
    return outcome({clean(name): sample_score(name, line[name]) for name in sorted(form.metrics) if name in line})


def _hashes(line: dict[str, Any], prompt: str, target: str) -> tuple[str, str, str]:
    """lm-eval's own three hashes, or, for versions that wrote none, the same computed from what they wrote."""
    return (
        _given(line, "doc_hash") or _sha(json.dumps(line["doc"], indent=2, ensure_ascii=False)),
        _given(line, "prompt_hash") or _sha(prompt),
        _given(line, "target_hash") or _sha(target),
    )


def _given(line: dict[str, Any], name: str) -> str | None:
    value = line.get(name)
    return clean(value) if isinstance(value, str) else None


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _occurrences(documents: Sequence[tuple[str, str]]) -> list[int]:
    """How many times each one was there before."""
    if len(set(documents)) == len(documents):
        return [0] * len(documents)
    seen: Counter[tuple[str, str]] = Counter()
    counted = []
    for document in documents:
        counted.append(seen[document])
        seen[document] += 1
    return counted


def first_prompt(arguments: Any) -> str:
    """The context of the first request, as 0.4.x writes it (`gen_args_0.arg_0`) or as earlier versions did (nested
    lists).
    """
    if isinstance(arguments, dict):
        first = arguments.get("gen_args_0")
        arguments = first.get("arg_0") if isinstance(first, dict) else None
    while isinstance(arguments, list) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def sample_score(metric: str, value: Any) -> SampleScore:
    """Sort one sample value into number, weighted log-likelihood, or parts."""
    number = finite(value)
    if number is not None:
        return SampleScore(number)
    if isinstance(value, float):
        return SampleScore(None)  # NaN or infinite
    if isinstance(value, list) and len(value) == 2 and metrics.named(metric).weighted:
        likelihood, weight = finite(value[0]), finite(value[1])
        return SampleScore(likelihood, weight) if likelihood is not None and weight else SampleScore(None)
    return SampleScore(None, None, canonical(value))
