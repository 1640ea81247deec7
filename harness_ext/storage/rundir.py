"""Run directories: the truth of every score, written beside their place and renamed into it when whole.

A run is `<root>/<model>/<recipe>-<id>/` with lm-eval's own results and samples and our `receipt.json`, written last. A
directory without the temporary prefix is complete by construction; one with it belongs to a process that is still
writing or was killed, and is swept away once that process is gone. Where the place cannot take a finished run (a full
disk, say), the run is saved elsewhere rather than lost.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness_ext.errors import UserError
from harness_ext.storage.integrity import RECEIPT, damage

EXPORT = "export"
"""The format of the receipt beside an exported model."""
EXPORTING = ".lm-eval-recipes-export"
"""In the temporary folder of an export while it is written, which tells it from a stranger's. Of one that can be gone
on with, it holds what tells that export from others.
"""
KEPT_SECONDS = 7 * 24 * 3600
"""How long the exports of other names leave alone what a killed one can go on with, and runs what other machines that
see the folder may be writing.
"""
RESCUED = "lm-eval-recipes-rescued"
"""In a folder of `rescue_folders`: what holds the finished runs whose own place could not take them."""
_SCRATCH = "lm-eval-recipes-"
_TEMPORARY = re.compile(r"\.(.+?)(\.old)?\.tmp-(\d+)(?:-(.+))?")


@dataclass(frozen=True)
class FinishedRun:
    """A complete run directory and its receipt."""

    path: Path
    receipt: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        """Whether the recipe could not be carried through; the receipt says why."""
        return self.receipt.get("status") != "complete"

    @property
    def damage(self) -> str | None:
        """What is wrong with the files of a complete run, in a few words; None where they are as they were written."""
        return damage(self.path, self.receipt)


def safe_name(text: str) -> str:
    """A file name that any system takes, readable as what it was made from."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).strip("._")[:80] or "unnamed"


def results_root(output_path: Path) -> Path:
    """The folder of the results: lm-eval takes a folder or a .json file; run directories go into the folder, or beside
    the file.
    """
    return output_path.parent if output_path.suffix == ".json" else output_path


def prepare_root(root: Path) -> None:
    """Make the results folder and check that it can be written, before hours are spent. Raises UserError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(
            f"results cannot be written to {root}: {error.strerror or error}; name another folder with --output_path"
        ) from None


def finished_runs(folder: Path) -> Iterator[FinishedRun]:
    """The complete runs in a model's folder, by name; a receipt that cannot be read is passed over, and so run
    again.
    """
    for path in sorted(folder.glob(f"[!.]*/{RECEIPT}")):
        receipt = _receipt_in(path.parent)
        if receipt is not None:
            yield FinishedRun(path.parent, receipt)


def searched_on(receipt: Mapping[str, Any]) -> set[str]:
    """Hashes and digests of the documents that what a run's searches found was chosen on; none where nothing searched.
    A step that is no search was part of what was tried, so that its documents count too.

    Of whatever split they are: what is a training document of one task may be scored by another, or have been out of
    the score for its `--limit` alone. A document that nobody scores costs nothing.
    """
    return learned_from(receipt.get("calibration", [])) if receipt.get("searches") else set()


def learned_from(calibration: Iterable[Mapping[str, Any]]) -> set[str]:
    """Hashes and digests of all documents in the calibration entries of a receipt."""
    return {hashed for used in calibration for hashed in (*used["documents"], *used.get("contents", ()))}


def wordings_searched_on(receipt: Mapping[str, Any]) -> dict[str, list[str]]:
    """By task, the wordings of the documents that `searched_on` tells of, hashed (`calibration.rewording`)."""
    return wordings_learned(receipt.get("calibration", [])) if receipt.get("searches") else {}


def wordings_learned(calibration: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """By task, the hashed wordings in the calibration entries of a receipt."""
    return merged_wordings(*({used["task"]: used.get("wordings", ())} for used in calibration))


def merged_wordings(*wordings: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Hashed wordings of several sources, by task, each once and in order; no task without any."""
    together: dict[str, set[str]] = {}
    for one in wordings:
        for task, found in one.items():
            together.setdefault(task, set()).update(found)
    return {task: sorted(found) for task, found in sorted(together.items()) if any(found)}


def learned_by_export(pretrained: str) -> frozenset[str]:
    """Hashes and digests of the documents that an exported model, in a local folder, learned from or was chosen on;
    none for any other model.
    """
    listed = _export_receipt(pretrained).get("chosen_on")
    return frozenset(one for one in listed if isinstance(one, str)) if isinstance(listed, list) else frozenset()


def wordings_of_export(pretrained: str) -> dict[str, list[str]]:
    """By task, the hashed wordings of the documents that `learned_by_export` tells of."""
    listed = _export_receipt(pretrained).get("wordings")
    return {
        task: [one for one in found if isinstance(one, str)]
        for task, found in (listed.items() if isinstance(listed, dict) else ())
        if isinstance(found, list)
    }


