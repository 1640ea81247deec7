"""What differs between runs in how they were made, as the page Compare tells it: what is not the edit itself first, and
what is the same in one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leaderboard.compare.run_diff import compare_facts
from leaderboard.readers.records import BASELINE
from leaderboard.readers.weights_digest import short_digest
from leaderboard.store.database import Store
from leaderboard.terminal.format import plain

_EDIT = ("recipe", "recipe's steps", "control", "calibration", "weights digest", "parameters after")
"""What the edit itself makes differ."""
_EVERY_TIME = ("started", "folder", "run", "host", "sweep", "cell of the sweep")
"""What is another in every run."""
_HEAD = ("run", "started", "recipe", "calibration", "parameters after", "tasks", "engine")
"""Rows of the table, in this order, before all others."""
_RENAMED = {"backend": "engine"}
_SAID = (
    "dtype",
    "engine",
    "batch size",
    "device",
    "GPU",
    "lm-eval",
    "transformers",
    "torch",
    "model",
    "settings.limit",
)
"""What is worth a word where it is the same."""
_COPIES = frozenset(
    {
        *(
            f"{tree}.{name}"
            for tree in ("versions", "settings.versions")
            for name in ("lm_eval", "torch", "transformers")
        ),
        "settings.batch_size",
        "settings.device",
        "settings.model.pretrained",
        "recipe's steps",
    }
)
"""Said under another name already."""


class RunRecord(NamedTuple):
    """A run as the store has it, its tasks, and what it was calibrated on."""

    run: dict[str, Any]
    tasks: tuple[str, ...]
    calibrations: tuple[str, ...]


def records(store: Store, *run_ids: str) -> list[RunRecord]:
    """Of these runs, in this order, without those that are not there."""
    some = [list(run_ids)]
    runs = {
        row["run_id"]: row | {"path": str(store.places.resolved(row["path"]))}
        for row in store.rows(
            "SELECT * FROM runs JOIN variants USING (variant_id) WHERE run_id IN (SELECT unnest(?))", some
        )
    }
    tasks = _grouped(
        store.rows("SELECT run_id, task AS value FROM run_tasks WHERE run_id IN (SELECT unnest(?)) ORDER BY task", some)
    )
    calibrations = _grouped(
        store.rows(
            "SELECT DISTINCT run_id, concat(task, CASE WHEN documents IS NULL THEN '' ELSE concat(' (', documents, ')')"
            " END) AS value FROM calibrations WHERE run_id IN (SELECT unnest(?)) ORDER BY 2",
            some,
        )
    )
    return [
        RunRecord(runs[run_id], tuple(tasks.get(run_id, ())), tuple(calibrations.get(run_id, ())))
        for run_id in run_ids
        if run_id in runs
    ]


def _grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["run_id"], []).append(str(row["value"]))
    return found


class Fact(NamedTuple):
    """One thing by name, and what it is in each run; empty where a run does not say. comparable: not where it is
    digests of different kinds.
    """

    name: str
    values: tuple[str, ...]
    comparable: bool = True

    @property
    def differs(self) -> bool:
        """Whether not all are the same."""
        return self.comparable and len(set(self.values)) > 1


def facts(made: Sequence[RunRecord]) -> list[Fact]:
    """Everything that some of the runs say of how they were made."""
    first = made[0].run
    each = [{entry.name: entry for entry in compare_facts(first, other.run)} for other in made]
    names = dict.fromkeys(name for entries in each for name in entries)
    found = []
    for name in names:
        values = tuple(entries[name].second if name in entries else "" for entries in each)
        comparable = all(name not in entries or entries[name].comparable for entries in each)
        found.append(Fact(_RENAMED.get(name, name), values, comparable))
    own = [
        Fact("run", tuple(str(record.run["run_id"])[:8] for record in made)),
        Fact("calibration", tuple(", ".join(record.calibrations) or "none" for record in made)),
        Fact("tasks", tuple(", ".join(record.tasks) for record in made)),
    ]
    order = {name: place for place, name in enumerate(_HEAD)}
    return sorted([*found, *own], key=lambda fact: order.get(fact.name, len(order)))


def differing(found: Sequence[Fact], made: Sequence[RunRecord]) -> list[Fact]:
    """The facts worth a row: those that differ, without those that say again what another says, and without the steps
    of a recipe beside a run that has none.
    """
    unedited = any(record.run["recipe_name"] == BASELINE or not record.run["recipe_id"] for record in made)
    return [
        _short(fact)
        for fact in found
        if fact.differs
        and fact.name not in _COPIES
        and fact.name != "folder"
        and not (unedited and fact.name.startswith("recipe."))
    ]


def _short(fact: Fact) -> Fact:
    if "digest" in fact.name or fact.name == "unedited weights":
        return fact._replace(values=tuple(short_digest(value) for value in fact.values))
    if fact.name.startswith("parameters"):
        return fact._replace(values=tuple(f"{int(v):,}" if v.isdigit() else v for v in fact.values))
    if fact.name == "started":
        return fact._replace(values=tuple(value[:16] for value in fact.values))
    return fact


def same_sentence(found: Sequence[Fact]) -> str:
    """What is the same in all, in one line, and what follows if nothing else differs than the edit."""
    same = {fact.name: fact.values[0] for fact in found if not fact.differs and fact.comparable and fact.values[0]}
    said = [f"{short(name)} {plain(_value(same[name]))}" for name in _SAID if name in same]
    others = [
        fact.name
        for fact in found
        if fact.differs and fact.name not in (*_EDIT, *_EVERY_TIME, *_COPIES) and not fact.name.startswith("recipe.")
    ]
    both = "all" if found and len(found[0].values) > 2 else "both"
    edited = any(fact.name == "recipe" and fact.differs for fact in found)
    cleared = edited and bool(same.get("weights digest"))
    sentences = [f"The same in {both}: {', '.join(said)}."] if said else []
    if cleared:
        sentences.append("The weights are the same to the bit, so no difference is the edit's doing.")
    if others:
        sentences.append(f"Besides the edit these differ: {plain(', '.join(map(short, others)))}.")
    elif not edited:
        sentences.append("No setting differs.")
    elif not cleared:
        sentences.append("Nothing else that is known differs: what changed is the edit's doing.")
    return " ".join(sentences)


def short(name: str) -> str:
    """`torch threads` for `versions.torch_threads`."""
    for tree in ("settings.", "versions."):
        name = name.removeprefix(tree)
    return name.replace("_", " ")


def _value(text: str) -> str:
    """A whole number without its `.0`."""
    return text[:-2] if text.endswith(".0") and text[:-2].isdigit() else text


def setting_badges(record: RunRecord) -> list[str]:
    """Settings of a run in short: parameters, architecture, dtype, limit, batch size."""
    run = record.run
    settings = _settings(run)
    limit, parameters = settings.get("limit"), run["parameters_before"] or run["parameters"]
    return [
        words
        for words in (
            f"{_short_count(parameters)} parameters" if parameters else "",
            run["model_type"] or "",
            f"dtype {run['dtype']}" if run["dtype"] else "",
            f"limit {_value(str(limit))}" if limit else "no limit" if settings else "",
            f"batch {run['batch_size']}" if run["batch_size"] else "",
        )
        if words
    ]


def _settings(run: Mapping[str, Any]) -> dict[str, Any]:
    value = json.loads(run["settings"] or "{}")
    return value if isinstance(value, dict) else {}


def _short_count(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
