"""Runs in a remote place: whole or not at all, fetched once, nothing of it trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from harness_ext.errors import UserError
from harness_ext.storage.integrity import listed_files
from harness_ext.storage.remote import Pulled, RemoteResults, check_url, is_remote

SAMPLES = b'{"doc_id": 0}\n'


def make_run(root: Path, name: str = "laser-0123456789", *, model: str = "demo", failed: bool = False) -> Path:
    """A run folder as `runs/receipt.py` leaves it."""
    run = root / model / name
    run.mkdir(parents=True)
    if not failed:
        (run / "results_x.json").write_text("{}")
        (run / "samples_t_x.jsonl").write_bytes(SAMPLES)
    write_receipt(run, "failed" if failed else "complete")
    return run


def write_receipt(run: Path, status: str = "complete", **changes: Any) -> None:
    receipt = {"status": status, "spec_id": "0123456789ab", "files": listed_files(run), **changes}
    (run / "receipt.json").write_text(json.dumps(receipt))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(params=["memory", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RemoteResults]:
    url = "memory://bucket/results" if request.param == "memory" else f"file://{tmp_path}/bucket/results"
    yield RemoteResults(url)
    fsspec.filesystem("memory").store.clear()


def test_what_is_sent_is_pulled_the_same_and_once(remote: RemoteResults, tmp_path: Path) -> None:
    for name, failed in (("baseline-1111111111", False), ("laser-0123456789", False), ("svd-2222222222", True)):
        run = make_run(tmp_path / "here", name, failed=failed)
        assert remote.send("demo", run) and not remote.send("demo", run)
    assert remote.names("demo") == ["baseline-1111111111", "laser-0123456789", "svd-2222222222"]
    assert remote.names("other") == []
    pulled = remote.pull(tmp_path / "there")
    assert len(pulled.new) == 3 and pulled.left_out == {}
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert remote.pull(tmp_path / "there") == Pulled((), {})


def test_nothing_is_there_yet(remote: RemoteResults, tmp_path: Path) -> None:
    assert remote.pull(tmp_path / "there") == Pulled((), {}) and remote.names("demo") == []
    remote.check_writable()
    assert remote.pull(tmp_path / "there") == Pulled((), {})


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_half_upload_is_no_run_and_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    remote = RemoteResults(f"file://{tmp_path}/bucket")
    run = make_run(tmp_path / "here")
    put = type(remote._filesystem).put_file
    done: list[str] = []

    def breaks(self: Any, source: str, target: str) -> None:
        if len(done) == kept:
            raise ConnectionError("the line is dead")
        put(self, source, target)
        done.append(target)

    with monkeypatch.context() as patch:
        patch.setattr(type(remote._filesystem), "put_file", breaks)
        with pytest.raises(UserError, match=r"cannot be used \(the line is dead\): check the name, the network"):
            remote.send("demo", run)
    assert len(list((tmp_path / "bucket/demo/laser-0123456789").iterdir())) == kept
    assert remote.names("demo") == [] and remote.pull(tmp_path / "there").new == ()
    assert remote.send("demo", run)
    assert contents(tmp_path / "bucket") == contents(tmp_path / "here")


def test_a_run_takes_the_place_of_a_failed_one(remote: RemoteResults, tmp_path: Path) -> None:
    remote.send("demo", make_run(tmp_path / "first", failed=True))
    assert len(remote.pull(tmp_path / "there").new) == 1
    remote.send("demo", make_run(tmp_path / "second"))
    assert len(remote.pull(tmp_path / "there").new) == 1
    assert contents(tmp_path / "there") == contents(tmp_path / "second")


def test_a_whole_run_of_ones_own_stays(remote: RemoteResults, tmp_path: Path) -> None:
    remote.send("demo", make_run(tmp_path / "there_too", failed=True))
    own = make_run(tmp_path / "own")
    assert remote.pull(tmp_path / "own") == Pulled((), {})
    (own / "samples_t_x.jsonl").write_bytes(b"")  # a damaged one gives way
    assert len(remote.pull(tmp_path / "own").new) == 1


def put_raw(remote: RemoteResults, name: str, data: bytes) -> None:
    remote._filesystem.makedirs(f"{remote._root}/demo/laser-0123456789", exist_ok=True)
    remote._filesystem.pipe_file(f"{remote._root}/demo/laser-0123456789/{name}", data)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("samples_t_x.jsonl", b'{"doc_id": 1}\n', "samples_t_x.jsonl is not as it was written"),
        ("samples_t_x.jsonl", b"x" * 10_000, "samples_t_x.jsonl has not the size of its receipt"),
        ("receipt.json", b"not JSON", "its receipt cannot be read"),
        ("receipt.json", b"[]", "its receipt cannot be read"),
        ("receipt.json", b'{"status": "complete"}', "its receipt lists no files"),
        ("receipt.json", b'{"status": "complete", "files": []}', "receipt.json lists no files"),
        ("receipt.json", b'{"files": [{"name": "gone.json", "bytes": 3}]}', "gone.json is missing"),
        ("receipt.json", b'{"files": [{"name": "../../x", "bytes": 3}]}', "its receipt lists a file that no run has"),
        ("receipt.json", b'{"files": [{"name": ".x", "bytes": 3}]}', "its receipt lists a file that no run has"),
        ("receipt.json", b'{"files": ["x"]}', "its receipt lists a file that no run has"),
    ],
)
def test_what_is_not_whole_is_left_there(
    remote: RemoteResults, tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    remote.send("demo", make_run(tmp_path / "here"))
    put_raw(remote, name, data)
    assert remote.pull(tmp_path / "there") == Pulled((), {"demo/laser-0123456789": reason})
    assert contents(tmp_path / "there") == {}


def test_names_that_no_run_gets_are_left_there(remote: RemoteResults, tmp_path: Path) -> None:
    for name in (".hidden", "a b"):
        remote.send("demo", make_run(tmp_path / "here", name))
    reason = "its name is none that a run gets"
    assert remote.pull(tmp_path / "there") == Pulled((), {"demo/.hidden": reason, "demo/a b": reason})


def test_no_room(remote: RemoteResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.send("demo", make_run(tmp_path / "here"))
    monkeypatch.setattr("harness_ext.storage.remote.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match="there has 10 bytes free, and a run to be fetched has 16: make room"):
        remote.pull(tmp_path / "there")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret-word@bucket/x", r"s3://\*\*\*@bucket/x holds credentials, .*AWS_ACCESS_KEY_ID"),
        ("s3://", "names no place: give a bucket and a folder, s3://BUCKET/results"),
        ("simplecache::memory://x", "give a plain URL of a folder"),
        ("memory://x?token=secret-word", "give a plain URL of a folder"),
        ("nosuch://x/y", r"nosuch://x/y cannot be used \(.*nosuch.*\)"),
        (
            "s4://x/y",
            r"\(no storage is known by the name s4; did you mean s3\?\): give a folder of this machine, s3://",
        ),
        ("s3://key:sec/ret@secret-word@bucket/x", r"s3://\*\*\*@bucket/x holds credentials"),
        ("s3://key:secret-word", r"s3://\*\*\* holds credentials"),
        ("s3://bucket/x?signature=secret-word", "s3://bucket/x: give a plain URL of a folder"),
        ("postgres://me:secret-word@host/db", "is a PostgreSQL, which keeps no run folders: .*`lm_eval publish --to`"),
    ],
)
def test_urls_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        RemoteResults(url)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("url", ["memory://x", "file:///C:/x", "memory://host:22/x"])
def test_a_port_is_no_password(url: str) -> None:
    assert check_url(url) == url


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="gs://b/x needs a package that is not installed: pip install 'gcsfs'"):
        RemoteResults("gs://b/x")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        RemoteResults(f"file://{tmp_path}/file/results").check_writable()


def test_which_places_are_remote() -> None:
    assert is_remote("simplecache::s3://key:word@b")
    assert is_remote("s3://b") and is_remote("gs://b/c") and is_remote("file:///x")
    assert not any(map(is_remote, ["results", "/a/b", "C:\\x", "a:b", None, Path("s3://b")]))


def test_a_json_file_stands_for_its_folder() -> None:
    assert RemoteResults("memory://b/results/out.json").url == "memory://b/results"


def test_mirrors_of_two_places_are_two() -> None:
    mirrors = {RemoteResults(url).mirror for url in ("memory://a/b", "memory://a_b", "memory://a/b/")}
    assert len(mirrors) == 2 and all(mirror.name.startswith("a_b-") for mirror in mirrors)
