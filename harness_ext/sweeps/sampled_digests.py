"""Digests of model files that take a moment, however large: what tells a retrained or edited checkpoint from another in
the same place. `lm_eval run` hashes the whole of them; a plan of a sweep, which anybody asks for at any time, cannot.

Of a large file its size, its head and its tail are read, and some bytes of the middle of every tensor: training and
edits change whole matrices. Where the file is no safetensors file they are bytes at even distances. A change between
them, of single numbers, is not seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from harness_ext.errors import UserError
from harness_ext.model.file_digests import FileDigests
from harness_ext.model.safetensors_header import read_places

WHOLE_BYTES = 1 << 20
"""Files of at most as many bytes are read whole."""
_EDGE_BYTES = 1 << 16
_SAMPLE_BYTES = 256
_MOST_SAMPLES = 1024
"""Of one file."""


class SampledDigests(FileDigests):
    """`FileDigests` of samples. Files are read again whenever they are asked for."""

    def digest(self, path: Path) -> str:
        """SHA-256 of what is read of a file; of a file that is not there, the word. Raises UserError for one that
        cannot be read.
        """
        hasher = hashlib.sha256()
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                hasher.update(str(size).encode())
                places = [(0, size)]
                if size > WHOLE_BYTES:
                    places = [(0, _EDGE_BYTES), *_samples(path, size), (size - _EDGE_BYTES, _EDGE_BYTES)]
                for start, count in places:
                    file.seek(start)
                    hasher.update(file.read(count))
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        return hasher.hexdigest()


def _samples(path: Path, size: int) -> list[tuple[int, int]]:
    """Where to read of a large file, and how many bytes."""
    try:
        starts = [place.start for place in read_places(path).values()] if path.suffix == ".safetensors" else []
    except UserError:
        starts = []
    middles = [(begin + end) // 2 for begin, end in zip(starts, [*starts[1:], size])]
    return [(place, _SAMPLE_BYTES) for place in _some(middles or range(0, size, -(-size // _MOST_SAMPLES)))]


def _some(places: Sequence[int]) -> Sequence[int]:
    """At most `_MOST_SAMPLES` of them, at even distances."""
    return places[:: -(-len(places) // _MOST_SAMPLES)]
