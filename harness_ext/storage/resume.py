"""What a long calculation leaves behind while it runs, so that the same command goes on after a kill.

A folder beside the place of the run: rows of plain data, appended and synced one by one, and sets of tensors, written
whole and renamed. It is named after everything that was asked (`spec_id`), so what is found in it was made for the very
same model, documents and settings. It is removed when the run is complete, and kept when the run fails.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.storage.disk import disk_trouble

if TYPE_CHECKING:
    from torch import Tensor


class ResumeState:
    """Rows and tensors that outlive the process. folder: made when first written to.

    Raises UserError where the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(self, name: str) -> ResumeState:
        """A state inside this one."""
        return ResumeState(self.folder / name)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows appended so far, in order; a last one that a kill tore, or whatever follows one that a lost block of
        the disk left unreadable, is cut off, so that the next one starts a line of its own.
        """
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            return []
        text = path.read_bytes()
        rows: list[dict[str, Any]] = []
        whole = 0
        for line in text.splitlines(keepends=True):
            row = _row(line)
            if row is None:
                with _told(self.folder):
                    path.write_bytes(text[:whole])
                break
            rows.append(row)
            whole += len(line)
        return rows

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a row of plain data, on the disk when this returns. NaN and infinities are kept as such."""
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def tensors(self, name: str) -> dict[str, Tensor] | None:
        """The tensors kept under this name; None where there are none, or they cannot be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.folder / f"{name}.safetensors")
        except (OSError, SafetensorError):
            return None

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name, in place of earlier ones; a kill leaves the old or the new, whole."""
        from safetensors.torch import save_file

        path = self.folder / f"{name}.safetensors"
        new = self.folder / f".{name}.{os.getpid()}"
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, new)
                new.replace(path)
            except BaseException:
                with suppress(OSError):
                    new.unlink(missing_ok=True)
                raise

    def remove(self) -> None:
        """Remove the folder; the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _row(line: bytes) -> dict[str, Any] | None:
    """A row from its line; None where it is not whole."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (trouble := disk_trouble(error)) is None:
            raise
        raise UserError(
            f"what is done so far cannot be kept in {folder}: {trouble}; make room and run the same command again"
        ) from error
