"""Finding runs under a path: which files make one, and what only looks like one.

Notable choices:
- A folder with `receipt.json` is one run; otherwise each results file is one, with the samples files of the same date,
  and a samples file without results is one too.
- lm-eval 0.4.0 to 0.4.2 gave no dates: the undated samples files (`{model_args}_{task}.jsonl`) of a folder belong to
  its one undated results file, where there is just one.
- A file `.eval` (a log of Inspect) is one run. Results below a folder `results` have their details, as lighteval saves
  them, in the folder `details` beside it.
- Symbolic links that lead out of the folder given are not followed; hidden folders (a run being written) and those of
  decisions are not entered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from leaderboard.readers.orphan_samples import looks_like_samples
from leaderboard.readers.records import Rejection

RECEIPT = "receipt.json"
ARCHIVE = ".eval"
DECISIONS = ".duckdb.decisions"  # how folders end that hold what was decided about runs, and no runs
_DATE = re.compile(r"_(\d{4}-\d\d-\d\dT\d\d[-:]\d\d[-:]\d\d(?:\.\d+)?)\.jsonl?$")


@dataclass(frozen=True)
class Candidate:
    """A run not read yet: a run directory (with `receipt`), one results file, or samples alone."""

    path: Path
    receipt: Path | None
    results: Path | None
    samples: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """Everything that is read of it."""
        return [file for file in (self.receipt, self.results, *self.samples) if file is not None]

    @cached_property
    def samples_by_name(self) -> dict[str, Path]:
        """The samples files by their names in the folder."""
        return {file.name: file for file in self.samples}


Looks = Callable[[Path], bool]
"""Whether a file looks like samples of lm-eval."""


def find_runs(path: Path, looks: Looks = looks_like_samples) -> Iterator[Candidate | Rejection]:
    """Every run at or under `path`, in order of name, and what looked like one but is not. No file is opened but by
    `looks`.
    """
    path = Path(path)
    if path.is_file():
        yield from _from_file(path, looks)
    elif path.is_dir():
        yield from _walk(path.resolve(), looks)
    else:
        yield Rejection(path, "there is nothing at this path")


def _from_file(path: Path, looks: Looks) -> Iterator[Candidate | Rejection]:
    if path.name == RECEIPT:
        folder = path.parent.resolve()
        yield from _in_folder(folder, _regular_files(_entries(folder), folder), looks)
    elif path.suffix == ".jsonl":
        yield _lone_samples(path.resolve(), looks)
    elif path.suffix == ARCHIVE:
        yield Candidate(path.resolve(), None, path.resolve(), ())
    elif path.suffix == ".json":
        folder = path.parent.resolve()
        yield _plain(path.resolve(), _Siblings(_regular_files(_entries(folder), folder)), looks)
    else:
        yield Rejection(
            path,
            "not a results file (.json, .eval) or samples file (.jsonl): give the folder it lies in, or its"
            " results_*.json",
        )


def _walk(root: Path, looks: Looks) -> Iterator[Candidate | Rejection]:
    refused: list[OSError] = []
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        entries = _entries(folder, refused)
        if not any(entry.name == RECEIPT and _is_file(entry) for entry in entries):
            waiting += [entry.path for entry in reversed(entries) if _is_entered(entry)]
        yield from _in_folder(Path(folder), _regular_files(entries, root), looks)
    for error in refused:
        if not isinstance(error, FileNotFoundError):  # removed since it was listed
            yield Rejection(Path(error.filename), f"this folder cannot be read: {error.strerror}")


def _entries(folder: str | Path, refused: list[OSError] | None = None) -> list[os.DirEntry[str]]:
    """What lies in a folder, in order of name; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:  # renamed or removed since it was listed, or not ours to read
        if refused is not None:
            refused.append(error)
        return []


def _is_entered(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder that may hold runs."""
    if entry.name.startswith(".") or entry.name.endswith(DECISIONS):
        return False
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _in_folder(folder: Path, files: list[Path], looks: Looks) -> Iterator[Candidate | Rejection]:
    names = {file.name: file for file in files}
    if RECEIPT in names:
        results = [file for file in files if file.name.startswith("results") and file.suffix == ".json"]
        samples = tuple(file for file in files if file.suffix == ".jsonl")
        if len(results) > 1:
            yield Rejection(folder, f"holds {len(results)} results files; a run directory has one")
            return
        yield Candidate(folder, names[RECEIPT], results[0] if results else None, samples)
        return
    siblings, used = _Siblings(files), set[Path]()
    for file in files:
        if file.suffix == ARCHIVE:
            yield Candidate(file, None, file, ())
        if file.suffix == ".json":
            candidate = _plain(file, siblings, looks)
            used.update(candidate.samples)
            yield candidate
    for file in files:
        if file.suffix == ".jsonl" and file not in used:
            yield _lone_samples(file, looks)


def _regular_files(entries: list[os.DirEntry[str]], root: Path) -> list[Path]:
    """The .json, .jsonl and .eval files among them, without those whose real place is outside `root`."""
    found = []
    for entry in entries:
        if entry.name.endswith((".json", ".jsonl", ARCHIVE)) and _is_file(entry):
            path = Path(entry.path)
            if not entry.is_symlink() or path.resolve().is_relative_to(root):
                found.append(path)
    return found


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or a link to one; a link that leads in a circle is neither."""
    try:
        return entry.is_file()
    except OSError:
        return False


class _Siblings:
    """The files of a folder that belong to some results file by their dates: looked at once, because a folder may hold
    thousands.
    """

    def __init__(self, files: list[Path]) -> None:
        self.samples_of: dict[str, list[Path]] = {}
        self.undated_results: list[Path] = []
        self.undated_samples: list[Path] = []
        for file in files:
            if file.suffix == ARCHIVE:
                continue
            date, is_samples = date_of(file), file.suffix == ".jsonl"
            if date is None:
                (self.undated_samples if is_samples else self.undated_results).append(file)
            elif is_samples and file.name.startswith("samples_"):
                self.samples_of.setdefault(date, []).append(file)


def _plain(results: Path, siblings: _Siblings, looks: Looks) -> Candidate:
    date = date_of(results)
    if date:
        return Candidate(results, None, results, (*siblings.samples_of.get(date, ()), *_details(results, date)))
    if any(file != results for file in siblings.undated_results[:2]):
        return Candidate(results, None, results, ())
    return Candidate(results, None, results, tuple(file for file in siblings.undated_samples if looks(file)))


def _details(results: Path, date: str) -> list[Path]:
    """What lighteval saved beside `results/<model>/results_<date>.json`: `details/<model>/<date>/*.parquet`."""
    for above in results.parents:
        if above.name == "results":
            folder = above.with_name("details") / results.parent.relative_to(above) / date
            if folder.is_symlink() or folder.resolve() != folder:
                return []
            entries = [entry for entry in _entries(folder) if entry.name.endswith(".parquet")]
            return [Path(entry.path) for entry in entries if not entry.is_symlink() and _is_file(entry)]
    return []


def _lone_samples(file: Path, looks: Looks) -> Candidate | Rejection:
    """Samples whose results file is elsewhere, each file by itself: nothing says which of them belong together."""
    if looks(file):
        return Candidate(file, None, None, (file,))
    return Rejection(file, "not a samples file of lm-eval (its first line holds no `doc` and `resps`)")


def date_of(path: Path) -> str | None:
    """The date at the end of a file's name, which lm-eval gives to a run's results and samples alike."""
    match = _DATE.search(path.name)
    return match.group(1) if match else None
