"""Files written tensor by tensor, read by the library; and tensors read one at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness_ext.errors import UserError
from harness_ext.model.digests import parts_digest, tensor_digest
from harness_ext.model.safetensors_header import read_places
from harness_ext.model.shard_files import TensorEntry, read_tensor, same_bytes, write_shard

TENSORS = {
    "double": torch.randn(3, 2, dtype=torch.float64),
    "experts": torch.randn(3, 4, 5),
    "scalar": torch.tensor(2.5),
    "none": torch.zeros(0, 4),
    "odd": torch.randn(7).to(torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
}


def entries() -> list[TensorEntry]:
    return [TensorEntry(name, value.dtype, tuple(value.shape)) for name, value in TENSORS.items()]


def test_what_is_written_is_what_the_library_reads(tmp_path: Path) -> None:
    parts = [part for value in TENSORS.values() for part in (value if value.ndim == 3 else [value])]
    write_shard(tmp_path / "model.safetensors", entries(), iter(parts))
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items())
    places = read_places(tmp_path / "model.safetensors")
    assert all(torch.equal(read_tensor(places[name]), value) for name, value in TENSORS.items())
    assert torch.equal(read_tensor(places["experts"], 2), TENSORS["experts"][2])


def test_parts_that_do_not_fill_the_header_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="was to hold"):
        write_shard(tmp_path / "model.safetensors", entries(), [TENSORS["double"]])


def test_a_file_cut_after_its_header_was_read_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / "a.safetensors")
    place = read_places(tmp_path / "a.safetensors")["a"]
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="was cut short while it was read"):
        read_tensor(place)


def test_equal_bytes_are_told(tmp_path: Path) -> None:
    value = torch.randn(50)
    save_file(
        {"a": value, "b": value.clone(), "c": value + 1, "d": value.reshape(5, 10).clone()}, tmp_path / "a.safetensors"
    )
    places = read_places(tmp_path / "a.safetensors")
    assert [same_bytes(places["a"], places[other]) for other in "bcd"] == [True, False, False]


def test_the_digest_of_parts_is_that_of_the_whole() -> None:
    for value in (TENSORS["experts"], TENSORS["odd"][:, None], TENSORS["none"]):
        assert parts_digest(value.dtype, tuple(value.shape), iter(value)) == tensor_digest(value)
