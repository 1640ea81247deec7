"""lm-eval's `results_*.json`: the scores, and what decides whether two of them may be compared.

Notable choices:
- Keys are `metric,filter`; results from before 0.4 are brought into that form first (`legacy_results`).
- A metric's direction is read wherever lm-eval has written it; files that say nothing of it get it for the metrics that
  `leaderboard.metrics` knows, and for others it stays unknown.
- A score that is not a finite number is kept as a row with no value and its text.
- A row without a config of its own is a group: stored, never compared (its tasks are).
- Tokens and passwords in settings are dropped as the file is read: nothing that is kept depends on them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leaderboard.errors import Unreadable
from leaderboard.metrics import best_value, cluster_field, direction, value_range
from leaderboard.readers.asked import asked_of
from leaderboard.readers.edited import Editedness, of_results
from leaderboard.readers.legacy_results import by_prompt, modernised
from leaderboard.readers.records import ReportedScore
from leaderboard.readers.run_id import FileContents, file_contents
from leaderboard.readers.safe_json import canonical, clean, finite, integer, load_json, mapping, optional_text
from leaderboard.readers.secrets import without_secrets
from leaderboard.readers.task_identity import config_hash, subset

_MOST_DOCUMENTS = 2**31
_SMALLEST_ERROR = 1e-100
_NO_SETTINGS = frozenset(
    {
        *("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "n-samples", "higher_is_better"),
        *("task_hashes", "samples", "chat_template", "pretty_env_info"),
    }
)
_SETTINGS_OF_TASKS = ("metadata", "generation_kwargs", "dataset_kwargs")
_PREDICTIONS_ONLY = "bypass"
"""The metric that lm-eval puts in place of a task's own under --predict_only: it is always 999."""
_NOT_METRICS = frozenset({"alias", "name", "sample_len", "samples", " ", _PREDICTIONS_ONLY})
_FUNCTION = re.compile(r"^\s*(?:@.*\n\s*)*def (\w+)\(|^<function (\w+) at")
_NUMBER = re.compile(
    r"^(?:tensor\()?([+-]?(?:\d+\.?\d{0,40}|\.\d{1,40})(?:[eE][+-]?\d{1,3})?|nan|[+-]?inf)(?:\.)?(?:,"
    r" (?:device|dtype)=[^()]*)?\)?$"
)


@dataclass(frozen=True)
class TaskSettings:
    """What results_*.json says of how one task was run. sample_count: its documents, as the file counts them;
    likely_count: the same where the file does, else as they follow from a share's standard error, or from `--limit`.
    """

    version: str | None
    num_fewshot: int | None
    generation_arguments: str | None
    output_type: str | None
    cluster_by: str | None
    sample_count: int | None
    config_hash: str | None = None
    subset: str | None = None
    likely_count: int | None = None


@dataclass(frozen=True)
class Environment:
    """What results_*.json says of the model and the machine."""

    model_name: str
    pretrained: str | None
    revision: str | None
    model_hash: str | None
    model_arguments: str
    parameters: int | None
    dtype: str | None
    backend: str | None
    device: str | None
    batch_size: str | None
    lm_eval_version: str | None
    transformers_version: str | None
    torch_version: str | None
    chat_template_hash: str | None
    system_instruction_hash: str | None
    date: float | None
    settings: str
    request_cache: bool | None
    editedness: Editedness
    asked: str | None = None
    subfolder: str | None = None


@dataclass(frozen=True)
class Results:
    """One results file. as_written: the same with the secrets that it holds, None where it holds none; by it is known
    what was stored before they were dropped.
    """

    scores: list[ReportedScore]
    tasks: dict[str, TaskSettings]
    environment: Environment
    contents: FileContents
    as_written: Results | None = None


def read_results(path: Path) -> list[Results]:
    """Read one results file, which of old ones may hold several runs. Raises `Unreadable` with the reason."""
    return results_in(load_json(path), path)


def results_in(data: Any, path: Path) -> list[Results]:
    """The same of a file whose value is read already."""
    if isinstance(data, dict) and isinstance(data.get("results"), list) and (prompts := by_prompt(data["results"])):
        data = {**data, "results": prompts}
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise Unreadable(f"{path.name} is not a results file of lm-eval (no `results` object)")
    if not data["results"]:
        raise Unreadable(f"{path.name} holds no results")
    public = settings_without_secrets(data)
    found = [_results(one, path) for one in modernised(public)]
    if public is not data:
        written = [_results(one, path) for one in modernised(data)]
        found = [replace(one, as_written=raw) for one, raw in zip(found, written)]
    if not any(results.scores for results in found):
        if _is_of_predictions(data):
            raise Unreadable(
                f"{path.name} was made with --predict_only, which computes no scores: run the tasks without it"
            )
        raise Unreadable(f"{path.name} holds no score that can be read (no metric in it)")
    return [results for results in found if results.scores]


