"""Finding runs under a path: which files make one, and what only looks like one.

Notable choices:
- A folder with `receipt.json` is one run; otherwise each results file is one, with the samples files of the same date,
  and a samples file without results is one too.
- lm-eval 0.4.0 to 0.4.2 gave no dates: the undated samples files (`{model_args}_{task}.jsonl`) of a folder belong to
  its one undated results file, where there is just one.
- Symbolic links that lead out of the folder given are not followed; hidden folders (a run being written) and those of
  decisions are not entered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from leaderboard.readers.orphan_samples import looks_like_samples
from leaderboard.readers.records import Rejection

RECEIPT = "receipt.json"
DECISIONS = ".duckdb.decisions"  # how folders end that hold what was decided about runs, and no runs
_DATE = re.compile(r"_(\d{4}-\d\d-\d\dT\d\d[-:]\d\d[-:]\d\d(?:\.\d+)?)\.jsonl?$")


@dataclass(frozen=True)
class Candidate:
    """A run not read yet: a run directory (with `receipt`), one results file, or samples alone."""

    path: Path
    receipt: Path | None
    results: Path | None
    samples: tuple[Path, ...]

    @cached_property
    def samples_by_name(self) -> dict[str, Path]:
        """The samples files by their names in the folder."""
        return {file.name: file for file in self.samples}


def find_runs(path: Path) -> Iterator[Candidate | Rejection]:
    """Every run at or under `path`, in order of name, and what looked like one but is not."""
    path = Path(path)
    if path.is_file():
        yield from _from_file(path)
    elif path.is_dir():
        yield from _walk(path.resolve())
    else:
        yield Rejection(path, "there is nothing at this path")


def _from_file(path: Path) -> Iterator[Candidate | Rejection]:
    if path.name == RECEIPT:
        yield from _in_folder(path.parent.resolve(), path.parent.resolve())
    elif path.suffix == ".jsonl":
        yield _lone_samples(path.resolve())
    elif path.suffix == ".json":
        yield _plain(path.resolve(), _regular_files(path.parent.resolve(), path.parent.resolve()))
    else:
        yield Rejection(
            path,
            "not a results file (.json) or samples file (.jsonl): give the folder it lies in, or its results_*.json",
        )


def _walk(root: Path) -> Iterator[Candidate | Rejection]:
    refused: list[OSError] = []
    for folder, names, _ in os.walk(root, onerror=refused.append, followlinks=False):
        names[:] = sorted(name for name in names if not name.startswith(".") and not name.endswith(DECISIONS))
        here = Path(folder)
        if (here / RECEIPT).is_file():
            names.clear()
        yield from _in_folder(here, root)
    for error in refused:
        if not isinstance(error, FileNotFoundError):  # removed since it was listed
            yield Rejection(Path(error.filename), f"this folder cannot be read: {error.strerror}")


def _in_folder(folder: Path, root: Path) -> Iterator[Candidate | Rejection]:
    files = _regular_files(folder, root)
    names = {file.name: file for file in files}
    if RECEIPT in names:
        results = [file for file in files if file.name.startswith("results") and file.suffix == ".json"]
        samples = tuple(file for file in files if file.suffix == ".jsonl")
        if len(results) > 1:
            yield Rejection(folder, f"holds {len(results)} results files; a run directory has one")
            return
        yield Candidate(folder, names[RECEIPT], results[0] if results else None, samples)
        return
    used: set[Path] = set()
    for file in files:
        if file.suffix == ".json":
            candidate = _plain(file, files)
            used.update(candidate.samples)
            yield candidate
    for file in files:
        if file.suffix == ".jsonl" and file not in used:
            yield _lone_samples(file)


def _regular_files(folder: Path, root: Path) -> list[Path]:
    """The files of a folder in order of name, without those whose real place is outside `root`."""
    found = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # renamed or removed since it was listed, or not ours to read, of which `_walk` speaks
        return []
    for entry in entries:
        path = Path(entry.path)
        if _is_file(entry) and (not entry.is_symlink() or path.resolve().is_relative_to(root)):
            found.append(path)
    return found


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or a link to one; a link that leads in a circle is neither."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _plain(results: Path, siblings: list[Path]) -> Candidate:
    date = date_of(results)
    if date:
        return Candidate(
            results,
            None,
            results,
            tuple(f for f in siblings if f.suffix == ".jsonl" and f.name.startswith("samples_") and date_of(f) == date),
        )
    if any(file.suffix == ".json" and file != results and date_of(file) is None for file in siblings):
        return Candidate(results, None, results, ())
    return Candidate(
        results,
        None,
        results,
        tuple(
            file for file in siblings if file.suffix == ".jsonl" and date_of(file) is None and looks_like_samples(file)
        ),
    )


def _lone_samples(file: Path) -> Candidate | Rejection:
    """Samples whose results file is elsewhere, each file by itself: nothing says which of them belong together."""
    if looks_like_samples(file):
        return Candidate(file, None, None, (file,))
    return Rejection(file, "not a samples file of lm-eval (its first line holds no `doc` and `resps`)")


def date_of(path: Path) -> str | None:
    """The date at the end of a file's name, which lm-eval gives to a run's results and samples alike."""
    match = _DATE.search(path.name)
    return match.group(1) if match else None
