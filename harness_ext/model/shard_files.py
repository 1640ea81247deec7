"""Tensors of a checkpoint read one at a time, and safetensors files written tensor by tensor.

The library maps whole files and writes from tensors that are all in memory. Here memory holds what is read or written
at the moment: a file is its header, which follows from names, dtypes and shapes, and then the bytes of one tensor after
another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from harness_ext.errors import UserError
from harness_ext.model.safetensors_header import TensorPlace

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""What torch calls the dtypes of safetensors."""
_WORDS = {f"torch.{name}": word for word, name in TORCH_NAMES.items()}
_ALIGNMENT = 8
_BLOCK = 1 << 24


class TensorEntry(NamedTuple):
    """A tensor in a file that is to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_tensor(place: TensorPlace, row: int | None = None) -> Tensor:
    """A stored tensor, or one row along its first axis, in memory of its own. Raises UserError where it cannot be
    read.
    """
    import torch

    dtype, shape = getattr(torch, TORCH_NAMES[place.tensor.dtype]), place.tensor.shape
    value = torch.empty(shape if row is None else shape[1:], dtype=dtype)
    data = value.reshape(-1).view(torch.uint8).numpy()
    try:
        with place.path.open("rb", buffering=0) as file:
            file.seek(place.start + (row or 0) * data.nbytes)
            _fill(file, data.data, place.path)
    except OSError as error:
        raise UserError(f"{place.path} cannot be read: {error.strerror or error}") from None
    return value


def _fill(file: BinaryIO, data: memoryview, path: Path) -> None:
    at = 0
    while at < len(data):
        count = file.readinto(data[at : at + _BLOCK])  # type: ignore[attr-defined]  # a raw file has it
        if not count:
            raise UserError(f"{path} was cut short while it was read: fetch or copy it again")
        at += count


def same_bytes(one: TensorPlace, other: TensorPlace) -> bool:
    """Whether two stored tensors are equal, read a little at a time."""
    if one.tensor != other.tensor:
        return False
    left = one.tensor.element_bytes
    for size in one.tensor.shape:
        left *= size
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        while left:
            block = first.read(min(left, _BLOCK))
            if not block or block != second.read(len(block)):
                return False
            left -= len(block)
    return True


def write_shard(path: Path, entries: Sequence[TensorEntry], parts: Iterable[Tensor]) -> None:
    """Write a safetensors file, on the disk when this returns.

    entries: in the order in which they are to lie; larger numbers must come before smaller ones, since readers want
    each tensor aligned to its numbers. parts: the tensors in that order, each whole, or in pieces along its first axis.

    Raises OSError where the file cannot be written, and RuntimeError where parts and entries do not fit.
    """
    import torch

    header = _header(entries)
    expected = sum(_bytes_of(entry) for entry in entries)
    written = 0
    with path.open("wb") as file:
        file.write(header)
        for part in parts:
            data = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(data)
            written += len(data)
            del data, part
        file.flush()
        os.fsync(file.fileno())
    if written != expected:
        raise RuntimeError(f"{path} was to hold {expected:,} bytes of tensors, and {written:,} came")


def _header(entries: Sequence[TensorEntry]) -> bytes:
    at = 0
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for entry in entries:
        size = _bytes_of(entry)
        described[entry.name] = {
            "dtype": _WORDS[str(entry.dtype)],
            "shape": list(entry.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(entry: TensorEntry) -> int:
    size = entry.dtype.itemsize
    for length in entry.shape:
        size *= length
    return size
