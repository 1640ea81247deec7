"""Inspect's logs land with their numbers, in every form that Inspect writes; hostile ones are refused in a sentence."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from leaderboard.board.board import board
from leaderboard.errors import Unreadable
from leaderboard.ingest import ingest
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.foreign import archive
from leaderboard.readers.reader import read_runs
from leaderboard.readers.records import Run
from leaderboard.readers.safe_json import mapping


def header(right: Sequence[str], **more: Any) -> dict[str, Any]:
    """A log without its samples, in the form of Inspect's version 2. right: a letter for each document."""
    share = sum(letter == "C" for letter in right) / len(right)
    metrics = {"accuracy": {"name": "accuracy", "value": share}, "stderr": {"name": "stderr", "value": 0.04}}
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "task": "popularity",
            "task_version": 0,
            "task_args": {},
            "model": "hf/org/tiny",
            "model_args": {"device": "cpu", "api_key": "sk-secret"},
            "dataset": {"name": "popularity", "samples": len(right)},
            "config": {"limit": None, "epochs": 1},
            "packages": {"inspect_ai": "0.3.285"},
        },
        "plan": {"config": {"temperature": 0.0}},
        "results": {
            "total_samples": len(right),
            "completed_samples": len(right),
            "scores": [{"name": "match", "scorer": "match", "metrics": metrics}],
        },
        "stats": {"started_at": "2025-02-11T15:18:04-05:00"},
    } | more


def samples(right: Sequence[str], epoch: int = 1) -> list[dict[str, Any]]:
    return [
        {
            "id": i + 1,
            "epoch": epoch,
            "input": f"Question {i}?",
            "target": " Yes",
            "output": {"choices": [{"message": {"content": [{"type": "text", "text": "Yes"}]}}]},
            "scores": {"match": {"value": letter, "answer": "Yes"}},
        }
        for i, letter in enumerate(right)
    ]


def write_json(path: Path, right: Sequence[str], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**header(right), "samples": samples(right), **more}))
    return path


def members(right: Sequence[str]) -> dict[str, bytes]:
    texts: dict[str, Any] = {"header.json": header(right), "summaries.json": [], "_journal/start.json": {}}
    texts |= {f"samples/{one['id']}_epoch_{one['epoch']}.json": one for one in samples(right)}
    return {name: json.dumps(value).encode() for name, value in texts.items()}


def write_deflated(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)


def write_zstandard(path: Path, files: dict[str, bytes]) -> None:
    """As Inspect writes it now: by the ZIP format's own layout, since Python writes method 93 from 3.14 on only."""
    body, directory = b"", b""
    for name, data in files.items():
        packed = pyarrow.compress(data, codec="zstd", asbytes=True)
        common = struct.pack("<HHHHHIIIHH", 45, 0, 93, 0, 33, zlib.crc32(data), len(packed), len(data), len(name), 0)
        directory += b"PK\1\2" + struct.pack("<H", 45) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\3\4" + common + name.encode() + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\5\6" + end)


def one_run(path: Path) -> Run:
    (run,) = (run for found in find_runs(path) if isinstance(found, Candidate) for run in read_runs(found))
    return run


@pytest.mark.parametrize("form", ["json", "deflated", "zstandard"])
def test_every_form_is_the_same_run(tmp_path: Path, form: str) -> None:
    right = ["C", "I", "P", "C"]
    if form == "json":
        write_json(tmp_path / "log.json", right)
    else:
        write = write_deflated if form == "deflated" else write_zstandard
        write(tmp_path / "log.eval", members(right))
    run = one_run(tmp_path)
    assert (run.origin, run.variant.model_name, run.backend) == ("inspect", "org/tiny", "inspect hf")
    assert [(s.task, s.metric, s.filter, s.score, s.stderr, s.higher_is_better) for s in run.scores] == [
        ("popularity", "accuracy", "match", 0.5, 0.04, True)
    ]
    (task,) = run.tasks
    assert [found.scores["accuracy"].value for found in task.samples.outcomes] == [1.0, 0.0, 0.5, 1.0]
    assert [json.loads(text) for text in task.samples.responses] == [["Yes"]] * 4
    assert str(run.started) == "2025-02-11 20:18:04"
    assert "sk-secret" not in repr(run)
    assert run.run_id == one_run(write_json(tmp_path / "other" / "log.json", right)).run_id