def _is_of_predictions(data: dict[str, Any]) -> bool:
    """Whether some task was asked for its answers alone."""
    rows = [mapping(row) for row in mapping(data.get("results")).values()]
    bypassed = any(str(key).partition(",")[0] == _PREDICTIONS_ONLY for row in rows for key in row)
    return bypassed or any(_predicts_only(config) for config in mapping(data.get("configs")).values())


def _predicts_only(config: Any) -> bool:
    entries = mapping(config).get("metric_list")
    return isinstance(entries, list) and [mapping(entry).get("metric") for entry in entries] == [_PREDICTIONS_ONLY]


def settings_without_secrets(data: dict[str, Any]) -> dict[str, Any]:
    """A results file without the secrets in its settings; the very same object where there are none."""
    settings = {key: value for key, value in data.items() if key not in _NO_SETTINGS}
    public = without_secrets(settings)
    configs = mapping(data.get("configs"))
    cleaned = {task: _task_without_secrets(config) for task, config in configs.items()}
    if public is settings and all(cleaned[task] is config for task, config in configs.items()):
        return data
    others = {key: value for key, value in data.items() if key in _NO_SETTINGS}
    return {**others, **public, **({"configs": cleaned} if configs else {})}


def _task_without_secrets(config: Any) -> Any:
    settings = {key: mapping(config)[key] for key in _SETTINGS_OF_TASKS if key in mapping(config)}
    public = without_secrets(settings)
    return config if public is settings else {**config, **public}


def _results(data: dict[str, Any], path: Path) -> Results:
    scores = [score for task, row in data["results"].items() for score in _task_scores(str(task), mapping(row), data)]
    by_task: dict[str, list[ReportedScore]] = defaultdict(list)
    for score in scores:
        if not score.is_group:
            by_task[score.task].append(score)
    contents = file_contents(data)
    tasks = {task: _task_settings(task, data, of_task) for task, of_task in by_task.items()}
    return Results(scores, tasks, _environment(data, path, contents), contents)


def _task_scores(task: str, row: dict[str, Any], data: dict[str, Any]) -> list[ReportedScore]:
    config = mapping(mapping(data.get("configs")).get(task))
    if _predicts_only(config):
        return []
    metadata = mapping(config.get("metadata"))
    directions = _directions(task, config, data)
    found = _metric_keys(row)
    primary = primary_metric(found, config, metadata)
    is_group = not config and task in {**mapping(data.get("groups")), **mapping(data.get("group_subtasks"))}
    return [
        ReportedScore(
            task=clean(task),
            metric=clean(metric),
            filter=clean(filter_name),
            score=number(row[key]),
            reported=clean(str(row[key]))[:200],
            stderr=number(row.get(f"{metric}_stderr,{filter_name}")),
            higher_is_better=direction(metric, directions.get(metric)),
            best_value=best_value(metric, finite(mapping(metadata.get("best_value")).get(metric))),
            margin=finite(mapping(metadata.get("margin")).get(metric)),
            is_primary=(metric, filter_name) == primary,
            is_group=is_group,
            bound=finite(mapping(metadata.get("bound")).get(metric)),
        )
        for key, (metric, filter_name) in found.items()
    ]


