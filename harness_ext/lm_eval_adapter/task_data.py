"""The items of our tasks: read from a folder of official files, or from the public data set.

All tasks share one convention: `data_dir`, from `--metadata '{"data_dir": "..."}'` or the environment variable
`LM_EVAL_RECIPES_DATA`, is a folder with a sub-folder for each data set, which holds the files as their authors publish
them. A data set without a sub-folder there is taken from its public place. An error names the task, what it wanted, and
how to provide it. Only JSON, CSV, TSV, text and parquet are read; nothing is executed or unpickled.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

log = logging.getLogger("lm_eval.recipes")

DATA_VARIABLE = "LM_EVAL_RECIPES_DATA"
TRAINING_LIMIT = 10_000
"""lm-eval makes a list of every training document as it builds a task; calibration and few-shot examples need no more
than these.
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The items of one task. task: its name, for messages. folder: the sub-folder of `data_dir`. settings: the task's
    metadata, as lm-eval hands it over.
    """

    task: str
    folder: str
    settings: Mapping[str, Any]

    @property
    def _root(self) -> Path | None:
        named = self.settings.get("data_dir") or os.environ.get(DATA_VARIABLE)
        return Path(str(named)).expanduser() if named else None

    @cached_property
    def local(self) -> Path | None:
        """The folder with this data set's files, or None where the user has not provided one. Raises UserError where
        `data_dir` is no folder.
        """
        root = self._root
        if root is None:
            return None
        if not root.is_dir():
            raise UserError(
                f"task {self.task}: the data folder {root} does not exist (it is named by `data_dir` in --metadata, or"
                f" by {DATA_VARIABLE})"
            )
        if (root / self.folder).is_dir():
            return root / self.folder
        log.info("Task %s: %s has no folder %s, so the public data set is used", self.task, root, self.folder)
        return None

    def file(self, *names: str) -> Path:
        """The first of these files (relative to the data set's folder) that is there. Raises UserError where
        none is.
        """
        assert self.local is not None
        for name in names:
            if (self.local / name).is_file():
                return self.local / name
        raise UserError(
            f"task {self.task}: wanted {' or '.join(names)} in {self.local}, and there is none; put the official file"
            " there (tasks/README.md says where it is published)"
        )

    def optional(self, *names: str) -> Path | None:
        """As `file`, but None where none of them is there."""
        assert self.local is not None
        return next((self.local / name for name in names if (self.local / name).is_file()), None)

    def hub(
        self, path: str, name: str | None, split: str, columns: Sequence[str] = (), revision: str | None = None
    ) -> Dataset:
        """These columns (or all) of one split of a data set on the Hugging Face hub, or from the hub's cache; the
        newest where no revision is named. Raises UserError where neither has it, or it lacks a column.
        """
        import datasets

        try:
            rows = datasets.load_dataset(path, name, split=split, revision=revision)
        except Exception as error:  # offline, absent, gated and renamed data sets raise a dozen kinds of exceptions
            raise self._unreachable(
                f"the data set {path}{f' ({name})' if name else ''}, split {split}, on the Hugging Face hub", error
            ) from error
        self.checked(rows.select(range(min(1, len(rows)))), columns, f"{path}, split {split}")
        return rows.select_columns(list(columns)) if columns else rows

    def stream(self, path: str, name: str, split: str, revision: str) -> Iterator[Mapping[str, Any]]:
        """The rows of one split of a data set on the hub in their order, read only as far as they are asked for. Raises
        UserError where they cannot be had.
        """
        import datasets

        try:
            yield from datasets.load_dataset(path, name, split=split, revision=revision, streaming=True)
        except Exception as error:  # see `hub`
            raise self._unreachable(
                f"the data set {path} ({name}), split {split}, on the Hugging Face hub", error
            ) from error

    def published(self, url: str) -> Path:
        """An official file from where its authors publish it, downloaded once into the cache of `datasets`. Raises
        UserError where it cannot be had.
        """
        import datasets

        try:
            # Without asking the server for a version first, so that a file in the cache is found offline.
            return Path(datasets.DownloadManager(download_config=datasets.DownloadConfig(use_etag=False)).download(url))
        except Exception as error:  # see `hub`
            raise self._unreachable(url, error) from error

    def _unreachable(self, wanted: str, error: Exception) -> UserError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        lacking = f"{self._root} has no folder {self.folder}, and " if self._root else ""
        return UserError(
            f"task {self.task}: {lacking}{wanted} cannot be reached ({reason}); put the official files into a folder"
            f" {self.folder!r} of a data folder and name that: "
            f"""--metadata '{{"data_dir": "DIR"}}' or {DATA_VARIABLE}=DIR (tasks/README.md lists the files)"""
        )

    def checked(
        self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], where: object
    ) -> list[Mapping[str, Any]]:
        """The rows as a list. where: the file or split, for messages. Raises UserError where there is none, or one
        lacks a column.
        """
        checked = list(rows)
        if not checked:
            raise UserError(f"task {self.task}: {where} holds no items; provide the official file, whole")
        for number, row in enumerate(checked):
            self._check_columns(row, number, columns, where)
        return checked

    def _check_columns(self, row: Any, number: int, columns: Sequence[str], where: object) -> None:
        missing = [column for column in columns if not isinstance(row, Mapping) or column not in row]
        if missing:
            has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise UserError(
                f"task {self.task}: item {number} of {where} has no {' and no '.join(map(repr, missing))}; it has"
                f" {has}. The official file has the columns {', '.join(columns)}"
            )

    def lines(self, path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """The rows of a large file of JSON lines in their order, packed by gzip or not, read only as far as they are
        asked for. Raises UserError where that part cannot be read or a row lacks a column.
        """
        try:
            with (
                gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file
            ):
                for number, line in enumerate(file):
                    row = json.loads(line)
                    self._check_columns(row, number, columns, path)
                    yield row
        # a file cut short ends in an EOFError, other damage in any of these
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise self._unreadable(path, "JSON lines", error) from error

    def read(self, path: Path, columns: Sequence[str], *, ending: str = "") -> list[Mapping[str, Any]]:
        """The rows of a file that must have these columns. Raises UserError where it cannot be read, is empty, or lacks
        one.
        """
        return self.checked(self.parse(path, ending=ending), columns, path)

    def parse(self, path: Path, *, ending: str = "") -> Any:
        """What a file holds: rows, or lines (.txt), or whatever a .json file has at its top. Raises UserError where it
        is not what its ending says.

        ending: stands in for the file's own, which downloaded files do not have.
        """
        kind = ending or path.suffix
        try:
            return _READERS[kind](path)
        except (OSError, ValueError, csv.Error) as error:
            raise self._unreadable(path, kind.lstrip("."), error) from error

    def _unreadable(self, path: Path, kind: str, error: Exception) -> UserError:
        return UserError(
            f"task {self.task}: {path} cannot be read as {kind}: {error}; provide the official file, unchanged"
        )

    def splits(self, **documents: Iterable[Row]) -> DatasetDict:
        """The documents of each split, as lm-eval wants them, made one by one. Raises UserError for a split without
        any, and where an item is not laid out as the official ones are.
        """
        from datasets import DatasetDict

        return DatasetDict({name: self._split(name, rows) for name, rows in documents.items()})

    def _split(self, name: str, rows: Iterable[Row]) -> Dataset:
        from datasets import Dataset

        made: list[Row] = []
        try:
            made.extend(rows)  # leaves those before the item that fails, so that their number says where it is
            if made:
                return Dataset.from_list(made)
        # whatever a part that is absent or of another kind leads to
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"task {self.task}: after {len(made)} documents of its {name} split comes an item that is not as the"
                f" official ones ({reason}); provide the official file, unchanged"
            ) from error
        raise UserError(
            f"task {self.task}: its {name} split has no items left once those that the task does not use are taken out;"
            " provide the official files, whole"
        )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_json_lines(path: Path) -> list[Row]:
    # Not `splitlines`, which also breaks at characters that JSON strings may hold.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _read_lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _read_table(delimiter: str) -> Callable[[Path], list[Row]]:
    def read(path: Path) -> list[Row]:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter=delimiter))

    return read


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    # A reader of one file: `read_table` would make partition columns of folder names such as `name=value`.
    return pyarrow.parquet.ParquetFile(path).read().to_pylist()


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_table(","),
    ".tsv": _read_table("\t"),
    ".parquet": _read_parquet,
    ".txt": _read_lines,
}
