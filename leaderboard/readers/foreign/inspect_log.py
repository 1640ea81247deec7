"""Inspect's logs: `.eval`, a ZIP file of JSON files, and `.json`, the same in one.

By https://inspect.aisi.org.uk/eval-logs.html: `eval` says task, model and configuration, `results.scores` has a scorer
with its metrics an entry, `samples` one document and epoch an entry with the score of each scorer. In `.eval` files the
header is `header.json`, each sample is `samples/<id>_epoch_<n>.json`, and `reductions.json` has what reducers made of
the epochs' scores. Notable choices:
- A metric keeps its name; the scorer is its filter. `stderr` beside a mean is that mean's standard error.
- Inspect's letters are numbers: C is 1, P a half, I and N are 0. A document's score is the mean over its epochs, as
  Inspect's default reducer has it. Under another reducer it is what the log's reductions say, and none without them.
- Logs of runs that were cut short or failed are refused: their scores are of some documents only.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.errors import Unreadable
from leaderboard.readers.foreign.archive import open_archive
from leaderboard.readers.foreign.results import ForeignResults, ForeignSample, ForeignTask, reported_score
from leaderboard.readers.records import ReportedScore
from leaderboard.readers.safe_json import canonical, clean, finite, integer, mapping, optional_text

HARNESS = "inspect"
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_MEANS = frozenset({"accuracy", "mean"})
_ERRORS = frozenset({"stderr", "bootstrap_stderr"})
_NOT_SCORES = _ERRORS | {"std", "var"}
_LOCAL = ("hf/", "vllm/", "sglang/")  # providers whose models are called as on the hub, behind the provider's name
_LONGEST_TEXT = 2**20


class _ScorePlace(NamedTuple):
    """Where a sample has a score: the scorer, and the name in its value where that is a mapping. reduced: by document,
    what another reducer than the mean made of its epochs.
    """

    scorer: str
    name: str
    reduced: dict[str, Any] | None


def matches(data: Any) -> bool:
    """Whether a JSON value is a log of Inspect."""
    return isinstance(data, dict) and "status" in data and isinstance(mapping(data.get("eval")).get("task"), str)


def read(data: dict[str, Any], path: Path) -> ForeignResults:
    """A log that is one JSON value. Raises `Unreadable`."""
    samples = data.get("samples")
    return _log(data, path, samples if isinstance(samples, list) else None, data.get("reductions"))


def read_archive(path: Path) -> ForeignResults:
    """A log that is a ZIP file. Raises `Unreadable`."""
    with open_archive(path) as archive:
        if "header.json" not in archive.names:
            raise Unreadable(f"{path.name} is no whole log of Inspect (no `header.json`): its run has not ended")
        header = archive.json("header.json")
        if not matches(header):
            raise Unreadable(f"{path.name} is no log of Inspect (its `header.json` has no `status` and `eval`)")
        names = dict.fromkeys(name for name in archive.names if name.startswith("samples/") and name.endswith(".json"))
        reductions = archive.json("reductions.json") if "reductions.json" in archive.names else None
        return _log(header, path, map(archive.json, names) if names else None, reductions)


def _log(header: dict[str, Any], path: Path, samples: Iterable[Any] | None, reductions: Any) -> ForeignResults:
    asked = mapping(header["eval"])
    if header["status"] != "success":
        reason = optional_text(mapping(header.get("error")).get("message"))
        why = f": {clean(reason)[:200]}" if reason else ""
        raise Unreadable(
            f"{path.name} is of a run of Inspect that did not end well ({str(header['status'])[:20]}){why}"
        )
    task, model = clean(str(asked["task"])), optional_text(asked.get("model")) or "unnamed model"
    scores = list(_scores(task, _entries(header)))
    if not any(score.score is not None for score in scores):
        raise Unreadable(f"{path.name} is a log of Inspect without a score that can be read")
    config, arguments = mapping(asked.get("config")), mapping(asked.get("model_args"))
    local = next((prefix for prefix in _LOCAL if model.startswith(prefix)), "")
    name = model.removeprefix(local)
    return ForeignResults(
        harness=HARNESS,
        version=optional_text(mapping(asked.get("packages")).get("inspect_ai")),
        model_name=clean(name),
        tasks=[_task(task, header, scores, samples, reductions)],
        settings={
            "limit": finite(config.get("limit")),
            "model_args": arguments,
            "epochs": config.get("epochs"),
            "task_args": mapping(asked.get("task_args")),
            "gen_kwargs": canonical(_generation(header)) if _generation(header) else None,
        },
        model_arguments=arguments,
        pretrained=clean(name),
        revision=optional_text(arguments.get("revision")),
        dtype=optional_text(arguments.get("torch_dtype")) or optional_text(arguments.get("dtype")),
        backend=f"{HARNESS} {model.partition('/')[0]}",
        started=_moment(optional_text(mapping(header.get("stats")).get("started_at"))),
        warnings=tuple(_warnings(header)),
    )


def _moment(text: str | None) -> datetime | None:
    try:
        moment = None if not text else datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment.astimezone(timezone.utc).replace(tzinfo=None) if moment and moment.tzinfo else moment


def _generation(header: dict[str, Any]) -> dict[str, Any]:
    """What of the generation decides what is asked for; how often and how fast it is asked does not."""
    told = mapping(mapping(header.get("plan")).get("config"))
    aside = {"max_retries", "timeout", "attempt_timeout", "max_connections", "system_message", "batch", "cache"}
    return {name: value for name, value in told.items() if name not in aside and value is not None}


def _warnings(header: dict[str, Any]) -> Iterator[str]:
    results = mapping(header.get("results"))
    asked, done = integer(results.get("total_samples")), integer(results.get("completed_samples"))
    if asked is not None and done is not None and done < asked:
        yield f"{asked - done} of {asked} samples failed and are not in its scores"
    if header.get("invalidated"):
        yield "its log is marked as invalid"


def _scores(task: str, entries: list[dict[str, Any]]) -> Iterator[ReportedScore]:
    first = True
    for entry in entries:
        found = {str(key): mapping(value) for key, value in mapping(entry.get("metrics")).items()}
        error = next((found[name].get("value") for name in sorted(_ERRORS) if name in found), None)
        for key, metric in found.items():
            name = optional_text(metric.get("name")) or key
            if name.rpartition("/")[2] in _NOT_SCORES:
                continue
            plain = name.rpartition("/")[2]
            yield reported_score(
                task,
                plain,
                _filter(entry),
                metric.get("value"),
                stderr=error if plain in _MEANS else None,
                higher_is_better=True if plain == "accuracy" else None,
                is_primary=first,
            )
            first = False


def _filter(entry: dict[str, Any]) -> str:
    """The scorer, with the reducer of its epochs where it is not the mean."""
    name = optional_text(entry.get("name")) or optional_text(entry.get("scorer")) or "scorer"
    return clean(name if _is_mean(entry) else f"{name} ({optional_text(entry.get('reducer'))})")


def _is_mean(entry: dict[str, Any]) -> bool:
    """Whether a document's score is the mean over its epochs."""
    return optional_text(entry.get("reducer")) in (None, "mean")


