"""What is left of a run on disk: which of its files are still there, and the parts of its receipt that the store does
not keep.

Notable choices:
- The record of searches and trainings is long and never joined with anything, so it stays in the receipt and is read
  when somebody looks.
- Nothing is read but the run folder's own `receipt.json`, never a link, and only while it still is the receipt that was
  ingested (by `spec_id` and start).
- A file that is gone is an answer, not an error: run folders may lie on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.errors import Unreadable
from leaderboard.readers.discovery import RECEIPT
from leaderboard.readers.receipt import public_receipt, utc
from leaderboard.readers.safe_json import load_json, mapping


class File(NamedTuple):
    """One file of a run. size: in bytes, None where it is not there (any more)."""

    name: str
    size: int | None


class OnDisk(NamedTuple):
    """A receipt as it lies there, or why there is none to show."""

    receipt: dict[str, Any] | None
    reason: str


def files_of(run: Mapping[str, Any]) -> list[File]:
    """The files of a run (a row of the store), with their sizes."""
    place = Path(run["path"])
    folder = place if run["origin"] == "recipe" else place.parent
    names = json.loads(run["files"] or "[]")
    return [File(str(name), _size(folder / Path(str(name)).name)) for name in names]


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except (OSError, ValueError):
        return None


def receipt_of(run: Mapping[str, Any]) -> OnDisk:
    """The receipt of a run (a row of the store), if it is still the one that was ingested."""
    if run["origin"] != "recipe":
        scored_by = "plain lm_eval" if run["origin"] == "plain" else run["origin"]
        return OnDisk(None, f"results of {scored_by} have no receipt")
    file = Path(run["path"]) / RECEIPT
    try:
        if file.is_symlink() or not file.is_file():
            return OnDisk(None, f"{RECEIPT} is not in the run's folder on this machine")
        found = public_receipt(load_json(file))
    except (Unreadable, OSError, ValueError) as error:
        return OnDisk(None, str(error))
    receipt = mapping(found)
    started = receipt.get("started")
    if receipt.get("spec_id") != run["spec_id"] or utc(started if isinstance(started, str) else None) != run["started"]:
        return OnDisk(None, f"{RECEIPT} in the run's folder is another run's by now")
    return OnDisk(receipt, "")


def records(receipt: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of a list in a receipt (`searches`, `log`); whatever else is there is left out."""
    value = receipt.get(key)
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def flat(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records as rows of one table: the same keys in each, in order of appearance, and one kind of value in each
    column.

    None where a record lacks a key. A column stays of numbers or booleans where all of it is; otherwise it is text,
    JSON for what is nested.
    """
    rows = list(entries)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _one_kind([row.get(name) for row in rows]) for name in names}
    return [{name: columns[name][place] for name in names} for place in range(len(rows))]


def _one_kind(values: list[Any]) -> list[Any]:
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present) or all(_is_whole(value) for value in present):
        return values
    if all(_is_whole(value) or isinstance(value, float) for value in present):
        return [None if value is None else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else as_text(value) for value in values]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def as_text(value: Any, indent: int | None = None) -> str:
    """A JSON value as text, whatever it is."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=True)
    except RecursionError:
        return "(nested too deeply to be shown)"


def requirements(versions: Mapping[str, Any]) -> list[str]:
    """Versions as lines for pip, of the packages that decide about scores; a build's suffix (`+cpu`) is left out,
    because indexes differ in it.
    """
    packages = {
        "lm_eval": "lm-eval",
        "lm_eval_recipes": "lm-eval-recipes",
        "torch": "torch",
        "transformers": "transformers",
        "accelerate": "accelerate",
        "safetensors": "safetensors",
        "datasets": "datasets",
        "numpy": "numpy",
        "peft": "peft",
    }
    return [
        f"{package}=={str(versions[name]).partition('+')[0]}"
        for name, package in packages.items()
        if versions.get(name)
    ]
