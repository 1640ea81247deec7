"""lighteval's results: `results_<date>.json`, and its details `details_<task>_<date>.parquet` where they were saved.

By https://huggingface.co/docs/lighteval/saving-and-reading-results: `config_general` names the model, `results` holds
`{task: {metric: value, metric_stderr: value}}`, `versions` and `config_tasks` are by task. Details have one row a
document: `doc` (query, choices, gold_index), `model_response` and `metric`. Notable choices:
- A task's name ends in its number of examples (`gsm8k|5`). Averages over tasks (`all`, `mmlu:_average|5`) are groups.
- Before 0.11 the columns of details were others (`full_prompt`, `predictions`, `metrics`): those are read too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from leaderboard.errors import Unreadable
from leaderboard.readers.foreign.parquet import read_rows
from leaderboard.readers.foreign.results import ForeignResults, ForeignSample, ForeignTask, reported_score
from leaderboard.readers.records import NO_FILTER, ReportedScore
from leaderboard.readers.safe_json import canonical, clean, finite, integer, mapping, optional_text

HARNESS = "lighteval"
_DATE = re.compile(r"results_(\d{4}-\d\d-\d\dT\d\d[-:]\d\d[-:]\d\d(?:\.\d+)?)\.json$")
_SHOTS = re.compile(r"\|(\d{1,4})(?:\|[01])?$")
_COLUMNS = frozenset(
    {*("doc", "model_response", "metric"), *("full_prompt", "example", "choices", "gold", "predictions", "metrics")}
)


def matches(data: Any) -> bool:
    """Whether a JSON value is a results file of lighteval."""
    return isinstance(data, dict) and "config_general" in data and isinstance(data.get("results"), dict)


def read(data: dict[str, Any], path: Path, details: Sequence[Path]) -> ForeignResults:
    """The results with what the details say of their tasks. Raises `Unreadable`."""
    general, found = mapping(data["config_general"]), mapping(data["results"])
    model = mapping(general.get("model_config"))
    name = optional_text(general.get("model_name")) or optional_text(model.get("model_name"))
    if name is None:
        raise Unreadable(f"{path.name} is of lighteval and names no model (`config_general.model_name`)")
    date = _DATE.search(path.name)
    by_task, filled_in = _without_filled_in({task: mapping(row) for task, row in found.items()}, data)
    tasks = [_task(task, row, data, details) for task, row in by_task.items() if not _is_group(task)]
    if not any(task.scores for task in tasks):
        raise Unreadable(f"{path.name} is of lighteval and holds no score that can be read")
    dtype = optional_text(model.get("dtype")) or optional_text(general.get("model_dtype"))
    return ForeignResults(
        harness=HARNESS,
        version=None,
        model_name=clean(name),
        tasks=[task for task in tasks if task.scores],
        settings={
            "limit": finite(general.get("max_samples")),
            "seeds": general.get("num_fewshot_seeds"),
            "model_args": model,
        },
        groups=[score for task, row in by_task.items() if _is_group(task) for score in _scores(task, row, {})],
        model_arguments=model,
        pretrained=clean(name),
        revision=optional_text(model.get("revision")),
        identity=optional_text(general.get("model_sha")) or None,
        dtype=dtype.removeprefix("torch.") if dtype else None,
        started=None if date is None else _moment(date[1]),
        warnings=tuple(_warnings(filled_in, by_task)),
    )


def _without_filled_in(
    by_task: dict[str, dict[str, Any]], data: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The rows without metrics that a task does not have, and what was left out. Where one of several tasks alike has a
    metric, lighteval's mean over them writes it as 0 into the rows of the others.
    """
    configs = mapping(data.get("config_tasks"))
    named = {task: _directions(mapping(configs.get(task))).keys() for task in by_task if not _is_group(task)}
    every = {metric for metrics in named.values() for metric in metrics}
    rows, left_out = dict(by_task), []
    for task, metrics in named.items():
        others = every - metrics if metrics else set()
        extra = {metric for metric, value in by_task[task].items() if metric in others and value == 0}
        rows[task] = {key: value for key, value in by_task[task].items() if key.removesuffix("_stderr") not in extra}
        left_out += [f"{metric} of {task}" for metric in sorted(extra)]
    return rows, left_out


def _warnings(filled_in: list[str], by_task: dict[str, dict[str, Any]]) -> Iterator[str]:
    if not filled_in:
        return
    more = f" and {len(filled_in) - 3} more" if len(filled_in) > 3 else ""
    averages = [task for task in by_task if ":_average" in task]
    yield (
        f"zeros that lighteval fills in for metrics that a task does not have are left out ({', '.join(filled_in[:3])}"
        f"{more}); its averages count them" + (f": {', '.join(averages[:3])}" if averages else "")
    )


