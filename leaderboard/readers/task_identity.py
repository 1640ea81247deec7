"""Which task a results file is of, and which of its documents, as far as the file says.

Notable choices:
- `receipt.json` holds an identity of each task (its configuration, code and data). A results file holds the
  configuration alone, with the source of the functions that it names; `config_hash` is a digest of that.
- The digest has one part for each of `PARTS`, so that two of them say where the tasks differ, and begins with the
  version of lm-eval, because each version writes configurations in its own way.
- What a task is does not depend on where its files lie: of a local path only the last name counts.
- Shots and generation arguments are compared by themselves, so they are left out, as are names and metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from leaderboard.readers.safe_json import digest, finite, mapping

PARTS = {
    "data": ("dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split",
             "custom_dataset", "process_docs"),
    "prompt": ("doc_to_text", "doc_to_target", "doc_to_choice", "doc_to_image", "doc_to_audio", "description",
               "target_delimiter", "fewshot_delimiter", "gen_prefix", "use_prompt"),
    "few-shot examples": ("fewshot_split", "fewshot_config"),
    "scoring": (),
}  # fmt: skip
"""Part of a configuration -> its keys; `scoring` has all others."""
_LEFT_OUT = frozenset(
    {"task", "task_alias", "alias", "tag", "group", "group_alias", "num_fewshot", "generation_kwargs", "metadata",
     "should_decontaminate", "doc_to_decontamination_query", "unsafe_code"}
)  # fmt: skip
_PART_OF = {key: part for part, keys in PARTS.items() for key in keys}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_ABSOLUTE = re.compile(r"^(?:[/~\\]|[A-Za-z]:[/\\]|file:)")
_DIGITS = 12  # of each part


def config_hash(config: Mapping[str, Any], lm_eval_version: str | None) -> str | None:
    """`<version of lm-eval>:<a digest for each part>`; None where the file has no configuration or no version."""
    if not config or not lm_eval_version:
        return None
    parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for key, value in config.items():
        if value is not None and key not in _LEFT_OUT:
            parts[_PART_OF.get(key, "scoring")][key] = _placeless(key, value)
    parts["few-shot examples"] |= {"fewshot_config": _own_examples(config)}
    return f"{lm_eval_version}:{'-'.join(digest(_plain(part))[:_DIGITS] for part in parts.values())}"


def differing_parts(one: str, other: str) -> tuple[str, ...] | None:
    """The parts in which two configurations differ, empty where they are equal; None where two versions of lm-eval
    wrote them.
    """
    (version, _, parts), (other_version, _, other_parts) = one.rpartition(":"), other.rpartition(":")
    if version != other_version:
        return None
    pairs = zip(PARTS, parts.split("-"), other_parts.split("-"))
    return tuple(part for part, mine, others in pairs if mine != others)


def _own_examples(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `fewshot_config` says beyond the task's own fields, which lm-eval copies into it."""
    own = mapping(config.get("fewshot_config"))
    return {key: value for key, value in own.items() if value is not None and value != config.get(key)}


def _placeless(key: str, value: Any) -> Any:
    if key == "dataset_kwargs":
        return _last_names(value)
    return _last_name(value) if key == "dataset_path" and isinstance(value, str) and _ABSOLUTE.match(value) else value


def _last_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _last_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_last_names(item) for item in value]
    local = isinstance(value, str) and ("://" not in value or value.startswith("file:"))
    return _last_name(value) if local else value


def _last_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _plain(value: Any) -> Any:
    """Without addresses in memory, which lm-eval writes for functions that it does not write out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _ADDRESS.sub("", value) if isinstance(value, str) else value


def subset(config: Mapping[str, Any], original: int | None, scored: int | None) -> str | None:
    """Which of a task's documents were scored, such as `first 20 of 1,000 documents`; None for all of them, and where
    the file does not say. config: of the evaluation. original: how many documents the task has.
    """
    limit = finite(config.get("limit"))
    if original is not None and scored is not None:
        if scored >= original:
            return None
        how = "first " if limit else "chosen " if config.get("samples") else ""
        return f"{how}{scored:,} of {original:,} documents"
    return f"limit {limit:g}" if limit else None
