"""A large file is hashed once across processes, and again wherever it could have changed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness_ext.model import file_digests
from harness_ext.model.file_digests import FileDigests, FileStamp

CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An empty cache, in which files count as settled at once; gives what was really hashed, digest by digest."""
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_digests, "_SETTLED_NS", 0)
    made: list[str] = []
    original = file_digests._hashed

    def counting(descriptor: int) -> str:
        made.append(original(descriptor))
        return made[-1]

    monkeypatch.setattr(file_digests, "_hashed", counting)
    return made


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    time.sleep(0.02)  # past the tick of the file system's clock
    return path


def entries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.json"))


def test_another_process_need_not_hash_it(weights: Path, hashed: list[str], tmp_path: Path) -> None:
    assert [FileDigests().digest(weights) for _ in range(3)] == [SHA256] * 3
    assert len(hashed) == 1 and len(entries(tmp_path)) == 1
    assert {path.name for path in (tmp_path / "cache" / "file-digests").iterdir()} == {entries(tmp_path)[0].name}


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other" + CONTENT[5:])
    os.replace(other, path)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [in_place, replaced, longer])
def test_a_changed_file_is_hashed_again_whatever_its_time(
    weights: Path, hashed: list[str], change: Callable[[Path], None]
) -> None:
    assert FileDigests().digest(weights) == SHA256
    status = weights.stat()
    change(weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert FileDigests().digest(weights) == hashlib.sha256(weights.read_bytes()).hexdigest() != SHA256
    assert len(hashed) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 1}',
        json.dumps({"format": 1, "path": "/elsewhere", "stamp": [0, 0, 0, 0, 0], "sha256": "0" * 64}),
        "[" * 100_000,
    ],
)
def test_a_damaged_or_foreign_entry_costs_time_only(
    weights: Path, hashed: list[str], tmp_path: Path, text: str
) -> None:
    FileDigests().digest(weights)
    (entry,) = entries(tmp_path)
    entry.write_text(text)
    assert FileDigests().digest(weights) == SHA256
    assert len(hashed) == 2
    assert FileDigests().digest(weights) == SHA256
    assert len(hashed) == 2


@pytest.mark.parametrize(
    ("key", "value"), [("sha256", "0" * 63), ("sha256", None), ("format", 2), ("stamp", [1, 2, 3, 4, 5]), ("more", 1)]
)
def test_an_entry_that_is_not_as_it_is_written_is_not_believed(
    weights: Path, hashed: list[str], tmp_path: Path, key: str, value: object
) -> None:
    FileDigests().digest(weights)
    (entry,) = entries(tmp_path)
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {key: value}))
    assert FileDigests().digest(weights) == SHA256 and len(hashed) == 2


def test_a_file_that_just_changed_is_not_kept(
    weights: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_SETTLED_NS", 2_000_000_000)
    assert FileDigests().digest(weights) == SHA256
    future = time.time() + 100
    os.utime(weights, (future, future))
    monkeypatch.setattr(file_digests, "_SETTLED_NS", 0)
    assert FileDigests().digest(weights) == SHA256
    assert len(hashed) == 2 and not entries(tmp_path)


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    weights: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = file_digests._hashed

    def changing(descriptor: int) -> str:
        try:
            return original(descriptor)
        finally:
            longer(weights)

    digests = FileDigests()
    with monkeypatch.context() as patch:
        patch.setattr(file_digests, "_hashed", changing)
        assert digests.digest(weights) == SHA256
    assert not entries(tmp_path)
    assert digests.digest(weights) == hashlib.sha256(CONTENT + b"more").hexdigest()


def test_small_files_are_not_kept(hashed: list[str], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    FileDigests().digest(path)
    assert len(hashed) == 1 and not entries(tmp_path)


@pytest.mark.parametrize("folder", ["a file/cache", "\0"])
def test_without_a_place_to_keep_them_files_are_hashed(
    weights: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(file_digests, "cache_folder", lambda: tmp_path / folder)
    assert [FileDigests().digest(weights) for _ in range(2)] == [SHA256] * 2
    monkeypatch.setattr(file_digests, "cache_folder", lambda: None)
    assert FileDigests().digest(weights) == SHA256
    assert len(hashed) == 3


def test_the_cache_is_bounded(hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "_MOST_ENTRIES", 8)
    paths = [tmp_path / f"shard-{number}" for number in range(20)]
    for path in paths:
        path.write_bytes(CONTENT)
        time.sleep(0.01)
        FileDigests().digest(path)
        assert len(entries(tmp_path)) <= 8
    assert len(hashed) == 20
    FileDigests().digest(paths[-1])
    assert len(hashed) == 20


def test_files_are_hashed_beside_what_else_is_done_and_once(
    weights: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, original = threading.Event(), file_digests._hashed

    def waiting(descriptor: int) -> str:
        assert release.wait(10)
        return original(descriptor)

    monkeypatch.setattr(file_digests, "_hashed", waiting)
    digests = FileDigests()
    digests.begin([weights, weights.with_name("not there")])
    assert digests.busy
    release.set()
    assert digests.digest(weights) == SHA256 and len(hashed) == 1
    assert not digests.busy and digests.changed() == []


def test_what_changed_since_the_beginning_is_told(weights: Path, hashed: list[str]) -> None:
    digests = FileDigests()
    digests.begin([weights])
    digests.digest(weights)
    weights.chmod(0o600)
    assert digests.changed() == []
    in_place(weights)
    assert digests.changed() == [weights]
    weights.unlink()
    assert digests.changed() == [weights]


def test_two_processes_write_one_entry(weights: Path, hashed: list[str], tmp_path: Path) -> None:
    stamp = FileStamp.of(weights.stat())
    writers = [
        threading.Thread(target=lambda: [file_digests.write_entry(weights, stamp, SHA256) for _ in range(50)])
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    seen = {file_digests.read_entry(weights, stamp) for _ in range(500)}
    for writer in writers:
        writer.join()
    assert seen <= {None, SHA256} and file_digests.read_entry(weights, stamp) == SHA256
    assert len(list((tmp_path / "cache" / "file-digests").iterdir())) == 1
