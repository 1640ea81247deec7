"""What a file of another harness says, in one form for all of them, and the run made of it.

Notable choices:
- A run keeps the name of its harness as its origin. Two harnesses that call a task alike ask and score it in their own
  ways, so that runs of one are never compared with runs of another (`compare.comparability`).
- Documents are known by what the file says of them: the same question with the same target is the same document in two
  runs of one harness, and is paired.
- Nothing is known of weights but the model's name: a run is taken for one of the model as it is, as far as its files
  say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.metrics import best_value, direction
from leaderboard.readers.asked import asked_of
from leaderboard.readers.records import NO_FILTER, ReportedScore, Run, RunVariant, TaskRun
from leaderboard.readers.results import number
from leaderboard.readers.run_id import with_id
from leaderboard.readers.safe_json import canonical, clean, digest, document_text
from leaderboard.readers.samples import Document, Samples, SampleScore, documents_hash, outcome
from leaderboard.readers.secrets import without_secrets
from leaderboard.readers.variants import model_key


class ForeignSample(NamedTuple):
    """One document with its answer. scores: filter -> metric -> its number, None where it is not finite."""

    doc_id: int | None
    source: dict[str, Any]
    prompt: str
    target: str
    response: Any
    scores: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class ForeignTask:
    """One task as a harness ran it. samples: None where the file has none. scores: of the task alone, no groups."""

    task: str
    scores: list[ReportedScore]
    samples: list[ForeignSample] | None = None
    version: str | None = None
    num_fewshot: int | None = None
    generation_arguments: str | None = None
    system_instruction_hash: str | None = None
    sample_count: int | None = None
    subset: str | None = None


@dataclass(frozen=True)
class ForeignResults:
    """One file. harness: its name, which becomes the run's origin. settings: what was asked, as JSON values. groups:
    scores over several tasks.
    """

    harness: str
    version: str | None
    model_name: str
    tasks: list[ForeignTask]
    settings: dict[str, Any]
    groups: list[ReportedScore] = field(default_factory=list)
    model_arguments: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    revision: str | None = None
    identity: str | None = None
    dtype: str | None = None
    backend: str | None = None
    started: datetime | None = None
    warnings: tuple[str, ...] = ()


def plain_label(harness: str) -> str:
    """What a run of another harness is called where recipes stand: `plain lighteval`."""
    return f"plain {harness}"


def as_run(found: ForeignResults, path: Path, files: Sequence[Path]) -> Run:
    """The run of one file; `files` are those that were read for it."""
    tool = f"{found.harness} {found.version}" if found.version else found.harness
    settings = without_secrets(found.settings)
    run = Run(
        run_id="",
        path=path,
        origin=found.harness,
        status="complete",
        variant=_variant(found),
        tasks=[_task_run(task) for task in found.tasks],
        scores=[*(score for task in found.tasks for score in task.scores), *found.groups],
        files=[clean(file.name) for file in files],
        started=found.started,
        backend=clean(found.backend or found.harness),
        versions=canonical({found.harness: found.version}) if found.version else None,
        settings=canonical(settings),
        asked=asked_of(settings),
        warnings=[f"scored by {clean(tool)}, whose weights are known by name only", *map(clean, found.warnings)],
    )
    return with_id(run, None)


def _variant(found: ForeignResults) -> RunVariant:
    label = plain_label(found.harness)
    key = model_key(found.pretrained or found.model_name, found.revision, found.identity)
    arguments = canonical(without_secrets(found.model_arguments))
    return RunVariant(
        variant_id=digest([key, label, found.dtype, arguments]),
        model_key=key,
        model_name=clean(found.model_name),
        recipe_name=label,
        recipe_label=label,
        pretrained=found.pretrained and clean(found.pretrained),
        revision=found.revision and clean(found.revision),
        identity=found.identity and clean(found.identity),
        dtype=found.dtype and clean(found.dtype),
    )


def _task_run(task: ForeignTask) -> TaskRun:
    samples = None if task.samples is None else _samples(task.task, task.samples)
    return TaskRun(
        task=task.task,
        version=task.version,
        num_fewshot=task.num_fewshot,
        chat_template_hash=None,
        system_instruction_hash=task.system_instruction_hash,
        generation_arguments=task.generation_arguments,
        output_type=None,
        cluster_by=None,
        samples=samples,
        documents_hash=None if samples is None else documents_hash(samples),
        subset=task.subset,
        sample_count=task.sample_count,
    )


def _samples(task: str, found: Sequence[ForeignSample]) -> Samples:
    samples = Samples()
    seen: dict[tuple[str, str], int] = {}
    for sample in found:
        response = canonical(sample.response)
        for filter_name, scores in (sample.scores or {NO_FILTER: {}}).items():
            document = _document(task, sample, clean(filter_name))
            place = document.doc_key, document.filter
            seen[place] = seen.get(place, -1) + 1
            samples.documents.append(document)
            samples.responses.append(response)
            samples.filtered_responses.append(response)
            samples.outcomes.append(
                outcome({clean(metric): SampleScore(value) for metric, value in sorted(scores.items())})
            )
            samples.occurrence.append(seen[place])
    return samples


def _document(task: str, sample: ForeignSample, filter_name: str) -> Document:
    hashes = [_sha(text) for text in (document_text(sample.source), sample.prompt, sample.target)]
    key = _sha("\x1f".join((task, *hashes)))[:32]
    return Document(
        filter_name,
        sample.doc_id,
        key,
        hashes[0],
        hashes[1],
        hashes[2],
        None,
        sample.source,
        sample.prompt,
        sample.target,
    )


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def reported_score(task: str, metric: str, filter_name: str, value: Any, **more: Any) -> ReportedScore:
    """A score as a file has it; see `ReportedScore` for what else may be given."""
    return ReportedScore(
        task=clean(task),
        metric=clean(metric),
        filter=clean(filter_name),
        score=number(value),
        reported=clean(str(value))[:200],
        stderr=number(more.get("stderr")),
        higher_is_better=direction(metric, more.get("higher_is_better")),
        best_value=best_value(metric, None),
        margin=None,
        is_primary=more.get("is_primary", False),
        is_group=more.get("is_group", False),
    )
