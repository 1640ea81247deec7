"""Errors of full, broken and read-only disks: told from all others, in the system's words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from harness_ext.cli import message_of
from harness_ext.errors import UserError
from harness_ext.storage import rundir
from harness_ext.storage.disk import disk_trouble, is_of_the_disk
from harness_ext.storage.paths import keep_text
from harness_ext.storage.resume import ResumeState

FULL = SafetensorError('Error while serializing: I/O error: No space left on device (os error 28) at path "/x/.tmpA"')


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG])
def test_errors_of_the_system(code: int) -> None:
    error = OSError(code, os.strerror(code), "/x")
    assert disk_trouble(error) == os.strerror(code) and is_of_the_disk(error)


def test_room_is_asked_for_where_room_is_lacking() -> None:
    full, read_only = (message_of(OSError(code, os.strerror(code), "/x")) for code in (errno.ENOSPC, errno.EROFS))
    assert full == (
        "/x cannot be written or read: No space left on device; make room (in TMPDIR and ~/.cache too) and run the same"
        " command again"
    )
    assert read_only == "/x cannot be written or read: Read-only file system; name another folder"


@pytest.mark.parametrize("call", ["tempfile.mkstemp", "os.replace"])
def test_a_cache_that_becomes_read_only_keeps_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(call, refused)
    monkeypatch.setattr(Path, "unlink", refused)
    assert keep_text(tmp_path / "a", "text") is False


def test_errors_of_writers() -> None:
    assert disk_trouble(FULL) == "No space left on device" and is_of_the_disk(FULL)
    assert disk_trouble(RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"))


def test_errors_that_are_not_about_the_disk() -> None:
    for error in (KeyError("x"), SafetensorError("invalid header"), RuntimeError("os error")):
        assert disk_trouble(error) is None and not is_of_the_disk(error)
    assert not is_of_the_disk(FileNotFoundError(errno.ENOENT, "No such file"))


def test_the_library_words_its_errors_as_expected(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError) as caught:
        save_file({"a": torch.zeros(3)}, tmp_path / "nowhere" / "a.safetensors")
    assert disk_trouble(caught.value) == "No such file or directory"


def test_tensors_to_go_on_from_that_find_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = ResumeState(tmp_path / "work")
    work.keep("state", {"a": torch.ones(3)})

    def full(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise FULL

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="work: No space left on device; make room and run the same command again"):
        work.keep("state", {"a": torch.zeros(3)})
    kept = work.tensors("state")
    assert kept is not None and torch.equal(kept["a"], torch.ones(3))
    assert [path.name for path in work.folder.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("damaged", [b"", b"\xff" * 64])
def test_tensors_that_cannot_be_read_are_none(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "state.safetensors").write_bytes(damaged)
    assert ResumeState(tmp_path).tensors("state") is None


def test_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**settings: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(UserError, match="no room for temporary files .No space left on device.: set TMPDIR"):
        rundir.scratch_folder()
