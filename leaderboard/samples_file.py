"""lm-eval's `samples_<task>_<date>.jsonl`: one line per document and filter.

Notable choices:
- A document is known by `doc_key`, a hash of task, document, prompt and target, never by its position. Where a task holds the
  same document twice, `occurrence` counts them in the order of `doc_id`.
- Numbers in `resps` are strings; they are kept as text, so that "the same to the bit" can be asked of them.
- A metric's sample may be a number, a (log-likelihood, weight) pair, or the parts of a corpus metric.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from leaderboard.errors import Unreadable
from leaderboard.records import NO_FILTER, Sample, SampleScore
from leaderboard.untrusted import canonical, clean, finite, integer, read_json_lines

WEIGHTED_METRICS = frozenset({"token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"})
LOG_LIKELIHOOD_OUTPUTS = frozenset({"loglikelihood", "multiple_choice", "loglikelihood_rolling"})


def read_samples(path: Path, task: str, metrics: frozenset[str], cluster_by: str | None, default_filter: str = NO_FILTER) -> list[Sample]:
    """All samples of one task, in the file's order. `default_filter` is that of samples which name none, as before 0.4.4. Raises `Unreadable`."""
    seen: Counter[tuple[str, str]] = Counter()
    samples = []
    for number, line in read_json_lines(path):
        if not isinstance(line, dict) or "doc" not in line:
            raise Unreadable(f"{path.name} line {number} is not a sample of lm-eval (no `doc`)")
        sample = _sample(line, task, metrics, cluster_by, default_filter)
        occurrence = seen[sample.doc_key, sample.filter]
        seen[sample.doc_key, sample.filter] += 1
        samples.append(sample if occurrence == 0 else sample._replace(occurrence=occurrence))
    return samples


def _sample(line: dict[str, Any], task: str, metrics: frozenset[str], cluster_by: str | None, default_filter: str) -> Sample:
    prompt = first_prompt(line.get("arguments"))
    target = str(line.get("target"))
    hashes = _hashes(line, prompt, target)
    document = line["doc"]
    cluster = document.get(cluster_by) if cluster_by and isinstance(document, dict) else None
    return Sample(
        filter=clean(str(line.get("filter") or default_filter)),
        doc_id=integer(line.get("doc_id")),
        doc_key=hashlib.sha256("\x1f".join((task, *hashes)).encode("utf-8", "replace")).hexdigest()[:32],
        occurrence=0,
        doc_hash=hashes[0],
        prompt_hash=hashes[1],
        target_hash=hashes[2],
        source=document,
        prompt=clean(prompt),
        target=clean(target),
        responses=canonical(line.get("resps")),
        filtered_responses=canonical(line.get("filtered_resps")),
        cluster=None if cluster is None else canonical(cluster),
        scores={clean(name): sample_score(name, line[name]) for name in metrics if name in line},
    )


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


def first_prompt(arguments: Any) -> str:
    """The context of the first request, as 0.4.x writes it (`gen_args_0.arg_0`) or as earlier versions did (nested lists)."""
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
    if metric in WEIGHTED_METRICS and isinstance(value, list) and len(value) == 2:
        likelihood, weight = finite(value[0]), finite(value[1])
        return SampleScore(likelihood, weight) if likelihood is not None and weight else SampleScore(None)
    return SampleScore(None, None, canonical(value))


def documents_hash(samples: Iterable[Sample]) -> str:
    """A hash of the set of documents that does not depend on their order (lm-eval's `task_hashes` does)."""
    keys = sorted({f"{sample.doc_key}:{sample.occurrence}" for sample in samples})
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def log_likelihoods(samples: list[Sample]) -> tuple[int, str]:
    """How many distinct log-likelihood texts the first filter holds, and a hash of all of them to the bit."""
    chosen = samples[0].filter if samples else NO_FILTER
    lines = sorted(f"{s.doc_key}:{s.occurrence}:{s.responses}" for s in samples if s.filter == chosen)
    distinct = len({s.responses for s in samples if s.filter == chosen})
    return distinct, hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()


def content_hash(samples: Iterable[Sample]) -> str:
    """A hash of everything that came out for these samples, independent of their order. Each line is `canonical` of a list, written out because there are millions."""
    text = json.encoder.encode_basestring
    names: dict[str, str] = {}
    lines = sorted(
        f'["{s.doc_key}",{s.occurrence},{names.get(s.filter) or names.setdefault(s.filter, text(s.filter))},{text(s.responses)},{text(s.filtered_responses)},'
        f"[{','.join([_outcome(name, score) for name, score in sorted(s.scores.items())])}]]"
        for s in samples
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()


def _outcome(metric: str, score: SampleScore) -> str:
    """One metric in canonical form; numbers, which nearly all are, without the encoder."""
    if score.value is not None and score.weight is None:
        return f"[{json.encoder.encode_basestring(metric)},{score.value!r},null,null]"
    return canonical([metric, *score])
