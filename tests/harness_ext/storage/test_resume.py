"""What a killed calculation left is found again, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness_ext.errors import UserError
from harness_ext.storage.resume import ResumeState


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    work = ResumeState(tmp_path / "work")
    assert work.rows("trials") == []
    for number in range(3):
        work.append("trials", {"number": number})
    assert work.rows("trials") == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_a_torn_row_is_cut_off(tmp_path: Path) -> None:
    work = ResumeState(tmp_path)
    work.append("trials", {"number": 0})
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"numb')
    assert work.rows("trials") == [{"number": 0}]
    work.append("trials", {"number": 1})
    assert work.rows("trials") == [{"number": 0}, {"number": 1}]


@pytest.mark.parametrize("damaged", [b"\0" * 12 + b"\n", b"[1]\n", b"\xff\n", b'{"number": 1}'])
def test_what_follows_an_unreadable_row_is_cut_off(tmp_path: Path, damaged: bytes) -> None:
    work = ResumeState(tmp_path)
    work.append("trials", {"number": 0})
    with (tmp_path / "trials.jsonl").open("ab") as file:
        file.write(damaged + b'{"number": 2}\n')
    assert work.rows("trials") == [{"number": 0}]
    work.append("trials", {"number": 3})
    assert work.rows("trials") == [{"number": 0}, {"number": 3}]


def test_tensors_replace_earlier_ones(tmp_path: Path) -> None:
    work = ResumeState(tmp_path).part("step-0")
    assert work.tensors("state") is None
    for value in (1.0, 2.0):
        work.keep("state", {"weight": torch.full((2, 3), value)})
    assert torch.equal(work.tensors("state")["weight"], torch.full((2, 3), 2.0))
    assert [path.name for path in (tmp_path / "step-0").iterdir()] == ["state.safetensors"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be kept in"):
        ResumeState(tmp_path / "file" / "work").append("trials", {})


def test_it_is_gone_when_removed(tmp_path: Path) -> None:
    work = ResumeState(tmp_path / "work")
    work.append("trials", {})
    work.remove()
    assert not work.folder.exists()
