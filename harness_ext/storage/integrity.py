"""Is a run folder as it was when it was written? Its receipt lists the other files with sizes and digests; receipts of
before that are checked by parsing the results and counting the samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RECEIPT = "receipt.json"


def listed_files(folder: Path) -> list[dict[str, Any]]:
    """What the receipt says of the other files of its folder: `name`, `bytes` and `sha256` of each."""
    return [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != RECEIPT
    ]


def damage(folder: Path, receipt: Mapping[str, Any]) -> str | None:
    """What is wrong with the files of a run that its receipt calls complete, in a few words; None where all is well."""
    try:
        files = receipt.get("files")
        return _damage_by_counting(folder, receipt) if files is None else _damage_by_list(folder, files)
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{RECEIPT} is not as it was written"


def damage_by_size(folder: Path, files: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with the sizes of the files that a receipt lists, in a few words; None where nothing is. Nothing is
    read. Raises KeyError, TypeError or ValueError where the list is none.
    """
    for written in files:
        name = Path(written["name"]).name
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != written["bytes"]:
            return f"{name} has {size:,} bytes of {int(written['bytes']):,}"
    return None


def _damage_by_list(folder: Path, files: Sequence[Mapping[str, Any]]) -> str | None:
    if not files:
        return f"{RECEIPT} lists no files"
    for written in files:
        if (damaged := damage_by_size(folder, [written])) is not None:
            return damaged
        name = Path(written["name"]).name
        if _digest(folder / name) != written["sha256"]:
            return f"{name} is not as it was written"
    return None


def _damage_by_counting(folder: Path, receipt: Mapping[str, Any]) -> str | None:
    tasks: Mapping[str, Mapping[str, Any]] = receipt["tasks"]
    results = sorted(folder.glob("results_*.json"))
    if not results:
        return "its results are missing"
    try:
        configs = json.loads(results[-1].read_text(encoding="utf-8"))["configs"]
    except ValueError:
        return f"{results[-1].name} is cut or not JSON"
    samples = dict(_samples(folder))
    for task, asked in tasks.items():
        if task not in configs:
            return f"{results[-1].name} has no {task}"
        if task not in samples:
            return f"the samples of {task} are missing"
        found = _documents(samples[task])
        if found is None:
            return f"{samples[task].name} is cut or not JSON"
        if found != asked["scored"]:
            return f"{samples[task].name} has {found} documents of {asked['scored']}"
    return None


def _samples(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of samples by task, the newest of each last."""
    for path in sorted(folder.glob("samples_*.jsonl")):
        yield path.name.removeprefix("samples_").rpartition("_")[0], path


def _documents(path: Path) -> int | None:
    """How many documents a file of samples has; None where a line is not whole."""
    found: set[int | None] = set()
    with path.open("rb") as file:
        for line in file:
            try:
                found.add(json.loads(line)["doc_id"] if line.endswith(b"\n") else None)
            except (ValueError, KeyError, TypeError):
                return None
    return None if None in found else len(found)


def _digest(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
