"""What completes the value of a flag: recipes, controls, tasks, runs, models, files. Whatever cannot be had quickly, or
at all, completes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from leaderboard.store.naming import KnownRun

FILES = frozenset(
    {
        "FILE",
        "DIR",
        "PATH",
        "<path>",
        "<file>",
        "config",
        "database",
        "output_path",
        "include_path",
        "use_cache",
        "junit",
        "out",
    }
)
"""Metavars and destinations of flags that take a file or a folder."""
_SWEEP_KEYS = (b"models", b"tasks", b"recipes")
_OF_SWEEPS = re.compile(rb"^(%s):" % b"|".join(_SWEEP_KEYS), re.MULTILINE)
_SWEEP_BYTES = 1 << 16
_MOST_READ = 200
_RUNS = frozenset({"A", "B", "RUN"})
_DEVICES = ("cpu", "cuda", "cuda:0", "mps")
_MODELS = ("hf", "hf-recipe", "vllm", "local-completions", "local-chat-completions", "openai-completions", "dummy")
_CONTROLS = ("random-subspace", "bottom-k", "noise", "identity", "shuffled-labels", "wanda-sp")
_LEAST_OF_ID = 2


class Suggestion(NamedTuple):
    """A word, and what it is."""

    text: str
    description: str = ""


def values_of(program: str, action: argparse.Action, begun: str, database: Path) -> list[Suggestion]:
    """What completes `begun` as the value of an action. program: the parser's, which tells filters from flags."""
    name = action.dest
    if program.split()[1:2] == ["sweep"]:
        return _of_sweep(action, begun)
    wanted = set(re.split(r"\W+", str(action.metavar)))
    if wanted & _RUNS:
        beside = [Suggestion(word) for word in ("base", "blessed") if name == "baseline" and word.startswith(begun)]
        models = _filters("model", begun, database) if "MODEL" in wanted else []
        return [*beside, *models, *_run_names(begun, database), *files(begun)]
    if "TASK" in wanted:
        return _filters("task", begun, database)
    if program.split()[1:2] == ["runs"] and name in ("model", "recipe", "task"):
        return _filters(name, begun, database)
    if name == "recipe":
        return [*_recipes(begun), *(files(begun) if begun else [])]
    if name == "tasks":
        done, _, last = begun.rpartition(",")
        head = f"{done}," if done else ""
        return [Suggestion(f"{head}{task}") for task in _task_names() if task.startswith(last)] if last else []
    words = {"control": _CONTROLS, "device": _DEVICES, "layers_on": _DEVICES, "model": _MODELS}.get(name, ())
    if name == "model_args":
        words = ("pretrained=demo", "pretrained=", "dtype=", "revision=")
    return [Suggestion(word) for word in words if word.startswith(begun)]


def files(begun: str) -> list[Suggestion]:
    """Files and folders, hidden ones only where asked for."""
    folder, _, name = begun.rpartition("/")
    place = Path(os.path.expanduser(folder)) if folder else Path("/" if begun.startswith("/") else ".")
    lead = f"{folder}/" if "/" in begun else ""
    with suppress(OSError):
        return [
            Suggestion(f"{lead}{entry.name}{'/' if entry.is_dir() else ''}")
            for entry in sorted(os.scandir(place), key=lambda entry: entry.name)
            if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith("."))
        ]
    return []


def _of_sweep(action: argparse.Action, begun: str) -> list[Suggestion]:
    from harness_ext.cli.sweep import ENGINES

    if action.dest == "on":
        return [Suggestion(engine) for engine in ENGINES if engine.startswith(begun)]
    return _sweep_files(begun) if action.dest == "sweep" else []


def _sweep_files(begun: str) -> list[Suggestion]:
    """Folders, and the YAML files that have the keys of a sweep; all YAML files where none has."""
    there = files(begun)
    folders = [entry for entry in there if entry.text.endswith("/")]
    written = [entry for entry in there if entry.text.endswith((".yaml", ".yml"))]
    sweeps = [entry for entry in written if _looks_like_a_sweep(entry.text)] if len(written) <= _MOST_READ else []
    return [*folders, *(sweeps or written)]


def _looks_like_a_sweep(name: str) -> bool:
    from leaderboard.readers.safe_json import opened

    with suppress(OSError), opened(Path(os.path.expanduser(name))) as file:
        return len(set(_OF_SWEEPS.findall(file.read(_SWEEP_BYTES)))) == len(_SWEEP_KEYS)
    return False


def _recipes(begun: str) -> list[Suggestion]:
    from harness_ext.recipe.recipe import parse_recipe, shipped_names

    return [Suggestion(name, parse_recipe(name).summary) for name in shipped_names() if name.startswith(begun)]


def _task_names() -> Iterable[str]:
    """The tasks of the index as it was last made, whether it is stale or not, and ours."""
    from importlib.metadata import version

    from harness_ext.lm_eval_adapter import task_cache
    from harness_ext.lm_eval_adapter.task_index import default_root, our_kinds

    names = set()
    with suppress(OSError, ValueError, KeyError, TypeError):
        path = task_cache.cache_file(default_root(), version("lm_eval"))
        names |= {str(row[0]) for row in json.loads(path.read_bytes())["rows"]} if path else set()
    with suppress(OSError, UnicodeDecodeError):
        names |= our_kinds().keys()
    return sorted(names)


def _known(database: Path) -> list[KnownRun]:
    from leaderboard.errors import LeaderboardError
    from leaderboard.store.database import open_store
    from leaderboard.store.naming import known_runs

    with suppress(LeaderboardError), open_store(database, read_only=True, timeout_s=0) as store:
        return known_runs(store)
    return []


def _run_names(begun: str, database: Path) -> list[Suggestion]:
    """Runs by MODEL/RECIPE, up to the next slash as files are completed, and by id."""
    from leaderboard.store.naming import last_part, when

    found: dict[str, str] = {}
    for run in _known(database):
        for model in (last_part(run.model), run.model):
            name = f"{model}/{run.recipe}"
            if name.startswith(begun) and (begun or not name.startswith("/")):
                end = name.find("/", len(begun))
                step = name if end < 0 or end > len(model) else name[: end + 1]
                found.setdefault(step, f"{run.run_id[:12]}, {when(run.started)}" if step == name else "")
        if len(begun) >= _LEAST_OF_ID and run.run_id.startswith(begun):
            found[run.run_id[:12]] = f"{run.name}, {when(run.started)}"
    return [Suggestion(text, said) for text, said in found.items()]


def _filters(name: str, begun: str, database: Path) -> list[Suggestion]:
    from leaderboard.store.naming import last_part

    runs = _known(database)
    words = {
        "model": [word for run in runs for word in (last_part(run.model), run.model)],
        "recipe": [run.recipe for run in runs],
        "task": _task_names() if begun and name == "task" else [],
    }[name]
    return [Suggestion(word) for word in dict.fromkeys(words) if word.startswith(begun)]