def test_epochs_are_averaged_by_document(tmp_path: Path) -> None:
    both = [*samples(["C", "I"]), *samples(["I", "I"], epoch=2)]
    task = one_run(write_json(tmp_path / "log.json", ["C", "I"], samples=both)).tasks[0]
    assert [found.scores["accuracy"].value for found in task.samples.outcomes] == [0.5, 0.0]


def test_a_scorer_of_several_numbers_has_them_by_document(tmp_path: Path) -> None:
    """As Inspect 0.3.285 writes `@scorer(metrics={"length": [mean()], "words": [mean()]})`."""
    entries = [
        {"name": name, "scorer": "measures", "metrics": {"mean": {"name": "mean", "value": value}}}
        for name, value in (("length", 13.0), ("words", 3.5))
    ]
    logged = samples(["C", "I"])
    for one, value in zip(logged, ({"length": 15, "words": 4}, {"length": 11, "words": 3}), strict=True):
        one["scores"] = {"measures": {"value": value}}
    task = one_run(write_json(tmp_path / "log.json", ["C", "I"], results={"scores": entries}, samples=logged)).tasks[0]
    by_filter = {
        name: [
            outcome.scores["mean"].value
            for document, outcome in zip(task.samples.documents, task.samples.outcomes, strict=True)
            if document.filter == name
        ]
        for name in ("length", "words")
    }
    assert by_filter == {"length": [15.0, 11.0], "words": [4.0, 3.0]}


def test_another_reducer_leaves_documents_without_scores(tmp_path: Path) -> None:
    entries = [
        {"name": "match", "scorer": "match", "reducer": reducer, "metrics": {"accuracy": {"value": value}}}
        for reducer, value in (("mean", 0.25), ("at_least_2", 0.0))
    ]
    both = [*samples(["C", "I"]), *samples(["I", "I"], epoch=2)]
    run = one_run(write_json(tmp_path / "log.json", ["C", "I"], results={"scores": entries}, samples=both))
    assert [(score.filter, score.score) for score in run.scores] == [("match", 0.25), ("match (at_least_2)", 0.0)]
    (task,) = run.tasks
    values = [found.scores["accuracy"].value for found in task.samples.outcomes]
    assert sorted(values, key=str) == [0.0, 0.5, None, None]


@pytest.mark.parametrize("form", ["json", "archive"])
def test_reductions_give_documents_the_scores_of_another_reducer(tmp_path: Path, form: str) -> None:
    entries = [
        {"name": name, "scorer": scorer, "reducer": "max", "metrics": {"mean": {"name": "mean", "value": value}}}
        for scorer, name, value in (("match", "match", 0.5), ("measures", "length", 14.0))
    ]
    both = [*samples(["C", "I"]), *samples(["I", "I"], epoch=2)]
    reduced = {"match": [1.0, 0.0], "measures": [{"length": 15}, {"length": 13}]}
    reductions = [
        {
            "scorer": scorer,
            "reducer": "max",
            # in an order of their own, and one of no document
            "samples": [{"sample_id": i + 1, "value": value} for i, value in reversed([*enumerate(values), (7, 1.0)])],
        }
        for scorer, values in reduced.items()
    ]
    if form == "json":
        more = {"results": {"scores": entries}, "samples": both, "reductions": reductions}
        write_json(tmp_path / "log.json", ["C", "I"], **more)
    else:
        files = {"header.json": header(["C", "I"], results={"scores": entries}), "reductions.json": reductions}
        files |= {f"samples/{one['id']}_epoch_{one['epoch']}.json": one for one in both}
        write_deflated(tmp_path / "log.eval", {name: json.dumps(value).encode() for name, value in files.items()})
    found = one_run(tmp_path).tasks[0].samples
    by_filter: dict[str, list[Any]] = {"match (max)": [], "length (max)": []}
    for document, outcome in zip(found.documents, found.outcomes, strict=True):
        by_filter[document.filter].append(outcome.scores["mean"].value)
    assert by_filter == {"match (max)": [1.0, 0.0], "length (max)": [15.0, 13.0]}