def _directions(task: str, config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Whether more is better, by metric: as lm-eval says it of the task since 0.4.3, or in the task's own list of
    metrics, where 0.4.0 to 0.4.2 have nothing else. A metric of the list may be the source of a function, and is then
    known by its name.
    """
    entries = config.get("metric_list")
    listed = {}
    for entry in map(mapping, entries if isinstance(entries, list) else []):
        name = str(entry.get("metric") or "")
        function = _FUNCTION.search(name)
        listed[(function[1] or function[2]) if function else name] = entry.get("higher_is_better")
    said = mapping(mapping(data.get("higher_is_better")).get(task))
    return listed | {metric: value for metric, value in said.items() if isinstance(value, bool)}


def number(value: Any) -> float | None:
    """A finite number, also where it was written as text: lm-eval passes what JSON does not know, such as float32
    scalars and tensors, through `str`.
    """
    match = _NUMBER.match(value) if isinstance(value, str) else None
    return finite(float(match[1])) if match else finite(value)


def _metric_keys(row: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Key -> (metric, filter) of everything in a row that is a score; strings such as "N/A" are none."""
    found = {}
    for key, value in row.items():
        metric, comma, filter_name = str(key).partition(",")
        is_number = (
            value is None
            or (isinstance(value, (int, float)) and not isinstance(value, bool))
            or (isinstance(value, str) and _NUMBER.match(value))
        )
        if comma and metric not in _NOT_METRICS and not metric.endswith("_stderr") and is_number:
            found[str(key)] = (metric, filter_name)
    return found


def primary_metric(
    found: dict[str, tuple[str, str]], config: dict[str, Any], metadata: dict[str, Any]
) -> tuple[str, str] | None:
    """The (metric, filter) shown on the board: what the task's metadata names, else the first of its metric_list,
    else the first there is."""
    named = metadata.get("primary_metric")
    entries = config.get("metric_list")
    listed = [mapping(entry).get("metric") for entry in entries] if isinstance(entries, list) else []
    for wanted in [named, *listed]:
        for key, pair in found.items():
            if wanted in (key, pair[0]):
                return pair
    return next(iter(found.values()), None)


def _task_settings(task: str, data: dict[str, Any], scores: list[ReportedScore]) -> TaskSettings:
    config = mapping(mapping(data.get("configs")).get(task))
    row, counts = mapping(data["results"].get(task)), mapping(mapping(data.get("n-samples")).get(task))
    shots = integer(mapping(data.get("n-shot")).get(task))
    generation = config.get("generation_kwargs")
    cluster_by = mapping(config.get("metadata")).get("cluster_by", cluster_field(task))
    count = integer(row.get("sample_len")) if "sample_len" in row else integer(counts.get("effective"))
    return TaskSettings(
        version=optional_text(mapping(data.get("versions")).get(task)),
        num_fewshot=shots if shots is not None else integer(config.get("num_fewshot")),
        generation_arguments=canonical(generation) if generation is not None else None,
        output_type=optional_text(config.get("output_type")),
        cluster_by=cluster_by if isinstance(cluster_by, str) else None,
        sample_count=count,
        likely_count=count if count is not None and count > 0 else _likely_count(data, scores),
        config_hash=config_hash(config, optional_text(data.get("lm_eval_version"))),
        subset=subset(mapping(data.get("config")), integer(counts.get("original")), count),
    )


def _likely_count(data: dict[str, Any], scores: list[ReportedScore]) -> int | None:
    """The documents of a task of which the file names no number. A share `p` of right answers has the standard error
    `sqrt(p (1 - p) / (n - 1))`, so that `n` follows from both; `--limit` is what it is at most.
    """
    for score in scores:
        if score.score is None or score.stderr is None or not value_range(score.metric).is_unit:
            continue
        # Of two documents it is a half at most; the square of a tiny one is zero.
        if 0 < score.score < 1 and _SMALLEST_ERROR < score.stderr <= 1:
            count = 1 + score.score * (1 - score.score) / score.stderr**2
            right = score.score * round(count)
            if 2 <= count < _MOST_DOCUMENTS and abs(count - round(count)) < 1e-3 and abs(right - round(right)) < 1e-3:
                return round(count)
    limit = number(mapping(data.get("config")).get("limit"))
    return integer(limit) if limit is not None and 1 <= limit < _MOST_DOCUMENTS and limit == int(limit) else None


def _environment(data: dict[str, Any], path: Path, contents: FileContents) -> Environment:
    config = mapping(data.get("config"))
    arguments = model_arguments(config.get("model_args"))
    pretrained = optional_text(arguments.get("pretrained")) or optional_text(arguments.get("model"))
    name = (
        optional_text(data.get("model_name"))
        or pretrained
        or optional_text(arguments.get("engine"))
        or clean(f"{path.parent.name}/{path.stem}")
    )
    torch = re.search(r"PyTorch version: (\S+)", str(data.get("pretty_env_info") or ""))
    dtype = optional_text(config.get("model_dtype")) or optional_text(arguments.get("dtype"))
    return Environment(
        model_name=name,
        pretrained=pretrained,
        subfolder=optional_text(arguments.get("subfolder")),
        revision=optional_text(arguments.get("revision")) or optional_text(config.get("model_revision")),
        model_hash=optional_text(config.get("model_sha")) or None,
        model_arguments=canonical(arguments),
        parameters=integer(config.get("model_num_parameters")),
        dtype=dtype.removeprefix("torch.") if dtype else None,
        backend=optional_text(config.get("model")) or optional_text(data.get("model_source")),
        device=optional_text(config.get("device")),
        batch_size=optional_text(config.get("batch_size")),
        lm_eval_version=optional_text(data.get("lm_eval_version")),
        transformers_version=optional_text(data.get("transformers_version")),
        torch_version=clean(torch.group(1)) if torch else None,
        chat_template_hash=optional_text(data.get("chat_template_sha")),
        system_instruction_hash=optional_text(data.get("system_instruction_sha")),
        date=finite(data.get("date")),
        settings=canonical(config),
        request_cache=bool(config["use_cache"]) if "use_cache" in config else None,
        asked=asked_of(config | {"model_args": arguments}, config.get("recipe_revisions")),
        editedness=of_results(config, arguments, contents.unknown),
    )


def model_arguments(value: Any) -> dict[str, Any]:
    """`model_args` as a dict, whether it was written as one or as `key=value,key=value`."""
    if isinstance(value, dict):
        return value
    pairs = (part.partition("=") for part in str(value or "").split(",") if "=" in part)
    return {key.strip(): text.strip() for key, _, text in pairs}
