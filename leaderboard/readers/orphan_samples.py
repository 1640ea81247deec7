"""Samples that lie somewhere without their results file: their scores are means over what was logged, and are called
so.

Notable choices:
- Only metrics that are numbers per document are taken; a corpus metric's parts, or a text's log-likelihood, have no
  mean that lm-eval would call by that name.
- Nothing is known of model and settings but the names of folder and file. Such a run is shown; its settings are
  unknown, and so it is compared with nothing that states them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leaderboard.errors import Unreadable
from leaderboard.metrics import best_value, direction
from leaderboard.readers.jsonl import read_json_lines
from leaderboard.readers.records import NO_FILTER, ReportedScore, TaskRun
from leaderboard.readers.safe_json import clean, finite
from leaderboard.readers.samples import Samples, documents_hash
from leaderboard.readers.samples_reader import SampleForm, SamplesReader

WARNING = (
    "its results file is missing: scores are means over the samples, and model and settings are known by folder and"
    " file name only"
)
_NAME = re.compile(r"^(?:.*?samples_)?(?P<task>.+?)(?:_\d{4}-\d\d-\d\dT\d\d[-:]\d\d[-:]\d\d(?:\.\d+)?)?$")
_NOT_METRICS = frozenset({"doc_id", "bypass"})


def looks_like_samples(path: Path) -> bool:
    """Whether the first line of a file is a sample as lm-eval writes it."""
    try:
        _, line = next(read_json_lines(path))
    except (StopIteration, Unreadable):
        return False
    return (
        isinstance(line, dict) and isinstance(line.get("doc"), dict) and ("resps" in line or "filtered_resps" in line)
    )


def read_task(path: Path, reader: SamplesReader) -> tuple[TaskRun, list[ReportedScore]]:
    """The task of one samples file and its scores. Raises `Unreadable`."""
    match = _NAME.match(path.stem)
    task = clean(match["task"] if match else path.stem)
    samples = reader.read(path, SampleForm(task, _metrics(path)))
    scores = list(_scores(task, samples))
    if not scores:
        raise Unreadable(f"{path.name} is without its results file, and holds no metric that is a number per document")
    return TaskRun(task, None, None, None, None, None, None, None, samples, documents_hash(samples)), scores


def _metrics(path: Path) -> frozenset[str]:
    names: set[str] = set()
    for _, line in read_json_lines(path):
        if isinstance(line, dict):
            names |= {key for key, value in line.items() if key not in _NOT_METRICS and finite(value) is not None}
    return frozenset(names)


def _scores(task: str, samples: Samples) -> Iterator[ReportedScore]:
    values: dict[tuple[str, str], list[float | None]] = {}
    for document, outcome in zip(samples.documents, samples.outcomes):
        for metric, score in outcome.scores.items():
            values.setdefault((metric, document.filter or NO_FILTER), []).append(score.value)
    for place, ((metric, filter_name), found) in enumerate(values.items()):
        numbers = [value for value in found if value is not None]
        whole = len(numbers) == len(found)
        mean = sum(numbers) / len(numbers) if whole else None
        yield ReportedScore(
            task,
            metric,
            filter_name,
            mean,
            _text(mean),
            None,
            direction(metric, None),
            best_value(metric, None),
            None,
            place == 0,
            False,
        )


def _text(mean: Any) -> str:
    return json.dumps(mean)
