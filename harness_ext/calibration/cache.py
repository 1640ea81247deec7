"""What a session works out once and needs again: statistics, and decompositions of what they make of a matrix. On
scratch disk, so that memory holds it for one matrix at a time.

Everything is named by digests of all that it depends on, so that nothing is ever out of date. A store is bounded: what
no longer fits is simply not kept, and worked out again; the oldest batch of statistics goes first.
Tensors come back bit for bit, and in memory of torch's own: how a tensor is aligned may decide the last bits of a
product.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.model.digests import name_of, named, tensor_digest

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.model.layout import Matrix

    Statistics = Mapping[str, Tensor]

SCRATCH_BYTES = 16 << 30


class ScratchStore:
    """Sets of tensors under names, in batches. folder: made when first written to. limit_bytes: of all files
    together.
    """

    def __init__(self, folder: Path, limit_bytes: int = SCRATCH_BYTES) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._sizes: dict[str, dict[str, int]] = {}
        self._held = 0

    def names(self, batch: str) -> frozenset[str]:
        """What a batch holds."""
        return frozenset(self._sizes.get(batch, ()))

    def save(self, batch: str, name: str, tensors: Mapping[str, Tensor]) -> bool:
        """Keep tensors; whether there was room. Older batches make room for a newer one, never for themselves."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        size = sum(value.numel() * value.element_size() for value in tensors.values())
        while (
            self._held + size > self._limit
            and (old := next((other for other in self._sizes if other != batch), None)) is not None
        ):
            self._drop(old)
        if self._held + size > self._limit:
            return False
        path = self._path(batch, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
        except (OSError, SafetensorError):
            # A full scratch disk costs time, nothing else.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            self._limit = self._held
            return False
        self._sizes.setdefault(batch, {})[name] = size
        self._held += size
        return True

    def load(self, batch: str, name: str) -> dict[str, Tensor] | None:
        """The tensors kept under a name, on the CPU; None where there are none."""
        from safetensors.torch import load_file

        if name not in self._sizes.get(batch, ()):
            return None
        return {key: value.clone() for key, value in load_file(self._path(batch, name)).items()}

    def _path(self, batch: str, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(f'{batch} {name}'.encode()).hexdigest()}.safetensors"

    def _drop(self, batch: str) -> None:
        for name, size in self._sizes.pop(batch).items():
            self._path(batch, name).unlink(missing_ok=True)
            self._held -= size


class _OnScratch(Mapping[str, Mapping[str, "Tensor"]]):
    """Statistics by `Matrix.key`, read when asked for. loose: what found no room in the store."""

    def __init__(self, store: ScratchStore, batch: str, loose: Mapping[str, Statistics]) -> None:
        self._store = store
        self._batch = batch
        self._loose = loose

    def __getitem__(self, key: str) -> Statistics:
        found = self._store.load(self._batch, key)
        found = dict(self._loose[key]) if found is None else found
        return {name: named(value, f"{self._batch} {key} {name}") for name, value in found.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.names(self._batch) | self._loose.keys())

    def __len__(self) -> int:
        return len(self._store.names(self._batch) | self._loose.keys())


class StatisticsCache:
    """The stores of a session. scratch: an existing folder, removed by the caller."""

    def __init__(self, scratch: Path, limit_bytes: int = SCRATCH_BYTES) -> None:
        self._statistics = ScratchStore(scratch / "statistics", limit_bytes)
        self._results = ScratchStore(scratch / "results", limit_bytes)

    def gathered(
        self,
        about: Sequence[str],
        matrices: Sequence[Matrix],
        gather: Callable[[Sequence[Matrix]], Mapping[str, Statistics]],
        groups: Callable[[Sequence[Matrix]], Iterable[Sequence[Matrix]]],
    ) -> Mapping[str, Statistics]:
        """The statistics of these matrices by `Matrix.key`: gathered group by group for those that have none yet, each
        group put in the store before the next.

        about: all that the statistics depend on besides the matrix.
        """
        batch = hashlib.sha256("\n".join(about).encode()).hexdigest()
        there = self._statistics.names(batch)
        loose: dict[str, Statistics] = {}
        for group in groups([matrix for matrix in matrices if matrix.key not in there]):
            gathered = gather(group)
            for matrix in group:
                # Of a matrix that showed nothing, that it did is kept.
                found = gathered.get(matrix.key, {})
                if not self._statistics.save(batch, matrix.key, found):
                    loose[matrix.key] = found
        return _OnScratch(self._statistics, batch, loose)

    def remember(self, function: Callable[..., tuple[Tensor, ...]], *arguments: Tensor) -> tuple[Tensor, ...]:
        """`function(*arguments)` of a pure function of tensors, worked out once for the same arguments; on the device
        of the first.

        Arguments are told by their names (`harness_ext.model.digests`): weights and statistics, as a method is handed
        them, have one. One without is hashed on the CPU; elsewhere the call is made, and nothing kept.
        """
        names = [name_of(value) or _by_bytes(value) for value in arguments]
        if None in names:
            return function(*arguments)
        batch, name = f"{function.__module__}.{function.__qualname__}", " ".join(map(str, names))
        kept = self._results.load(batch, name)
        if kept is None:
            found = function(*arguments)
            self._results.save(batch, name, {str(place): value for place, value in enumerate(found)})
            return found
        return tuple(kept[str(place)].to(arguments[0].device) for place in range(len(kept)))


def _by_bytes(value: Tensor) -> str | None:
    return tensor_digest(value) if value.device.type == "cpu" else None
