"""What the words of a cell point to, by contents: files of recipes, of tasks, and a model's folder. The words stay the
same where these change, and the results do not.

Nothing heavy is loaded. Only contents count, no absolute path and no time of a file, so that every machine that sees
the files gives a cell the same name. What is not on this machine (a model of the hub, say) counts by its words alone.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_ext import __version__
from harness_ext.demo import demo_path
from harness_ext.errors import RecipeError, UserError
from harness_ext.model.file_digests import FileDigests
from harness_ext.model.model_identity import ModelReader
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.runs.run_config import DEMO
from harness_ext.storage.remote import is_remote
from harness_ext.sweeps.sampled_digests import SampledDigests
from harness_ext.sweeps.sweep_file import BASELINE, SweepFile, SweptModel

_WRITTEN_TO = frozenset({"offload_folder", "cache_dir", "download_dir"})
_OTHER_YAML = re.compile(rb"^(steps|recipes)[ \t]*:", re.MULTILINE)
"""In a recipe's or a sweep's file, which may lie among those of tasks."""
_INCLUDED = re.compile(rb"^include[ \t]*:((?:[ \t]*[^\s#][^\n#]*)|(?:[ \t]*\n[ \t]*-[ \t]+[^\n#]+)+)", re.MULTILINE)
_WORD = re.compile(rb"[^\s'\"\[\],]+")
_DATA = re.compile(rb"(?<![^\s'\"\[\]{},])[^\s'\"\[\]{},]{1,1000}\.(?:jsonl?|csv|tsv|parquet|txt|arrow)\b")
_NOT_LOOKED_INTO = frozenset({"__pycache__", ".ipynb_checkpoints"})
"""lm-eval's own."""
_MOST_FILES = 100_000


class SweepContents:
    """The contents of what a sweep's words point to, each looked at once: a new object looks again."""

    def __init__(self, sweep: SweepFile) -> None:
        self._sweep = sweep
        self._files = FileDigests()
        left_out = None if is_remote(sweep.output_path) else Path(sweep.output_path)
        self._models = ModelReader(left_out, SampledDigests())
        self._of_recipes: dict[str, list[Any]] = {}
        self._of_models: dict[str, dict[str, str]] = {}
        self._of_tasks: list[Any] | None = None

    def of_cell(self, model: SweptModel, recipes: Sequence[str]) -> list[Any]:
        """Plain data that changes where what a cell's results depend on does; empty where its words say all."""
        edits = [self._recipe(recipe) for recipe in recipes if recipe != BASELINE]
        found = [self._model(model.arguments), self._tasks(), [__version__, *edits] if edits else []]
        return found if any(found) else []

    def _recipe(self, recipe: str) -> list[Any]:
        if recipe not in self._of_recipes:
            try:
                parsed = parse_recipe(recipe)
                told = [parsed.recipe_id, parsed.revisions, *parsed.chosen_on]
            except RecipeError:  # it was read a moment ago
                told = ["cannot be read"]
            self._of_recipes[recipe] = told
        return self._of_recipes[recipe]

    def _model(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """The digests of the local files and folders that a model's arguments name, by argument."""
        key = json.dumps(arguments, sort_keys=True, default=str)
        if key not in self._of_models:
            embedded = arguments.get("pretrained") == DEMO and not (Path(DEMO) / "config.json").is_file()
            named = {**arguments, "pretrained": str(demo_path())} if embedded else arguments
            local = {
                name: value
                for name, value in named.items()
                if name in ("subfolder", "gguf_file") or (name not in _WRITTEN_TO and _is_there(value))
            }
            try:
                self._of_models[key] = self._models.identities(local)
            except (OSError, ValueError, UserError):
                self._of_models[key] = {"pretrained": "cannot be read"}
        return self._of_models[key]

    def _tasks(self) -> list[Any]:
        """Names and digests of the files of tasks of one's own, and of files that flags name."""
        if self._of_tasks is None:
            run = self._sweep.run
            named = [value for name, value in run.items() if name != "include_path" and _is_there(value)]
            files = {*task_files(self._sweep.tasks, run.get("include_path")), *map(_path, named)}
            self._of_tasks = sorted([path.name, self._digest(path)] for path in files if path.is_file())
        return self._of_tasks

    def _digest(self, path: Path) -> str:
        try:
            return self._files.digest(path)
        except UserError:
            return "cannot be read"


def task_files(tasks: Iterable[str], include_path: Any) -> Iterator[Path]:
    """The files that make tasks of one's own: YAML files of a folder or named themselves, what they include, the code
    beside them, and the data files that they name.
    """
    waiting = sorted(_below(_path(include_path))) if _is_there(include_path) else []
    for name in (one.strip() for text in tasks for one in text.split(",")):
        if name.endswith((".yaml", ".yml")):
            waiting += [Path(path) for path in sorted(glob.glob(name))]
        elif _is_there(name):
            waiting += sorted(_below(_path(name)))
    seen: set[Path] = set()
    while waiting and len(seen) < _MOST_FILES:
        path = waiting.pop()
        if path in seen or (text := _text(path)) is None or _OTHER_YAML.search(text):
            continue
        seen.add(path)
        yield path
        yield from path.parent.glob("*.py")
        yield from (place for word in _DATA.findall(text) for place in _places(word, path) if _is_file(place))
        words = (word for value in _INCLUDED.findall(text) for word in _WORD.findall(value) if word != b"-")
        waiting += [path.parent / word.decode(errors="replace") for word in words]


def digest_of(told: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _below(folder: Path) -> Iterator[Path]:
    """The YAML files below a folder, where lm-eval looks for them."""
    for path in folder.glob("**/*.yaml"):
        if not _NOT_LOOKED_INTO.intersection(path.parts):
            yield path


def _places(word: bytes, beside: Path) -> Iterator[Path]:
    text = word.decode(errors="replace")
    yield from (Path(text), beside.parent / text)


def _text(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if _is_file(path) else None
    except OSError:
        return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _path(value: Any) -> Path:
    return Path(str(value)).expanduser()


def _is_there(value: Any) -> bool:
    """Whether a value is the path of something on this machine."""
    try:
        return isinstance(value, (str, Path)) and bool(str(value)) and _path(value).exists()
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, or `~NAME` of nobody
        return False
