"""What runs are called where they stand side by side: the recipe's label, and what tells two runs of one label apart.

Notable choices:
- A name says more than the label only where two runs of one model share label and task and were not asked the same:
  `ablation-prune (calibrated on int_mult)`, `laser [bfloat16]`, `laser [limit 20]`. It then says what is needed to tell
  them apart and no more, in the order of `TRAITS`.
- What tells runs of a label apart on one model is said of all runs of that label, so that runs of one kind are called
  the same on every model. Names do not depend on the order of the runs.
- Runs by several revisions of a recipe's methods are told apart on all models, whether two meet or not.
- Runs that were asked the same are called the same: they are repetitions. How they were computed (device, batch size,
  versions of packages) is not part of a name; it is named beside a comparison in which it differs. Engines and GPUs
  are, where two runs name different ones: such runs have different baselines (`compare.hardware`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from leaderboard.readers import asked
from leaderboard.readers.asked import REVISION
from leaderboard.readers.safe_json import digest
from leaderboard.store import queries
from leaderboard.store.database import Store
from leaderboard.store.queries import Calibrated, RunRow, RunTaskRow

_CALIBRATION = ("calibration", "split", "drawn", "seed")
_OF_TASKS = ("shots", "documents", "which documents", "task", "configuration")
_MAY_BE_UNKNOWN = frozenset({*_OF_TASKS, "recipe", "seeds", "gpu", "engine"})  # a run without one is not another
TRAITS = (
    *_CALIBRATION,
    *(
        "dtype",
        "engine",
        "gpu",
        "limit",
        "samples",
        "chat_template",
        "system_instruction",
        "gen_kwargs",
        "model_args",
        "recipe",
    ),
    REVISION,
    *_OF_TASKS,
    "seeds",
)
"""What may tell two runs apart, the most telling first."""
_SAID = {"which documents": "documents", "configuration": "tasks", "task": "tasks"}  # of what differs by task
_REMEMBERED = 20_000
_MOST_NAMES = 3  # tasks of a calibration that are written out
Traits = Mapping[str, str]


class LabelledRun(NamedTuple):
    """A run to be named. traits: of the whole run; tasks: task -> what is particular to it there. Both: name out of
    `TRAITS` -> words.
    """

    run_id: str
    model: str
    label: str
    traits: Traits
    tasks: Mapping[str, Traits]


def distinct_names(runs: Iterable[LabelledRun]) -> dict[str, str]:
    """run_id -> its name: the label, with the shortest addition that tells runs apart which were not asked the same."""
    by_label: dict[str, list[LabelledRun]] = defaultdict(list)
    for run in runs:
        by_label[run.label].append(run)
    names = {}
    for label, alike in by_label.items():
        telling = _telling_of(alike) if len(alike) > 1 else ()
        names.update({run.run_id: label + _addition(run, telling) for run in alike})
    return names


def _telling_of(alike: Sequence[LabelledRun]) -> tuple[str, ...]:
    """The traits that tell runs of one label apart, on whichever model and task two of them meet."""
    meeting: dict[tuple[str, str], dict[tuple[object, ...], Traits]] = defaultdict(dict)
    kinds: dict[tuple[tuple[str, str], ...], int] = {}  # a short key for each set of traits: tasks are many
    for run in alike:
        kind = kinds.setdefault(tuple(sorted(run.traits.items())), len(kinds))
        for task, particular in run.tasks.items():
            key = (kind, *particular.items())
            if key not in meeting[run.model, task]:
                meeting[run.model, task][key] = {**run.traits, **particular}
    different = {frozenset(found): list(found.values()) for found in meeting.values() if len(found) > 1}
    telling = {name for found in different.values() for name in _telling(found)}
    # Another revision of a method is another edit, on whichever models it was run.
    if len({run.traits.get(REVISION) for run in alike}) > 1:
        telling.add(REVISION)
    return tuple(name for name in TRAITS if name in telling)


def _telling(rows: Sequence[Traits]) -> list[str]:
    """The traits that part the rows, each only where those before it do not."""
    telling: list[str] = []
    groups = [list(rows)]
    for name in TRAITS:
        parted: list[list[Traits]] = []
        for group in groups:
            by_value: dict[str | None, list[Traits]] = defaultdict(list)
            for row in group:
                by_value[row.get(name)].append(row)
            parted += [group] if name in _MAY_BE_UNKNOWN and len(by_value.keys() - {None}) < 2 else by_value.values()
        if len(parted) > len(groups):
            telling.append(name)
        groups = [group for group in parted if len(group) > 1]
    return telling


def _addition(run: LabelledRun, telling: Sequence[str]) -> str:
    found = {name: text for name in telling if (text := _said(run, name))}
    learned = ", ".join(text for name, text in found.items() if name in _CALIBRATION)
    others = ", ".join(text for name, text in found.items() if name not in _CALIBRATION)
    return (f" ({learned})" if learned else "") + (f" [{others}]" if others else "")


def _said(run: LabelledRun, name: str) -> str | None:
    if name not in _OF_TASKS:
        return run.traits.get(name)
    texts = {task: particular.get(name) for task, particular in run.tasks.items()}
    different = set(texts.values())
    if len(different) == 1:
        return different.pop()
    return f"{_SAID.get(name, name)} {digest(texts)[:6]}" if different else None


def names_of(
    runs: Sequence[RunRow], tasks: Mapping[str, Sequence[RunTaskRow]], calibrated: Mapping[str, Calibrated]
) -> dict[str, str]:
    """run_id -> the name of each run. tasks: by run_id, needed where a label has several runs; calibrated: likewise."""
    alike = Counter(run.recipe_label for run in runs)
    return distinct_names(
        LabelledRun(run.run_id, run.model_key, run.recipe_label, {}, {})
        if alike[run.recipe_label] == 1
        else LabelledRun(
            run.run_id,
            run.model_key,
            run.recipe_label,
            _traits(run, calibrated.get(run.run_id)),
            {} if run.status == "failed" else {row.task: _of_task(row[1:]) for row in tasks.get(run.run_id, ())},
        )
        for run in runs
    )


def stored_names(store: Store) -> dict[str, str]:
    """run_id -> its name, of all runs of a store."""
    runs = queries.runs(store)
    alike = Counter(run.recipe_label for run in runs)
    several = [run.run_id for run in runs if alike[run.recipe_label] > 1]
    return names_of(runs, queries.run_tasks(store, several), queries.calibrated_on(store))


def _traits(run: RunRow, calibrated: Calibrated | None) -> Traits:
    found = {
        "dtype": run.dtype,
        "engine": run.engine,
        "gpu": run.gpu,
        "recipe": run.recipe_id and f"recipe {run.recipe_id[:6]}",
        **asked.words(run.asked),
    }
    if calibrated is not None:
        found |= {
            "calibration": f"calibrated on {_listed(calibrated.tasks)}" if calibrated.tasks else None,
            "split": calibrated.splits and f"{calibrated.splits} split",
            "drawn": calibrated.samples and f"{calibrated.samples} documents",
            "seed": calibrated.seeds and f"seed {calibrated.seeds}",
        }
    return {name: text for name, text in found.items() if text}


def _listed(names: str) -> str:
    """`a, b`, or of many names the first and a digest of all."""
    each = names.split(", ")
    return names if len(each) <= _MOST_NAMES else f"{each[0]} and {len(each) - 1} more, {digest(names)[:6]}"


@lru_cache(_REMEMBERED)
def _of_task(fields: tuple[Any, ...]) -> Traits:
    """fields: of a `RunTaskRow`, without the run. Most rows are as others are."""
    row = RunTaskRow("", *fields)
    counted = None if row.documents is None else f"{row.documents:,} documents"
    found = {
        "shots": None if row.num_fewshot is None else f"{row.num_fewshot}-shot",
        "documents": row.subset or counted,
        "which documents": row.documents_hash and f"documents {row.documents_hash[:6]}",
        "task": row.identity and f"task {row.identity[:6]}",
        "configuration": row.config_hash and f"task {digest(row.config_hash)[:6]}",
    }
    return {name: text for name, text in found.items() if text}
