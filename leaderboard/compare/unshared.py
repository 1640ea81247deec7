"""What only one of two runs has: whole tasks, and metrics of tasks that both have. A comparison of the two is silent
about it otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from leaderboard.store.database import Store
from leaderboard.terminal.format import plain

# Failed runs have tasks without scores; groups are means over tasks, and theirs are told of.
_ONLY = """
WITH x AS (SELECT DISTINCT task, metric, filter FROM scores WHERE run_id = $1 AND NOT is_group),
  y AS (SELECT DISTINCT task, metric, filter FROM scores WHERE run_id = $2 AND NOT is_group)
SELECT task, metric, filter, task NOT IN (SELECT task FROM y) AS whole_task
FROM (FROM x EXCEPT FROM y) ORDER BY task, metric, filter
"""


class Unshared(NamedTuple):
    """What only the run called `name` has. metrics: each, with its filter where there is a choice of them, and the
    tasks that both runs have and it is of.
    """

    name: str
    tasks: tuple[str, ...]
    metrics: tuple[tuple[str, tuple[str, ...]], ...]

    def sentences(self) -> list[str]:
        """One line about tasks and one about metrics, where there is something to say."""
        lines = [f"Only {self.name} has {_listed('the task', self.tasks)}"] if self.tasks else []
        named = [f"{metric} of {', '.join(tasks)}" for metric, tasks in self.metrics]
        return [
            plain(line) for line in lines + ([f"Only {self.name} has {_listed('the metric', named)}"] if named else [])
        ]


def unshared(store: Store, a: str, b: str) -> tuple[Unshared, Unshared]:
    """What only run `a`, and what only run `b` has; called A and B."""
    return _only(store, "A", a, b), _only(store, "B", b, a)


def _only(store: Store, name: str, run: str, other: str) -> Unshared:
    rows = store.rows(_ONLY, [run, other])
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