def _is_group(task: str) -> bool:
    return task == "all" or ":_average" in task


def _moment(text: str) -> datetime | None:
    day, _, time = text.partition("T")
    try:
        return datetime.fromisoformat(f"{day}T{time.replace('-', ':')}")
    except ValueError:
        return None


def _task(task: str, row: dict[str, Any], data: dict[str, Any], details: Sequence[Path]) -> ForeignTask:
    config = mapping(mapping(data.get("config_tasks")).get(task))
    scores = list(_scores(task, row, _directions(config)))
    shots = _SHOTS.search(task)
    limit = integer(mapping(data["config_general"]).get("max_samples"))
    file = _details_of(task, details)
    generation = {name: config[name] for name in ("generation_size", "stop_sequence") if config.get(name) is not None}
    count, original = integer(config.get("effective_num_docs")), integer(config.get("original_num_docs"))
    samples = list(_samples(file, frozenset(score.metric for score in scores))) if file and scores else None
    if samples is not None and count is not None and 0 <= len(samples) < count:
        raise Unreadable(f"{file.name if file else task} is incomplete: {len(samples)} of {count} documents")
    whole = limit is None or (original is not None and 0 < original == count)
    return ForeignTask(
        task=clean(task),
        scores=scores,
        samples=samples,
        version=optional_text(mapping(data.get("versions")).get(task)) or optional_text(config.get("version")),
        num_fewshot=int(shots[1]) if shots else integer(config.get("num_fewshots")),
        generation_arguments=canonical(generation) if generation else None,
        sample_count=count if count is not None and count > 0 else None,
        subset=None if whole else f"first {limit:,} documents",
    )


def _directions(config: dict[str, Any]) -> dict[str, Any]:
    """Whether more is better, by metric. A metric that gives several numbers has lists and mappings of them."""
    entries = config.get("metrics") or config.get("metric")
    found: dict[str, Any] = {}
    for entry in map(mapping, entries if isinstance(entries, list) else []):
        names, said = entry.get("metric_name"), entry.get("higher_is_better")
        for name in names if isinstance(names, list) else [names]:
            found[str(name)] = said.get(name) if isinstance(said, dict) else said
    return found


def _scores(task: str, row: dict[str, Any], directions: dict[str, Any]) -> Iterator[ReportedScore]:
    numbers = [
        metric
        for metric, value in row.items()
        if not metric.endswith("_stderr") and (value is None or isinstance(value, (int, float)))
    ]
    for place, metric in enumerate(numbers):
        yield reported_score(
            task,
            metric,
            NO_FILTER,
            row[metric],
            stderr=row.get(f"{metric}_stderr"),
            higher_is_better=directions.get(metric),
            is_primary=place == 0,
            is_group=_is_group(task),
        )


def _details_of(task: str, details: Sequence[Path]) -> Path | None:
    return next(
        (file for file in details if re.sub(r"_\d{4}-\d\d-\d\dT[^_]*$", "", file.stem) == f"details_{task}"), None
    )


def _samples(file: Path, metrics: frozenset[str]) -> Iterator[ForeignSample]:
    for number, row in enumerate(read_rows(file, _COLUMNS)):
        doc = mapping(row.get("doc"))
        old = not doc
        values = mapping(row.get("metrics" if old else "metric"))
        query = row.get("full_prompt") or row.get("example") if old else doc.get("query")
        choices = row.get("choices") if old else doc.get("choices")
        gold = row.get("gold") if old else doc.get("gold_index")
        source = {"query": query, "choices": choices, "gold": gold}
        response = row.get("predictions") if old else _response(mapping(row.get("model_response")))
        scores = {metric: finite(value) for metric, value in values.items() if metric in metrics}
        yield ForeignSample(number, source, str(query or ""), _target(choices, gold), response, {NO_FILTER: scores})


def _response(response: dict[str, Any]) -> dict[str, Any]:
    """What the model gave, without the tokens of its prompt."""
    kept = ("text", "logprobs", "argmax_logits_eq_gold")
    return {name: response[name] for name in kept if response.get(name) not in (None, [])}


def _target(choices: Any, gold: Any) -> str:
    """The right answers as text, or what the file has in their place."""
    places = gold if isinstance(gold, list) else [gold]
    options = choices if isinstance(choices, list) else []
    named = [options[place] if type(place) is int and 0 <= place < len(options) else place for place in places]
    return str(named[0]) if len(named) == 1 else canonical(named)
