"""What a run is known by: a hash of what came out, with the settings that asked for it.

Notable choices:
- Dates, durations, folders and the machine are left out. The same run copied elsewhere is the same run, and a second
  run that came out the same under the same settings adds nothing. On another GPU, or by another engine, it does: it is
  what runs there are compared with.
- Samples tell two experiments apart by every answer. Where a task has none, the whole results file is hashed instead:
  shots, versions, configurations, counts, errors and keys that lm-eval does not write. Keys of the last kind count for
  runs with samples too, because only they say what somebody did to the model.
- Ids of before this rule stay valid where it changes nothing; elsewhere the old one is kept as `former_id`, by which a
  store finds what it holds already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from leaderboard.readers.records import ReportedScore, Run
from leaderboard.readers.safe_json import clean, digest, mapping
from leaderboard.readers.samples import Samples, content_hash

_TOLD_ELSEWHERE = frozenset({"config", "samples"})  # in the settings, and read from files of their own
_ENVIRONMENT = frozenset(
    {
        *("git_hash", "upper_git_hash", "pretty_env_info", "transformers_version", "lm_eval_version", "date"),
        *("start_time", "end_time", "total_evaluation_time_seconds"),
    }
)
_OF_LM_EVAL = frozenset(
    {
        *("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"),
        *("task_hashes", "model_source", "model_name", "model_name_sanitized", "system_instruction"),
        *("system_instruction_sha", "fewshot_as_multiturn", "chat_template", "chat_template_sha", "max_length"),
        *("tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "eval_args"),
    }
)
"""The keys that some version of lm-eval writes beside those of the environment."""
_MOMENT = re.compile(
    r"(?:^|[_\- ])(?:time|date|datetime|timestamp|timings?|duration|elapsed|seconds|secs|runtime|walltime|started"
    r"|finished|created(?:_at)?|hostname|host|user|username|pid|uuid|cwd)(?:_?(?:s|sec|secs|ms|utc|iso))?$",
    re.IGNORECASE,
)
_WRITTEN_TO = re.compile(r"(?:output|log|cache|save|result)s?[_\- ]?(?:path|dir|folder|file|root)$", re.IGNORECASE)
_MACHINE = re.compile(r"^(?:git|python|torch|cuda|transformers|driver|gpu|vllm)[_\- ](?:hash|commit|version|name)$")
_MEMORY_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,16}\b")


@dataclass(frozen=True)
class FileContents:
    """Digests of one results file: of all that it says of the experiment, and of what lm-eval does not write, None
    where there is nothing of it. unknown: that, for the eye, by key.
    """

    whole: str
    additions: str | None
    unknown: Mapping[str, Any]


def file_contents(data: Mapping[str, Any]) -> FileContents:
    """What a results file (in today's form) says, without times, machine and addresses."""
    others = {key: value for key, value in data.items() if key not in _OF_LM_EVAL | _ENVIRONMENT | _TOLD_ELSEWHERE}
    unknown = _without_moments(others)
    known = {key: _without_addresses(value) for key, value in data.items() if key in _OF_LM_EVAL}
    return FileContents(digest([known, unknown]), digest(unknown) if unknown else None, unknown)


def with_id(run: Run, contents: FileContents | None, former_variant_id: str | None = None) -> Run:
    """The run with its id, and with the id by the former formula where that is another. former_variant_id: the
    variant's by the former formula, where that is another.
    """
    former = _parts(run, former_variant_id or run.variant.variant_id)
    told = [] if contents is None else [contents.additions if _has_all_samples(run) else contents.whole]
    parts = [*_parts(run, run.variant.variant_id), *filter(None, told)]
    run_id, former_id = _short(parts), _short(former)
    return replace(run, run_id=run_id, former_id=None if former_id == run_id else former_id)


def _parts(run: Run, variant_id: str) -> list[Any]:
    outcome = sorted(_outcome(score) for score in run.scores)
    tasks = sorted(
        [task.task, task.documents_hash or "", content_hash(task.samples or Samples())] for task in run.tasks
    )
    return [
        run.spec_id or run.settings,
        variant_id,
        run.status,
        [run.failure_kind, run.failure_reason, run.failure_where],
        outcome,
        tasks,
        [[matrix.name, matrix.digest_after] for matrix in run.matrices],
        *([list(place)] if (place := run.ran_on.place).is_told else []),
    ]


def _short(parts: list[Any]) -> str:
    return digest(parts)[:32]


def _outcome(score: ReportedScore) -> list[str]:
    return [score.task, score.metric, score.filter, score.reported]


def _has_all_samples(run: Run) -> bool:
    return bool(run.tasks) and all(task.samples is not None for task in run.tasks)


def _is_moment(key: str) -> bool:
    """Whether a key that is not lm-eval's says when, how long or where a run was made."""
    return any(pattern.search(key) for pattern in (_MOMENT, _WRITTEN_TO, _MACHINE))


def _without_moments(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: (item, _without_moments(item)) for key, item in value.items() if not _is_moment(str(key))}
        return {key: left for key, (item, left) in kept.items() if left or not item}
    return _without_addresses(value)


def _without_addresses(value: Any) -> Any:
    """Functions are written with their place in memory, which is another in every process."""
    if isinstance(value, str):
        return clean(_MEMORY_ADDRESS.sub("0x", value)) if "0x" in value else value
    if isinstance(value, dict):
        return {key: _without_addresses(item) for key, item in mapping(value).items()}
    return [_without_addresses(item) for item in value] if isinstance(value, list) else value
