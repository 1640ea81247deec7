"""What differs between two runs in the store, name by name: the recipe, the model, versions, machine, settings,
seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_FACTS = {
    "recipe_label": "recipe",
    "recipe_id": "recipe's steps",
    "control": "control",
    "model_name": "model",
    "pretrained": "pretrained",
    "revision": "model revision",
    "digest_before": "unedited weights",
    "digest_after": "weights digest",
    "dtype": "dtype",
    "backend": "backend",
    "device": "device",
    "batch_size": "batch size",
    "lm_eval_version": "lm-eval",
    "transformers_version": "transformers",
    "torch_version": "torch",
    "parameters_after": "parameters after",
    "started": "started",
    "path": "folder",
}
_TREES = {"settings": "settings", "versions": "versions", "seeds": "seeds", "recipe_resolved": "recipe"}
_MOST_DEEP = 12


class Difference(NamedTuple):
    """One thing: its name, and what it is in the first run and in the second; empty where a run does not say."""

    name: str
    first: str
    second: str

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return self.first != self.second


def compare_facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Everything that either of two runs (rows of the store) says of how it was made."""
    left, right = _facts(first), _facts(second)
    return [Difference(name, left.get(name, ""), right.get(name, "")) for name in dict.fromkeys([*left, *right])]


def _facts(run: Mapping[str, Any]) -> dict[str, str]:
    found = {words: str(run[name]) for name, words in _FACTS.items() if run.get(name) not in (None, "")}
    for column, words in _TREES.items():
        found.update(_leaves(_json(run.get(column)), words))
    return found


def _leaves(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if (depth < _MOST_DEEP and inner and any(isinstance(item, (dict, list)) for _, item in inner)) or isinstance(
        value, dict
    ):
        for key, item in inner:
            yield from _leaves(item, f"{name}.{key}", depth + 1)
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(text: Any) -> Any:
    try:
        return json.loads(text or "null")
    except (TypeError, ValueError, RecursionError):
        return None
