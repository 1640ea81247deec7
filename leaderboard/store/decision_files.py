"""Decisions as files: `<database>.decisions/000012-pin-<id>.json`, one a decision, never changed.

Notable choices:
- A store can be lost, damaged, or too new to be read; pins, blessings, gates and deletions follow from no run folder.
  So each is a file too, and the store an index over these files as it is over run folders.
- Files are written beside their place, brought to the disk and renamed: a kill leaves all or nothing. The name carries
  order and id, so that which ones a store lacks is seen without reading them.
- Anybody may have written them: what is no such file, too large or not of the schema is left out, and said. Keys of
  later versions are ignored. Paths in them are text: nothing is opened because a decision names it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.errors import Unreadable, Unwritable
from leaderboard.readers.safe_json import clean, parse_json
from leaderboard.store.places import file_of

FORMAT = 1
LARGEST_FILE = 16 * 2**20
LAST_SEQUENCE = 10**9
_NAME = re.compile(r"(\d{6,10})-([a-z]+)-([0-9a-f]{32})\.json")
_UNFINISHED = ".writing-"


class DecisionKind(NamedTuple):
    """A kind of decision: its table, and the columns of that beside id and sequence; `?` where it may be missing."""

    table: str
    columns: Mapping[str, str]


KINDS = {
    "pin": DecisionKind(
        "baselines", {"model_key": "text", "run_id": "text", "path": "text?", "pinned_at": "time", "reason": "text"}
    ),
    "blessing": DecisionKind(
        "blessings",
        {
            "model_name": "text", "model_key": "text", "recipe_label": "text", "run_id": "text", "path": "text?",
            "blessed_at": "time", "reason": "text",
        },
    ),
    "gate": DecisionKind(
        "gate_runs",
        {
            "gated_at": "time", "verdict": "text", "exit_code": "whole", "model_name": "text", "recipe_label": "text",
            "candidate": "text", "candidate_path": "text", "policy": "text", "report": "text",
        },
    ),
    "deletion": DecisionKind(
        "deletions", {"run_id": "text", "path": "text", "logged_at": "time", "deleted": "flag", "reason": "text"}
    ),
}  # fmt: skip
"""By the word in the files' names."""


class RecordedDecision(NamedTuple):
    """One decision. sequence: its place in the order of all. values: by column of its table."""

    kind: str
    decision_id: str
    sequence: int
    values: dict[str, Any]


class DecisionName(NamedTuple):
    """What the name of a decision's file says."""

    sequence: int
    kind: str
    decision_id: str
    path: Path


def folder_of(database: Path) -> Path:
    """Where the decisions of a store lie."""
    return Path(f"{file_of(database)}.decisions")


def names(folder: Path) -> dict[str, DecisionName]:
    """decision_id -> the file's name, in order; of two files of one decision the earlier. Empty where there is none."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return {}
    found: dict[str, DecisionName] = {}
    for entry in entries:
        match = _NAME.fullmatch(entry)
        if match and match[2] in KINDS and 0 < int(match[1]) <= LAST_SEQUENCE:
            found.setdefault(match[3], DecisionName(int(match[1]), match[2], match[3], folder / entry))
    return found


def read(name: DecisionName) -> RecordedDecision:
    """The decision in a file. Raises `Unreadable`, with what is wrong."""
    where = name.path.name
    try:
        descriptor = os.open(name.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
        text = data.decode("utf-8")
    except OSError as error:  # its text may hold the descriptor's number, which is another at each reading
        raise Unreadable(f"{where} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"{where} cannot be read: {error}") from error
    if len(data) > LARGEST_FILE:
        raise Unreadable(f"{where} has more than {LARGEST_FILE // 2**20} MiB")
    found = parse_json(text, where)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise Unreadable(f"{where} is no decision of format {FORMAT}")
    said = tuple(found.get(key) for key in ("sequence", "kind", "id"))
    if said != name[:3] or isinstance(said[0], bool):
        raise Unreadable(f"{where} holds another decision than its name says")
    values = {
        column: _value(found.get(column), kind, column, where) for column, kind in KINDS[name.kind].columns.items()
    }
    return RecordedDecision(name.kind, name.decision_id, name.sequence, values)


def _value(value: Any, kind: str, column: str, where: str) -> Any:
    right = {
        "text": isinstance(value, str),
        "text?": value is None or isinstance(value, str),
        "flag": isinstance(value, bool),
        "whole": isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31,
        "time": isinstance(value, str),
    }
    if not right[kind]:
        raise Unreadable(f"{where}: {column} is missing or of the wrong type")
    if kind != "time":
        return clean(value) if isinstance(value, str) else value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise Unreadable(f"{where}: {column} is no time") from error
    if moment.tzinfo is not None:
        raise Unreadable(f"{where}: {column} is to be in UTC, without a zone")
    return moment


def write(folder: Path, decisions: Iterable[RecordedDecision]) -> list[Path]:
    """Write decisions, and bring them to the disk; the files. Raises `Unwritable`, and then none of them is there."""
    written: list[Path] = []
    try:
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(f"{_UNFINISHED}*"):
            leftover.unlink(missing_ok=True)  # of a writer that was killed: whoever lives holds the store's lock
        for decision in decisions:
            path = folder / f"{decision.sequence:06}-{decision.kind}-{decision.decision_id}.json"
            written.append(path)
            _write_one(folder / f"{_UNFINISHED}{path.name}", path, _as_text(decision))
        if written:
            _sync_folder(folder)
    except BaseException as error:
        remove(written)
        if isinstance(error, OSError):
            raise Unwritable(
                f"the decision cannot be written to {folder} ({error.strerror or error}), and nothing was changed: make"
                " room there, or change its permissions, and run the same command again"
            ) from error
        raise
    return written


def _as_text(decision: RecordedDecision) -> str:
    values = {
        key: value.isoformat() if isinstance(value, datetime) else value for key, value in decision.values.items()
    }
    first = {"format": FORMAT, "id": decision.decision_id, "sequence": decision.sequence, "kind": decision.kind}
    return json.dumps(first | values, indent=1, ensure_ascii=True, default=str) + "\n"


def _write_one(unfinished: Path, path: Path, text: str) -> None:
    if len(text) > LARGEST_FILE:
        raise Unwritable(f"a decision of {len(text) / 2**20:.0f} MiB is more than the {LARGEST_FILE // 2**20} MiB kept")
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(paths: Iterable[Path]) -> None:
    """Take files back that a decision left which did not come about."""
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)