def _export_receipt(pretrained: str) -> dict[str, Any]:
    """The receipt of an exported model in a local folder; empty for any other model."""
    receipt = _receipt_in(Path(pretrained)) if pretrained else None
    return receipt if receipt is not None and receipt.get("format") == EXPORT else {}


def _receipt_in(folder: Path) -> dict[str, Any] | None:
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return receipt if isinstance(receipt, dict) else None


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written. What was whole, and only not renamed yet, gets its place."""
    dead = _left_by_the_dead(folder)
    # The new before the old that it was to replace.
    for path, match in sorted(dead, key=lambda item: item[1][2] is not None):
        place = folder / match[1]
        if not place.exists() and (match[2] or _is_whole(path)):
            path.rename(place)
        else:
            shutil.rmtree(path, ignore_errors=True)


def sweep_exports(place: Path) -> None:
    """Remove what killed exports left beside a place, of this name or another: gigabytes in a hidden folder. The folder
    is the user's, so that nothing else in it is touched. What an export of another name can go on with stays for
    `KEPT_SECONDS`.
    """
    for path, match in _left_by_the_dead(place.parent):
        if match[1] == place.name or ((path / EXPORTING).exists() and not _is_awaited(path)):
            shutil.rmtree(path, ignore_errors=True)


def _is_awaited(folder: Path) -> bool:
    status = (folder / EXPORTING).stat()
    return status.st_size > 0 and time.time() - folder.stat().st_mtime < KEPT_SECONDS


def _left_by_the_dead(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """Temporary folders of processes that are gone, with the parts of their names."""
    return [
        (path, match)
        for path in folder.glob(".*.tmp-*")
        if (match := _TEMPORARY.fullmatch(path.name)) and _is_left(path, int(match[3]), match[4])
    ]


def _is_left(folder: Path, process: int, machine: str | None) -> bool:
    """Whether the process that wrote a temporary folder is gone. Of another machine's processes nothing is known here:
    theirs count as left when nothing was written there for `KEPT_SECONDS`.
    """
    if machine in (None, _machine()):
        return not _alive(process)
    try:
        return time.time() - folder.stat().st_mtime > KEPT_SECONDS
    except OSError:
        return False


def _machine() -> str:
    return safe_name(platform.node())


def _is_whole(folder: Path) -> bool:
    receipt = _receipt_in(folder)
    return receipt is not None and "files" in receipt and damage(folder, receipt) is None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def writing(place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`, renamed to it when the block ends well and removed when it does not.

    The block fills the folder and may raise; an OSError of the block or of the renaming reaches the caller.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.parent / f".{place.name}.tmp-{os.getpid()}-{_machine()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        _sync(temporary)
        _move_into_place(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing_on(place: Path, key: str, keep: Callable[[BaseException], bool]) -> Iterator[Path]:
    """`writing`, in the folder that a killed process left of the same export, where there is one.

    key: what tells this export from others. keep: whether the folder stays for the next try where the block raises
    this; it stays after a kill in any case.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.parent / f".{place.name}.tmp-{os.getpid()}"
    if _key_of(temporary) != key:
        shutil.rmtree(temporary, ignore_errors=True)
        for path, match in _left_by_the_dead(place.parent):
            if match[1] == place.name and match[2] is None and _key_of(path) == key:
                with suppress(OSError):  # another process may have been quicker
                    path.rename(temporary)
                    break
    sweep_exports(place)
    try:
        temporary.mkdir(exist_ok=True)
        (temporary / EXPORTING).write_text(key, encoding="utf-8")
        yield temporary
        (temporary / EXPORTING).unlink()
        _sync(temporary)
        _move_into_place(temporary, place)
    except BaseException as error:
        if not keep(error):
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _key_of(folder: Path) -> str | None:
    try:
        return (folder / EXPORTING).read_text(encoding="utf-8") or None
    except (OSError, ValueError):
        return None


def scratch_folder() -> Path:
    """A new temporary folder of this process; those of processes that were killed are swept away first, since they can
    hold gigabytes of weights. Raises UserError where there can be none.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        owner = path.name.removeprefix(_SCRATCH).partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(path, ignore_errors=True)
    try:
        return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-"))
    except OSError as error:
        raise UserError(
            f"there is no room for temporary files ({error.strerror or error}): set TMPDIR to a folder with room"
        ) from None


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _move_into_place(temporary: Path, place: Path) -> None:
    """Rename; an earlier run of the same name, which can only be a failed or damaged one, gives way."""
    if place.exists():
        old = place.parent / f".{place.name}.old.tmp-{os.getpid()}-{_machine()}"
        place.rename(old)
        temporary.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(place)


def rescue_folders() -> list[Path]:
    """Where a finished run goes when its own place cannot take it, in order of preference."""
    return [Path.cwd(), Path.home(), Path(tempfile.gettempdir())]


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON. NaN and infinities, which JSON lacks, become null."""
    path.write_text(
        json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n", encoding="utf-8"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
