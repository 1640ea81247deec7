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
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.model.digests import name_of, named, tensor_digest

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.calibration.by_layer import LearnedGroup
    from harness_ext.model.layout import Matrix

    Statistics = Mapping[str, Tensor]
    Learned = tuple[Sequence[Matrix], Mapping[str, Statistics]]

SCRATCH_BYTES = 16 << 30


class _Place(NamedTuple):
    """Where a set of tensors lies: its file, and the name there of each tensor."""

    path: Path
    tensors: Mapping[str, str]


class ScratchStore:
    """Sets of tensors under names, in batches. folder: made when first written to. limit_bytes: of all files
    together.
    """

    def __init__(self, folder: Path, limit_bytes: int = SCRATCH_BYTES) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._places: dict[str, dict[str, _Place]] = {}
        self._sizes: dict[str, dict[Path, int]] = {}
        self._held = 0

    def names(self, batch: str) -> frozenset[str]:
        """What a batch holds."""
        return frozenset(self._places.get(batch, ()))

    def admits(self, size: int) -> bool:
        """Whether a batch of so many bytes could be kept whole."""
        return size <= self._limit

    def save(self, batch: str, sets: Mapping[str, Mapping[str, Tensor]]) -> bool:
        """Keep sets of tensors, by their names, in one file, a tensor that several hold once; whether there was room.
        Older batches make room for a newer one, never for themselves.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        numbered = {id(value): value for tensors in sets.values() for value in tensors.values()}
        size = sum(value.numel() * value.element_size() for value in numbered.values())
        if not self._make_room(batch, size):
            return False
        path = self._path(batch, next(iter(sets)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({str(key): value.detach().cpu().contiguous() for key, value in numbered.items()}, path)
        except (OSError, SafetensorError):
            # A full scratch disk costs time, nothing else.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            self._limit = self._held
            return False
        self._sizes.setdefault(batch, {})[path] = size
        self._held += size
        for name, tensors in sets.items():
            place = _Place(path, {key: str(id(value)) for key, value in tensors.items()})
            self._places.setdefault(batch, {})[name] = place
        return True

    def load(self, batch: str, name: str) -> dict[str, Tensor] | None:
        """The tensors kept under a name, on the CPU; None where there are none."""
        from safetensors import safe_open

        place = self._places.get(batch, {}).get(name)
        if place is None:
            return None
        with safe_open(place.path, framework="pt") as file:
            return {key: file.get_tensor(stored).clone() for key, stored in place.tensors.items()}

    def label(self, batch: str, name: str, tensor: str) -> str:
        """What all numbers of a tensor kept under a name follow from; the same for one that several sets hold."""
        place = self._places.get(batch, {}).get(name)
        return f"{batch} {name} {tensor}" if place is None else f"{place.path.stem} {place.tensors[tensor]}"

    def _make_room(self, batch: str, size: int) -> bool:
        while (
            self._held + size > self._limit
            and (old := next((other for other in self._sizes if other != batch), None)) is not None
        ):
            self.drop(old)
        return self._held + size <= self._limit

    def _path(self, batch: str, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(f'{batch} {name}'.encode()).hexdigest()}.safetensors"

    def drop(self, batch: str) -> None:
        """Forget a batch, where there is one."""
        self._places.pop(batch, None)
        for path, size in self._sizes.pop(batch, {}).items():
            path.unlink(missing_ok=True)
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
        return _named(self._store, self._batch, key, found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.names(self._batch) | self._loose.keys())

    def __len__(self) -> int:
        return len(self._store.names(self._batch) | self._loose.keys())


class StatisticsCache:
    """The stores of a session. scratch: an existing folder, removed by the caller. losses: of documents by task, by all
    that they depend on; trials: of searches, likewise. Whoever measures them puts them there.
    """

    def __init__(self, scratch: Path, limit_bytes: int = SCRATCH_BYTES) -> None:
        self._statistics = ScratchStore(scratch / "statistics", limit_bytes)
        self._aside = ScratchStore(scratch / "aside")
        self._results = ScratchStore(scratch / "results", limit_bytes)
        self.losses: dict[tuple[str, ...], Any] = {}
        self.trials: dict[tuple[str, ...], dict[str, Any]] = {}

    def lacks(self, about: Sequence[str], matrices: Sequence[Matrix]) -> bool:
        """Whether the statistics of one of these matrices are not there; see `gathered`."""
        there = self._statistics.names(_batch(about))
        return any(matrix.key not in there for matrix in matrices)

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
        batch = _batch(about)
        there = self._statistics.names(batch)
        loose: dict[str, Statistics] = {}
        for group in groups([matrix for matrix in matrices if matrix.key not in there]):
            found = _of_each(group, gather(group))
            if not self._statistics.save(batch, found):
                loose |= found
        return _OnScratch(self._statistics, batch, loose)

    def through(
        self,
        about: Sequence[str],
        matrices: Sequence[Matrix],
        learn: Callable[[Sequence[Matrix]], Iterator[LearnedGroup]],
        expected: int,
    ) -> Iterator[Learned]:
        """The matrices in parts, with their statistics: first those that have none yet, as `learn` gives them, and then
        those that were kept. about: as in `gathered`. expected: what the statistics will take, in bytes; nothing is
        kept of what cannot be kept whole, since a pass through the model would be needed for the rest as well. Groups
        of a layer that has several are put aside until its last is there, so that memory holds one.
        """
        batch = _batch(about)
        there = self._statistics.names(batch)
        if missing := [matrix for matrix in matrices if matrix.key not in there]:
            keeps = self._statistics.admits(expected)
            aside: list[tuple[Sequence[Matrix], Mapping[str, Statistics]]] = []
            try:
                for group, gathered, is_last in learn(missing):
                    found = _of_each(group, gathered)
                    if aside or not is_last:
                        aside.append((group, self._put_aside(batch, found, keeps=keeps)))
                    else:
                        if keeps:
                            self._statistics.save(batch, found)
                        yield (
                            group,
                            {key: _named(self._statistics, batch, key, values) for key, values in found.items()},
                        )
                    # Else they would be held while the next are learned.
                    del gathered, found
                    if is_last:
                        for earlier, on_scratch in aside:
                            for matrix in earlier:
                                yield [matrix], {matrix.key: on_scratch[matrix.key]}
                        aside.clear()
                        self._aside.drop(batch)
            finally:
                self._aside.drop(batch)
        for matrix in matrices:
            if matrix.key in there:
                kept = self._statistics.load(batch, matrix.key)
                assert kept is not None, "a batch in use is not dropped"
                yield [matrix], {matrix.key: _named(self._statistics, batch, matrix.key, kept)}
                del kept

    def _put_aside(self, batch: str, found: Mapping[str, Statistics], *, keeps: bool) -> Mapping[str, Statistics]:
        """Statistics of a group, read when asked for: kept for the session, or until the layer's are all used."""
        store = self._statistics if keeps else self._aside
        return _OnScratch(store, batch, {} if store.save(batch, found) else found)

    def at_hand(
        self,
        about: Sequence[str],
        matrices: Sequence[Matrix],
        learn: Callable[[Sequence[Matrix]], Iterator[LearnedGroup]],
        expected: int,
    ) -> Mapping[str, Statistics] | None:
        """The statistics of these matrices by `Matrix.key`, read when asked for, once those that have none yet are
        learned; None where not all of them can be kept. Arguments are those of `through`.
        """
        if not self._statistics.admits(expected):
            return None
        if self.lacks(about, matrices):
            for _ in self.through(about, matrices, learn, expected):
                pass
        return None if self.lacks(about, matrices) else _OnScratch(self._statistics, _batch(about), {})

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
            self._results.save(batch, {name: {str(place): value for place, value in enumerate(found)}})
            return found
        return tuple(kept[str(place)].to(arguments[0].device) for place in range(len(kept)))


def _of_each(group: Sequence[Matrix], gathered: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """Of a matrix that showed nothing, that it did is known."""
    return {matrix.key: gathered.get(matrix.key, {}) for matrix in group}


def _named(store: ScratchStore, batch: str, key: str, values: Statistics) -> Statistics:
    """The statistics of a matrix, under names."""
    return {name: named(value, store.label(batch, key, name)) for name, value in values.items()}


def _batch(about: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(about).encode()).hexdigest()


def _by_bytes(value: Tensor) -> str | None:
    return tensor_digest(value) if value.device.type == "cpu" else None
