"""What is left of a run on disk: files, and the parts of a receipt that the store does not keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.app.download import as_csv
from leaderboard.app.run_files import as_text, files_of, flat, receipt_of, records, requirements
from leaderboard.ingest import ingest
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.terminal.exports import as_parquet

LOG = [{"step": 0, "epoch": 1, "loss": 2.5}, {"step": 0, "epoch": 2, "loss": 2, "bases": {"a": 1}}]


@pytest.fixture
def folder(made: Any, kit: Any, database: Path) -> Path:
    """One ingested run with a log."""
    path: Path = made.run("laser", {"sums": kit.pair(9, 3)[1]}, log=LOG)
    ingest([made.root], database)
    return path


def run(database: Path) -> dict[str, Any]:
    with open_store(database) as store:
        return queries.run_details(store, queries.runs(store)[0].run_id)


@pytest.mark.slow
def test_files_have_sizes_until_they_are_gone(folder: Path, database: Path) -> None:
    files = {file.name: file.size for file in files_of(run(database))}
    assert (
        set(files) == {file.name for file in folder.iterdir()}
        and files["receipt.json"] == (folder / "receipt.json").stat().st_size
    )
    (folder / "receipt.json").unlink()
    assert {file.name: file.size for file in files_of(run(database))}["receipt.json"] is None
    assert files_of(run(database) | {"files": '["../../receipt.json", "\\u0000"]'})[1].size is None


def test_a_plain_result_has_its_files_and_no_receipt(made: Any, kit: Any, database: Path) -> None:
    file = made.plain({"sums": kit.pair(9, 3)[0]})
    ingest([made.root], database)
    assert {entry.name: entry.size for entry in files_of(run(database))}[file.name] == file.stat().st_size
    assert receipt_of(run(database)).reason == "results of plain lm_eval have no receipt"


def test_the_receipt_that_was_ingested_is_read(folder: Path, database: Path) -> None:
    found = receipt_of(run(database))
    assert (
        found.receipt is not None
        and records(found.receipt, "log") == LOG
        and records(found.receipt, "searches") == records({"log": 3}, "log") == []
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spec_id": "x"}, "another run's"),
        ({"started": "2020-01-01T00:00:00Z"}, "another run's"),
        ({"started": 3}, "another run's"),
    ],
)
def test_another_runs_receipt_is_not_shown(folder: Path, database: Path, change: dict[str, Any], reason: str) -> None:
    file = folder / "receipt.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    found = receipt_of(run(database))
    assert found.receipt is None and reason in found.reason


@pytest.mark.slow
def test_a_receipt_that_is_broken_gone_or_a_link_is_an_answer(folder: Path, database: Path, tmp_path: Path) -> None:
    row, file = run(database), folder / "receipt.json"
    whole = file.read_text()
    for text in ("[]", "{", "[" * 100_000):
        file.write_text(text)
        assert receipt_of(row).receipt is None
    file.unlink()
    assert "not in the run's folder" in receipt_of(row).reason
    (tmp_path / "elsewhere.json").write_text(whole)
    file.symlink_to(tmp_path / "elsewhere.json")
    assert receipt_of(row).receipt is None


def test_records_become_rows_of_one_kind_a_column() -> None:
    rows = flat(
        [
            {"a": 1, "b": "x", "c": [1], "d": True, "e": 2**70, "f": 1},
            {"a": 2.5, "b": 3, "d": None, "f": True, "g": None},
        ]
    )
    assert rows == [
        {"a": 1.0, "b": "x", "c": "[1]", "d": True, "e": str(2**70), "f": "1", "g": None},
        {"a": 2.5, "b": "3", "c": None, "d": None, "e": None, "f": "true", "g": None},
    ]
    assert as_parquet(rows)[:4] == b"PAR1" and as_csv(rows).startswith(b"a,b,c") and flat([]) == []


def test_what_is_nested_too_deeply_is_said() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert as_text(value) == as_text(value, 2) == "(nested too deeply to be shown)"


def test_versions_as_lines_for_pip() -> None:
    assert requirements({"torch": "2.13.0+cpu", "lm_eval": "0.4.13", "python": "3.11", "peft": None}) == [
        "lm-eval==0.4.13",
        "torch==2.13.0",
    ]
