"""What became of a cell that ended: done, failed for good, or to be run again.

A machine's failure (killed, out of memory, a full disk, out of time, gone) may not happen elsewhere, so the cell is run
again. What the recipe or the asking is at fault for would only happen again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness_ext.storage.integrity import RECEIPT, damage, damage_by_size
from harness_ext.storage.rundir import RESCUED, writing
from harness_ext.storage.whole_files import write_record
from harness_ext.sweeps.job_files import NOT_BEGUN, now, read_record
from leaderboard.readers.sweep_state import (
    ENDED,
    MANIFEST,
    OUTCOME,
    OUTPUT,
    State,
    controls_not_made,
    read_json,
    tries_in,
)

_OF_MACHINES = frozenset({"out_of_memory", "disk"})
"""Kinds of failures that a manifest may tell of, and that another machine may not have."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_LARGEST_MANIFEST = 16 * 2**20
_LARGEST_RECEIPT = 2**30
_TAIL_BYTES = 4096
_WIDEST = 300


@dataclass(frozen=True)
class Ending:
    """How one try ended. why: in a sentence, empty where all is well. machine: whether to try again. runs: folders.
    mark: what tells the try from others; empty where its worker left no last record. begun: whether its command was;
    if not, it was no try. not_made: the manifest's entries of controls that cannot be ones of their recipes.
    """

    why: str
    machine: bool
    runs: tuple[Path, ...]
    host: str = ""
    seconds: float | None = None
    mark: str = ""
    begun: bool = True
    not_made: tuple[Mapping[str, Any], ...] = ()


def ending(place: Path) -> Ending:
    """How the last try of the cell in this folder ended, whose worker is gone."""
    ended = read_record(place / ENDED)
    manifest = read_json(place / MANIFEST, _LARGEST_MANIFEST)
    runs, failures = _runs(manifest)
    if ended is None:
        return Ending("its worker is gone without a word: killed, or its machine is down", True, runs)
    if ended.get("reason") == NOT_BEGUN:
        return Ending("its baseline is not done", False, (), begun=False)
    why, machine = _why(ended, manifest, failures, place)
    seconds = ended.get("seconds")
    took = float(seconds) if isinstance(seconds, (int, float)) else None
    ending_of = Ending(why, machine, runs, str(ended.get("host") or ""), took, str(ended.get("try") or ""))
    return replace(ending_of, not_made=tuple(controls_not_made(manifest)))


def has_failed(place: Path) -> bool:
    """Whether the cell in this folder has ended without being done, settled by a driver or not yet."""
    if (place / ENDED).exists():
        return bool(ending(place).why)
    return (read_json(place / OUTCOME) or {}).get("state") in ("failed", "waiting")


def brought_home(found: Ending, folder: Path) -> Ending:
    """The ending with its rescued runs in the folder of their model, where they would be had the disk not been full.

    One that is out of sight, on another machine, is the machine's failure. Raises OSError where there is no room yet.
    """
    runs = tuple(_home(run, folder) if run.parent.name == RESCUED else run for run in found.runs)
    lost = [str(old) for old, new in zip(found.runs, runs) if old != new and not (new / RECEIPT).is_file()]
    if not lost or found.why:
        return replace(found, runs=runs)
    why = f"{folder} had no room, and {found.host or 'its machine'} alone sees where its runs went: {', '.join(lost)}"
    return replace(found, runs=runs, why=why, machine=True)


def _home(run: Path, folder: Path) -> Path:
    """Move a rescued run to its place; it may be there already, moved by a driver that died then."""
    home = folder / run.name
    if (run / RECEIPT).is_file():
        with writing(home) as new:
            shutil.copytree(run, new, dirs_exist_ok=True)
        shutil.rmtree(run, ignore_errors=True)
        with suppress(OSError):  # others may lie there
            run.parent.rmdir()
    return home


def settle(place: Path, found: Ending, retries: int) -> State:
    """Record how a try ended; what the cell is now. Raises OSError."""
    before = tries_in(read_json(place / OUTCOME))
    if before and found.mark and before[-1].get("mark") == found.mark:  # a driver died right after it had settled this
        before = before[:-1]
    told = {"why": found.why, "host": found.host, "seconds": found.seconds, "when": now()}
    tries = [*before, {**told, "machine": found.machine, "mark": found.mark}]
    again = bool(found.why) and found.machine and _of_machines(tries) <= retries
    state: State = "waiting" if again else "failed" if found.why else "done"
    runs, not_made = [str(path) for path in found.runs], [dict(control) for control in found.not_made]
    write_record(place / OUTCOME, {"state": state, "runs": runs, "not_made": not_made, "tries": tries})
    return state


