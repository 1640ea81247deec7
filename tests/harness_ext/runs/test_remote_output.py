"""`--output_path` with a scheme: cells upload what they finish, others fetch what is there, the board is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness_ext.storage.remote import RemoteResults
from tests.harness_ext.s3_server import s3_bucket


def remove_mirror(url: str) -> None:
    """As on another machine."""
    shutil.rmtree(RemoteResults(url).mirror)


@pytest.mark.slow
def test_runs_are_uploaded_and_kept_by_another_machine(demo_run, lm_eval, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket/results"
    first = demo_run("--recipe", "laser", "--control", "random-subspace", "--output_path", url)
    assert first.code == 0, first.err
    assert f"runs      {url}\nboard     lm_eval ingest {url}" in first.err and "laser" in first.out
    there = sorted(path.name for path in (tmp_path / "bucket/results/demo").iterdir())
    assert [name.rpartition("-")[0] for name in there] == ["baseline", "laser+random-subspace", "laser"]
    assert not list((tmp_path / "bucket").rglob("*.duckdb")) and not list(tmp_path.glob("results"))

    remove_mirror(url)
    second = demo_run("--recipe", "laser", "--control", "random-subspace", "--output_path", url)
    assert second.code == 0 and second.err.count("kept from") == 3 and "evaluating" not in second.err

    for brought, added, known in ((3, 3, 0), (0, 0, 3)):
        assert lm_eval("ingest", url).out == (
            f"{brought} brought from {url} into results\n"
            f"{added} added, {known} known already, 0 rejected; database: results/leaderboard.duckdb\n"
        )
    for name in there:
        receipt = json.loads((tmp_path / "results/demo" / name / "receipt.json").read_text())
        assert url in receipt["command"]


@pytest.mark.slow
def test_what_cannot_be_uploaded_is_told_at_the_end_and_uploaded_later(
    demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/bucket"
    put = RemoteResults(url)._filesystem.__class__.put_file

    def breaks(self, source: str, target: str) -> None:
        raise ConnectionError("the line is dead")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", breaks)
    ran = demo_run("--recipe", "laser", "--output_path", url)
    assert ran.code == 2 and ran.err.count("the line is dead") == 2
    assert "laser: done" in ran.err and "the same command again uploads them" in ran.err and "laser" in ran.out
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", put)
    again = demo_run("--recipe", "laser", "--output_path", url)
    assert again.code == 0 and again.err.count("kept from") == 2
    assert len(RemoteResults(url).names("demo")) == 2


def test_a_place_that_cannot_be_written_is_told_before_anything_is_loaded(demo_run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = demo_run("--recipe", "laser", "--output_path", f"file://{tmp_path}/file/x")
    assert ran.code == 2 and "cannot be used" in ran.err and "loading" not in ran.err


def test_what_is_not_whole_there_is_told(lm_eval, tmp_path: Path) -> None:
    run = tmp_path / "bucket/demo/laser-0123456789"
    run.mkdir(parents=True)
    (run / "receipt.json").write_text("cut off")
    url = f"file://{tmp_path}/bucket"
    for arguments, code in (([], 0), (["--strict"], 1)):
        ran = lm_eval("ingest", url, *arguments)
        assert ran.code == code and ran.out.startswith(f"0 brought from {url} into results\n0 added")
        assert f"rejected: {url}/demo/laser-0123456789: its receipt cannot be read" in ran.err
    ran = lm_eval("ingest", url, "--watch")
    assert ran.code == 2 and "--watch looks at folders: ingest URLs without it" in ran.err


@pytest.mark.slow
def test_a_url_stands_for_its_own_runs(demo_run, lm_eval, tmp_path: Path) -> None:
    """And not for what else lies in the database's folder."""
    url, local = f"file://{tmp_path}/bucket", tmp_path / "local"
    demo_run("--recipe", "laser", "--output_path", url)
    demo_run("--recipe", "svd", "--output_path", local)
    database = local / "board.duckdb"
    out = lm_eval("ingest", url, "--database", database).out
    assert "brought from" in out and "2 added, 0 known already" in out
    again = lm_eval("ingest", url, "--database", database).out
    assert "0 brought from" in again and "0 added, 2 known already" in again
    rows = json.loads(lm_eval("runs", "--json", "--database", database).out)
    assert {row["recipe"] for row in rows} == {"baseline", "laser"}
    nothing = lm_eval("ingest", f"file://{tmp_path}/nothing", "--database", database).out
    assert "0 brought from" in nothing and "0 added" in nothing


def test_credentials_in_the_url_are_refused_and_not_told(demo_run) -> None:
    ran = demo_run("--recipe", "laser", "--output_path", "s3://AKIAIOSFODNN7EXAMPLE:secret-word@bucket/x")
    assert ran.code == 2 and "holds credentials" in ran.err and "secret-word" not in ran.err + ran.out


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    with s3_bucket(tmp_path, monkeypatch) as url:
        yield url


@pytest.mark.slow
def test_a_real_s3_server(bucket: str, demo_run, lm_eval, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "laser", "--output_path", bucket)
    assert ran.code == 0, ran.err
    remove_mirror(bucket)
    assert demo_run("--recipe", "laser", "--output_path", bucket).err.count("kept from") == 2
    assert lm_eval("ingest", bucket).out.startswith(f"2 brought from {bucket} into results\n2 added")
    assert lm_eval("ingest", bucket).out.startswith(f"0 brought from {bucket} into results\n0 added, 2 known")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"secret-of-the-test" in path.read_bytes()]
    assert written == []


@pytest.mark.slow
def test_a_bucket_that_is_not_there_and_credentials_that_are_missing(
    bucket: str, demo_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = demo_run("--recipe", "laser", "--output_path", "s3://no-such-bucket/x")
    assert ran.code == 2 and "s3://no-such-bucket/x cannot be used" in ran.err and "loading" not in ran.err
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    ran = demo_run("--recipe", "laser", "--output_path", bucket)
    assert ran.code == 2 and "credentials" in ran.err.lower() and "Traceback" not in ran.err