def _entries(header: dict[str, Any]) -> list[dict[str, Any]]:
    entries = mapping(header.get("results")).get("scores")
    return [mapping(entry) for entry in entries] if isinstance(entries, list) else []


def _places(header: dict[str, Any], reductions: Any) -> dict[str, _ScorePlace]:
    """By filter, where a sample has its score; without those that only reductions that are not there would tell."""
    told: dict[tuple[str, str | None], dict[str, Any]] = {}
    for one in map(mapping, reductions if isinstance(reductions, list) else []):
        samples = one.get("samples")
        scores = map(mapping, samples if isinstance(samples, list) else [])
        key = optional_text(one.get("scorer")) or "", optional_text(one.get("reducer"))
        told[key] = {canonical(score.get("sample_id")): score for score in scores}
    places = {}
    for entry in _entries(header):
        name = optional_text(entry.get("name")) or ""
        scorer = optional_text(entry.get("scorer")) or name
        reduced = None if _is_mean(entry) else told.get((scorer, optional_text(entry.get("reducer"))))
        if reduced is not None or _is_mean(entry):
            places[_filter(entry)] = _ScorePlace(scorer, name, reduced)
    return places


def _task(
    task: str, header: dict[str, Any], scores: list[ReportedScore], samples: Iterable[Any] | None, reductions: Any
) -> ForeignTask:
    asked = mapping(header["eval"])
    config, dataset = mapping(asked.get("config")), mapping(asked.get("dataset"))
    metrics = {score.filter: score.metric for score in reversed(scores) if score.metric in _MEANS}
    found = None if samples is None else list(_documents(samples, metrics, _places(header, reductions)))
    system = optional_text(mapping(mapping(header.get("plan")).get("config")).get("system_message"))
    version = optional_text(asked.get("task_version"))
    arguments = mapping(asked.get("task_args"))
    limit = config.get("limit")
    counted = integer(mapping(header.get("results")).get("completed_samples"))
    epochs = integer(config.get("epochs")) or 1
    return ForeignTask(
        task=task,
        scores=scores,
        samples=found or None,
        version=f"{version} {canonical(arguments)}" if arguments else version,
        generation_arguments=canonical(_generation(header)) if _generation(header) else None,
        system_instruction_hash=hashlib.sha256(system.encode("utf-8", "replace")).hexdigest() if system else None,
        sample_count=None if counted is None or counted <= 0 else max(1, counted // max(1, epochs)),
        subset=None if not limit else f"limit {canonical(limit)} of {optional_text(dataset.get('name')) or 'its data'}",
    )


def _documents(
    samples: Iterable[Any], metrics: dict[str, str], places: dict[str, _ScorePlace]
) -> Iterator[ForeignSample]:
    """One sample a document: the mean of its epochs' scores, or what was made of them. metrics: filter -> the metric
    that is a mean over documents; places: filter -> where a sample has its score.
    """
    epochs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in map(mapping, samples):
        kept = {name: entry.get(name) for name in ("id", "input", "choices", "target", "scores")}
        kept["answer"] = mapping(entry.get("output")).get("completion") or _completion(entry)
        epochs[canonical([entry.get("id"), kept["input"]])].append(kept)
    for alike in epochs.values():
        first = alike[0]
        source = {name: first[name] for name in ("input", "choices", "target")}
        scores = {name: {metric: _of_document(places.get(name), alike)} for name, metric in metrics.items()}
        prompt = first["input"] if isinstance(first["input"], str) else canonical(first["input"])
        target = first["target"] if isinstance(first["target"], str) else canonical(first["target"])
        answers = [entry["answer"] for entry in alike]
        yield ForeignSample(integer(first["id"]), source, prompt, target, answers, scores)


def _completion(entry: dict[str, Any]) -> str | None:
    """The text of the answer; of one in parts, the texts."""
    choices = mapping(entry.get("output")).get("choices")
    content = (
        mapping(mapping(choices[0]).get("message")).get("content") if isinstance(choices, list) and choices else None
    )
    if isinstance(content, list):
        content = "".join(str(mapping(part).get("text") or "") for part in content)
    return content[:_LONGEST_TEXT] if isinstance(content, str) else None


def _of_document(place: _ScorePlace | None, epochs: list[dict[str, Any]]) -> float | None:
    """The score of one document. epochs: its samples."""
    if place is None:
        return None
    if place.reduced is None:
        return _mean([_value(place, mapping(entry["scores"])) for entry in epochs])
    return _value(place, {place.scorer: place.reduced.get(canonical(epochs[0]["id"]))})


def _value(place: _ScorePlace, by_scorer: dict[str, Any]) -> float | None:
    value = mapping(by_scorer.get(place.name, by_scorer.get(place.scorer))).get("value")
    if isinstance(value, dict):
        value = value.get(place.name)
    if isinstance(value, str):
        known = _LETTERS.get(value, _WORDS.get(value.lower()))
        return _number(value) if known is None else known
    return finite(value)


def _number(text: str) -> float | None:
    try:
        return finite(float(text[:40]))
    except ValueError:
        return None


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None