@pytest.mark.parametrize("odd", [7, [None], [{"scorer": "match", "reducer": "max", "samples": 3}], [{"samples": [1]}]])
def test_reductions_of_any_shape_land(tmp_path: Path, odd: Any) -> None:
    entries = [{"name": "match", "reducer": "max", "metrics": {"mean": {"name": "mean", "value": 0.5}}}]
    run = one_run(write_json(tmp_path / "log.json", ["C"], results={"scores": entries}, reductions=odd))
    assert [outcome.scores["mean"].value for outcome in run.tasks[0].samples.outcomes] == [None]


def test_runs_of_one_harness_are_paired_by_document(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", ["C"] * 60, stats={"started_at": "2025-03-01T00:00:00+00:00"})
    write_json(tmp_path / "b.json", ["C"] * 30 + ["I"] * 30)
    report = ingest([tmp_path], None)
    assert len(report.added) == 2 and not report.rejected and report.store is not None
    (cell,) = (cell for cell in board(report.store) if cell.verdict != "baseline")
    assert (cell.recipe, cell.verdict, cell.n, cell.delta) == ("plain inspect", "worse", 60, pytest.approx(-0.5))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"status": "error", "error": {"message": "no\x1b[31m such model"}}, "did not end well"),
        ({"status": "started"}, "did not end well"),
        ({"results": None}, "without a score"),
        ({"results": {"scores": [{"name": "match", "metrics": {"accuracy": {"value": None}}}]}}, "without a score"),
        ({"results": {"scores": 5}}, "without a score"),
    ],
)
def test_what_has_no_scores_is_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        one_run(write_json(tmp_path / "log.json", ["C"], **more))


@pytest.mark.parametrize("odd", [None, 5, "text", [], {"id": {}, "scores": 3, "output": []}, {"input": [{"a": 1}]}])
def test_samples_of_any_shape_land(tmp_path: Path, odd: Any) -> None:
    run = one_run(write_json(tmp_path / "log.json", ["C"], samples=[odd]))
    assert [found.scores["accuracy"].value for found in run.tasks[0].samples.outcomes] == [None]
    assert isinstance(mapping(odd), dict)


def test_an_archive_without_a_header_is_refused(tmp_path: Path) -> None:
    files = members(["C"])
    del files["header.json"]
    write_deflated(tmp_path / "log.eval", files)
    with pytest.raises(Unreadable, match="has not ended"):
        one_run(tmp_path)


@pytest.mark.parametrize("write", [write_deflated, write_zstandard])
def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 10_000)
    write(tmp_path / "log.eval", members(["C"]) | {"samples/9_epoch_1.json": b'"' + b"a" * 10_000_000 + b'"'})
    with pytest.raises(Unreadable, match="MiB that are read"):
        one_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"), [("MAX_MEMBERS", "members"), ("MAX_BYTES", "holds"), ("MAX_FILE_BYTES", "has")]
)
def test_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    write_deflated(tmp_path / "log.eval", members(["C"] * 3))
    monkeypatch.setattr(archive, name, 1)
    with pytest.raises(Unreadable, match=message):
        one_run(tmp_path)


def test_hostile_names_reach_no_file(tmp_path: Path) -> None:
    files = members(["C"]) | {"samples/../../../escaped.json": b"{}", "/etc/escaped.json": b"{}"}
    write_deflated(tmp_path / "logs.eval", files)
    one_run(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["logs.eval"]


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_deflated, write_zstandard])
def test_a_damaged_archive_is_refused_in_a_sentence(tmp_path: Path, write: Any) -> None:
    """Cut off anywhere, or with a byte changed: it is read as it was, or refused."""
    write(tmp_path / "log.eval", members(["C", "I"]))
    whole = (tmp_path / "log.eval").read_bytes()
    damaged = [whole[:cut] for cut in range(0, len(whole), 97)]
    damaged += [whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :] for place in range(0, len(whole), 41)]
    refused = 0
    for data in damaged:
        (tmp_path / "log.eval").write_bytes(data)
        report = ingest([tmp_path / "log.eval"], None)
        refused += len(report.rejected)
        assert all("Traceback" not in item.reason for item in report.rejected)
        assert len(report.added) + len(report.rejected) == 1
        assert report.store is not None
        report.store.connection.close()
    assert refused > len(damaged) // 2