def run_folders(place: Path, results: Path) -> list[Path]:
    """The run folders of a settled cell. results: where those of a machine without a shared disk are brought to."""
    runs = (read_record(place / OUTCOME) or {}).get("runs")
    paths = [Path(path) for path in runs if isinstance(path, str)] if isinstance(runs, list) else []
    return [path if path.is_dir() else results / path.parent.name / path.name for path in paths]


def harm(place: Path, results: Path, others: Collection[Path] = ()) -> str:
    """Why a cell that its record calls done is not: a run folder that is gone, or whose files are not there in the
    sizes that its receipt lists. Empty where all stand. others: folders that another cell answers for.
    """
    folders = run_folders(place, results)
    if not folders:
        return "its record names no run folder"
    found = ((folder, harm_of(folder)) for folder in folders if folder not in others)
    return next((f"{folder} {what}" for folder, what in found if what), "")


def harm_of(folder: Path) -> str:
    """Why a run folder does not stand, by the sizes of its files; empty where it does."""
    path = folder / RECEIPT
    try:
        status = path.stat()
        found = damage_by_size(folder, _listed(path, status.st_mtime_ns, status.st_size))
    except FileNotFoundError:
        return f"has no {RECEIPT}" if folder.is_dir() else "is gone"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"is damaged ({RECEIPT} is not as it was written)"
    return f"is damaged ({found})" if found else ""


@lru_cache(maxsize=1 << 16)
def _listed(receipt: Path, modified_ns: int, size: int) -> tuple[Mapping[str, Any], ...]:
    """The files that a receipt lists; none in one of before that was so. Read once while its time and size stay."""
    files = json.loads(receipt.read_bytes()).get("files", ())
    return tuple({"name": file["name"], "bytes": file["bytes"]} for file in files)


def damage_of(folder: Path) -> str:
    """What is wrong with a run folder by the digests of its files, which reads them whole; empty where nothing is."""
    if said := harm_of(folder):
        return f"{folder} {said}"
    found = damage(folder, read_json(folder / RECEIPT, _LARGEST_RECEIPT) or {})
    return f"{folder} is damaged ({found})" if found else ""


def undo(place: Path, why: str) -> None:
    """Have a cell that was done wait to be run again, and say why. Raises OSError."""
    record = read_record(place / OUTCOME) or {}
    *before, last = tries_in(record) or [{}]
    write_record(place / OUTCOME, {**record, "state": "waiting", "tries": [*before, {**last, "why": why}]})


def _of_machines(tries: list[Any]) -> int:
    return sum(bool(one.get("machine")) for one in tries)


def _runs(manifest: Mapping[str, Any] | None) -> tuple[tuple[Path, ...], list[tuple[str, Mapping[str, Any]]]]:
    """The run folders that a manifest names, and the failed ones: (recipe, failure)."""
    listed = (manifest or {}).get("runs")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    runs = tuple(Path(entry["path"]) for entry in entries if isinstance(entry.get("path"), str))
    failed = [
        (str(entry.get("recipe")), entry["failure"]) for entry in entries if isinstance(entry.get("failure"), dict)
    ]
    return runs, failed


def _why(
    ended: Mapping[str, Any],
    manifest: Mapping[str, Any] | None,
    failures: list[tuple[str, Mapping[str, Any]]],
    place: Path,
) -> tuple[str, bool]:
    """Why a try failed, or nothing; and whether that was the machine's fault."""
    code = ended.get("exit_code")
    if code == 0 and manifest is not None and not failures:
        return "", False
    if ended.get("reason") == "timeout":
        return "it ran out of its time (cells.timeout)", True
    if failures:
        told = "; ".join(f"{recipe}: {failure.get('reason')}" for recipe, failure in failures)
        return told, any(failure.get("kind") in _OF_MACHINES for _, failure in failures)
    mistake = (manifest or {}).get("mistake")
    if isinstance(mistake, dict):
        return str(mistake.get("reason")), mistake.get("kind") in _OF_MACHINES
    if code is None:
        return f"its command was ended by {ended.get('signal')}", True
    told = _last_line(place / OUTPUT)
    if code == 2 and ended.get("reason") == "command":
        # A mistake that was told before anything was asked for, or a disk that took no manifest either.
        return told or "it ended with code 2", any(os.strerror(number) in told for number in _DISK)
    return f"it ended with code {code}" + (f": {told}" if told else ""), True


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].removeprefix("error: ")[:_WIDEST] if lines else ""
