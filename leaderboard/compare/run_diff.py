"""What differs between two runs in the store, name by name (the recipe, the model, versions, machine, settings, seeds),
and what only one of them has: whole tasks, and metrics of tasks that both have. A comparison of scores does not say it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from leaderboard.readers.weights_digest import kind_of
from leaderboard.store.database import Store

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
    "gpu": "GPU",
    "gpu_count": "number of GPUs",
    "driver": "GPU driver",
    "host": "host",
    "ranks": "ranks",
    "engine_version": "engine version",
    "sweep": "sweep",
    "sweep_cell": "cell of the sweep",
    "batch_size": "batch size",
    "lm_eval_version": "lm-eval",
    "transformers_version": "transformers",
    "torch_version": "torch",
    "parameters_after": "parameters after",
    "started": "started",
    "path": "folder",
}
_DIGESTS = frozenset({_FACTS["digest_before"], _FACTS["digest_after"]})
_TREES = {"settings": "settings", "versions": "versions", "seeds": "seeds", "recipe_resolved": "recipe"}
_MOST_DEEP = 12
# Failed runs have tasks without scores; groups are means over tasks, and theirs are told of.
_UNSHARED = """
WITH x AS (SELECT DISTINCT task, metric, filter FROM scores WHERE run_id = $1 AND NOT is_group),
  y AS (SELECT DISTINCT task, metric, filter FROM scores WHERE run_id = $2 AND NOT is_group)
SELECT task, metric, filter, task NOT IN (SELECT task FROM y) AS whole_task
FROM (FROM x EXCEPT FROM y) ORDER BY task, metric, filter
"""


class Difference(NamedTuple):
    """One thing: its name, and what it is in the first run and in the second; empty where a run does not say.
    comparable: not where it is two digests of different kinds, which are neither the same nor different.
    """

    name: str
    first: str
    second: str
    comparable: bool = True

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return self.comparable and self.first != self.second


def compare_facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Everything that either of two runs (rows of the store) says of how it was made."""
    left, right = _facts(first), _facts(second)
    return [
        Difference(name, one, other, name not in _DIGESTS or not (one and other) or kind_of(one) == kind_of(other))
        for name in dict.fromkeys([*left, *right])
        for one, other in [(left.get(name, ""), right.get(name, ""))]
    ]


def _facts(run: Mapping[str, Any]) -> dict[str, str]:
    found = {words: str(run[name]) for name, words in _FACTS.items() if run.get(name) not in (None, "")}
    if run.get("engine"):
        found["backend"] = str(run["engine"])  # as the receipt names it
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


class Unshared(NamedTuple):
    """What only the run called `name` has. metrics: each, with its filter where there is a choice of them, and the
    tasks that both runs have and it is of. label: what the run is called beside the other.
    """

    name: str
    tasks: tuple[str, ...]
    metrics: tuple[tuple[str, tuple[str, ...]], ...]
    label: str = ""

    def sentences(self) -> list[str]:
        """One line about tasks and one about metrics, where there is something to say."""
        lines = [f"Only {self.name} has {_listed('the task', self.tasks)}"] if self.tasks else []
        named = [f"{metric} of {', '.join(tasks)}" for metric, tasks in self.metrics]
        return lines + ([f"Only {self.name} has {_listed('the metric', named)}"] if named else [])


def unshared(store: Store, a: str, b: str) -> tuple[Unshared, Unshared]:
    """What only run `a`, and what only run `b` has; called A and B."""
    return _only(store, "A", a, b), _only(store, "B", b, a)


def _only(store: Store, name: str, run: str, other: str) -> Unshared:
    rows = store.rows(_UNSHARED, [run, other])
    metrics: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if not row["whole_task"]:
            metrics[row["metric"] if row["filter"] in ("", "none") else f"{row['metric']} ({row['filter']})"].append(
                row["task"]
            )
    tasks = tuple(dict.fromkeys(row["task"] for row in rows if row["whole_task"]))
    return Unshared(name, tasks, tuple((metric, tuple(of)) for metric, of in sorted(metrics.items())))


def _listed(one: str, names: tuple[str, ...] | list[str]) -> str:
    """`the task x`, `the tasks x, y`."""
    return f"{one} {names[0]}" if len(names) == 1 else f"{one}s {(', ' if one == 'the task' else '; ').join(names)}"
