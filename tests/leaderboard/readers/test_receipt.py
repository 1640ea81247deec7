"""Receipts from elsewhere: what the leaderboard does not use may be anything, what it uses may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.errors import Unreadable
from leaderboard.readers.ran_on import NOWHERE, ComputePlace, ran_on_of
from leaderboard.readers.receipt import ReceiptMatrix, read_receipt, storable
from leaderboard.store.database import memory_store


@pytest.fixture
def written(made: Any, kit: Any) -> tuple[Path, dict[str, Any]]:
    """A receipt on the disk, and its contents to be changed."""
    path = made.run("svd", {"sums": kit.Task({"acc": [1.0, 0.0]})}) / "receipt.json"
    return path, json.loads(path.read_text())


def test_unknown_keys_and_unused_parts_of_another_type_are_left_out(written: tuple[Path, dict[str, Any]]) -> None:
    path, data = written
    data |= {"log": "none", "searches": [3], "of the future": 1}
    data["totals"] |= {"bytes_after": "many", "watts": 3}
    data["matrices"][0]["of the future"] = 2
    path.write_text(json.dumps(data))
    receipt, raw = read_receipt(path)
    assert (receipt.log, receipt.searches, raw["log"]) == ([], [], "none")
    assert receipt.totals is not None and receipt.totals.bytes_after is None and receipt.totals.bytes_before == 4000
    assert receipt.matrices[0].shape == (8, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "odd"},
        {"matrices": [{"name": 3}]},
        {"matrices": [{"name": "a", "rank_after": "low"}]},
        {"totals": {"parameters_after": 2**70}},
        {"model": {}},
        {"ran_on": "here"},
        {"ran_on": {"gpus": "NVIDIA A100"}},
        {"ran_on": {"gpus": ["x" * 201]}},
        {"ran_on": {"host": ""}},
        {"ran_on": {"ranks": 0}},
        {"ran_on": {"engine": ["hf"]}},
    ],
)
def test_a_used_part_of_another_type_is_refused(written: tuple[Path, dict[str, Any]], change: dict[str, Any]) -> None:
    path, data = written
    path.write_text(json.dumps(data | change))
    with pytest.raises(Unreadable, match="not a receipt of format 1"):
        read_receipt(path)


def test_a_matrix_has_a_column_for_every_field_of_the_schema() -> None:
    store = memory_store()
    try:
        columns = {row["column_name"] for row in store.rows("DESCRIBE receipts")}
    finally:
        store.connection.close()
    assert columns == {"run_id", "position", *ReceiptMatrix.model_fields}


def test_what_the_store_cannot_hold_is_replaced() -> None:
    matrix = storable(ReceiptMatrix(name="a\x00b", energy_kept=float("nan"), shape=(2, 3)))
    assert (matrix.name, matrix.energy_kept, matrix.shape) == ("a\N{REPLACEMENT CHARACTER}b", None, (2, 3))


def test_where_it_ran_is_read_with_what_the_future_adds(written: tuple[Path, dict[str, Any]]) -> None:
    path, data = written
    assert read_receipt(path)[0].ran_on is None and ran_on_of(None) == NOWHERE and NOWHERE.in_words() == ""
    said = {"host": "node7", "gpus": ["B", "A", "B"], "driver": "570", "ranks": 2, "engine": "vllm", "watts": 3}
    path.write_text(json.dumps(data | {"ran_on": said}))
    found = ran_on_of(read_receipt(path)[0].ran_on)
    assert (found.gpu, found.gpu_count, found.place) == ("A, B", 3, ComputePlace("vllm", "A, B"))
    assert found.in_words() == "node7, 3 x A, B (driver 570), 2 ranks, vllm"
