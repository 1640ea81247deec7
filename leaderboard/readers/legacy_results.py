"""Results from before lm-eval 0.4, brought into the form of today.

Notable choices:
- Before 0.4 a metric had no filter: `acc` becomes `acc,none`, as 0.4 calls the absence of one.
- A fork of 2022 (BigScience's) wrote `{task: {date: {metric: value}}}`, several dates in one file. The latest of every
  task make one run, those before them another, and so on: nothing is averaged, nothing is left out.
- The same fork's later form is a list, one entry a task and prompt: each becomes a task `name+prompt`, as the fork
  itself named them before.
- Those files log no samples and no hashes: they are shown, and nothing can be paired with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from leaderboard.readers.safe_json import mapping

_DATE = re.compile(r"^\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d$")


def modernised(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The results of one file as one or more of today's form; `data` itself where it has that form already."""
    rows = {task: mapping(row) for task, row in data["results"].items()}
    if any("," in str(key) for row in rows.values() for key in row):
        yield data
    elif any(_DATE.match(str(key)) for row in rows.values() for key in row):
        for rank in range(max(len(row) for row in rows.values())):
            chosen = {
                task: mapping(row[dates[rank]]) for task, row in rows.items() if len(dates := _latest_first(row)) > rank
            }
            if chosen:
                yield _one(data, chosen)
    else:
        yield _one(data, rows)


_ABOUT_PROMPT = frozenset(
    {
        "task_name",
        "prompt_name",
        "prompt_id",
        "prompt_jinja",
        "prompt_original_task",
        "dataset_path",
        "dataset_name",
        "subset",
        "comment",
    }
)


def by_prompt(entries: list[Any]) -> dict[str, dict[str, Any]]:
    """Results that are a list, as a dict by task; a name that comes again gets a number. What is no entry is left
    out.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in map(mapping, entries):
        task, prompt = entry.get("task_name") or entry.get("task"), entry.get("prompt_name")
        if isinstance(task, str):
            name = f"{task}+{prompt}" if isinstance(prompt, str) and prompt else task
            unique = (
                name
                if name not in found
                else f"{name} ({sum(other == name or other.startswith(f'{name} (') for other in found) + 1})"
            )
            found[unique] = {key: value for key, value in entry.items() if key not in _ABOUT_PROMPT}
    return found


def _latest_first(row: dict[str, Any]) -> list[str]:
    return sorted((date for date in row if _DATE.match(str(date))), reverse=True)


def _one(data: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    shots = mapping(data.get("config")).get("num_fewshot")
    return {
        **data,
        "results": {
            task: {f"{key},none": value for key, value in row.items() if key not in _ABOUT_PROMPT}
            for task, row in rows.items()
        },
        "n-shot": dict.fromkeys(rows, shots),
    }
