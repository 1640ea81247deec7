"""The header of a safetensors file, read and checked without the library, which loads it first and says little.

What the library refuses is refused here, in a sentence that names file and tensor, and so is a tensor named twice, of
which the library takes the last.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from harness_ext.errors import UserError
from leaderboard.readers.plain_yaml import shown
from leaderboard.readers.safe_json import opened

_HEADER_LIMIT = 100 << 20
_LENGTH_BYTES = 8
_LARGEST = 2**63 - 1
_DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_WHOLE_NUMBERS = frozenset(f"{kind}{bits}" for kind in "IU" for bits in (8, 16, 32, 64)) | {"BOOL"}


class StoredTensor(NamedTuple):
    """A tensor as a safetensors header describes it; dtype is the format's word, such as F32 or BF16."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def element_bytes(self) -> int:
        """Bytes of one number; of one of less than a byte, one."""
        return -(-_DTYPE_BITS.get(self.dtype, 32) // 8)

    @property
    def is_whole_numbers(self) -> bool:
        """Whether it holds integers or booleans, as weights never do unless they are quantised."""
        return self.dtype in _WHOLE_NUMBERS


class TensorPlace(NamedTuple):
    """A tensor in a file. start: the place of its first byte, counted from the beginning of the file."""

    path: Path
    tensor: StoredTensor
    start: int


class _Span(NamedTuple):
    """Where the bytes of a tensor lie, counted from the end of the header."""

    begin: int
    end: int
    name: str


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors that a safetensors file says it holds, after checking that they can be what and where it says.

    Raises UserError naming the file where it is missing, truncated or not a safetensors file, or its header lies.
    """
    return {name: place.tensor for name, place in read_places(path).items()}


def read_places(path: Path) -> dict[str, TensorPlace]:
    """`read_header`, with where each tensor lies, in the order in which they lie there. Raises UserError as it does."""
    try:
        with opened(path) as file:
            size = file.seek(0, 2)
            text = _header_text(path, file, size)
        header = json.loads(text, object_pairs_hook=_once)
        spans, found = _tensors(header)
        spans.sort()
        _check_spans(path, spans, size - _LENGTH_BYTES - len(text))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the checkpoint is incomplete; fetch or copy it again") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or shown(str(error), 200)
        raise UserError(f"{path} cannot be read as a safetensors file: {reason}") from None
    first = _LENGTH_BYTES + len(text)
    return {span.name: TensorPlace(path, found[span.name], first + span.begin) for span in spans}


def _header_text(path: Path, file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    first = file.read(_LENGTH_BYTES)
    length = struct.unpack("<Q", first)[0] if len(first) == _LENGTH_BYTES else _HEADER_LIMIT + 1
    if length > min(size - _LENGTH_BYTES, _HEADER_LIMIT):
        raise UserError(f"{path} is truncated or not a safetensors file ({size:,} bytes): fetch or copy it again")
    return file.read(length)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"its header names {shown(key)} twice")
        found[key] = value
    return found


def _tensors(header: Any) -> tuple[list[_Span], dict[str, StoredTensor]]:
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the __metadata__ of its header is not made of texts")
    spans, found = [], {}
    for name, item in header.items():
        tensor, (begin, end) = _described(item, f"its header says of {shown(name)}")
        spans.append(_Span(begin, end, name))
        found[name] = tensor
    return spans, found


def _described(item: Any, says: str) -> tuple[StoredTensor, tuple[int, int]]:
    """One entry of a header. says: opens a message. Raises ValueError where shape, dtype and offsets can't be true."""
    if not isinstance(item, Mapping) or not {"dtype", "shape", "data_offsets"} <= item.keys():
        raise ValueError(f"{says} {shown(item)}, not dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise ValueError(f"{says} the dtype {shown(dtype)}, which safetensors does not have")
    if not _are_sizes(shape):
        raise ValueError(f"{says} the shape {shown(shape)}, which is no list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{says} the data_offsets {shown(offsets)}, which are no beginning and end")
    bits = _DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits > 8 * _LARGEST:
            break
    if bits != 8 * (offsets[1] - offsets[0]):
        raise ValueError(
            f"{says} the shape {shown(shape)} of {dtype}, and leaves it {offsets[1] - offsets[0]:,} bytes, which is not"
            " what that takes"
        )
    return StoredTensor(tuple(shape), dtype), (offsets[0], offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _LARGEST for size in value)


def _check_spans(path: Path, spans: list[_Span], room: int) -> None:
    """Tensors follow on one another and fill the file. room: bytes after the header."""
    end = max((span.end for span in spans), default=0)
    if end > room:
        raise UserError(
            f"{path} is truncated: it has {room:,} bytes of weights and its header promises {end:,}; fetch or copy it"
            " again"
        )
    at = 0
    for span in spans:
        if span.begin != at and span.begin != span.end:
            trouble = "begins before the one before it ends" if span.begin < at else "leaves a gap before it"
            raise ValueError(f"its header says that {shown(span.name)} {trouble} (byte {span.begin:,} for {at:,})")
        at = max(at, span.end)
    if room > at:
        raise ValueError(f"it has {room - at:,} bytes that no tensor takes")
