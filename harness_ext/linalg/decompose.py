"""Decompositions of weight matrices, each made once: by the name of the matrix, kept on disk over sessions.

A recipe, its control, the next recipe and tomorrow's run mostly ask for those of the same matrices; every rank, energy
and budget is a slice of one. A matrix has its name from `Weights.read`: the digest of the stored bytes, the part of
them and the dtype of the arithmetic. One made from such a matrix is named by what it was made from (`MadeFrom`). A
tensor without a name is hashed on the CPU; elsewhere nothing of it is kept, since to hash it would be to copy it.

Two kinds. `Decomposer.of` gives the full singular value decomposition: through the Gram matrix in fp64 where that is
quicker (`devices`) and reaches all components, else by LAPACK (gesdd) in fp32, and where that does not converge in fp64
on the CPU, which the receipt then says. `Decomposer.truncation` gives leading components only, which is all that
truncation needs: through the Gram matrix, in fp32 if its bound says that this suffices at the rank asked for, else in
fp64, else from the full decomposition; on some devices in fp64 at once. Which it is depends on matrix, rank and device
alone, never on what the cache holds.

On a GPU the latest decompositions stay in its memory as well, as far as an eighth of what is free allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.linalg import cache, gram
from harness_ext.linalg.cache import DiskCache, Entry
from harness_ext.linalg.devices import GRAM_FP32, GRAM_FP64, SVD, full_by_gram, gram_attempts
from harness_ext.linalg.edits import Edit, MadeFrom, RankRule, Svd
from harness_ext.model.digests import name_of, tensor_digest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GRAM_FP32", "GRAM_FP64", "SVD", "Decomposer", "NotConverged", "Truncation"]

# Raised when the arithmetic changes: older files are then never read again.
_VERSION = 3
_SHARE_OF_DEVICE = 1 / 8


class NotConverged(ArithmeticError):
    """A decomposition that failed in fp32 and in fp64."""


class Decomposer:
    """Decompositions on demand. kept: where they are kept; a folder stands for a cache in it, None for nowhere.

    fallbacks: by name of the matrix, a word for the way that a full decomposition had to take.
    """

    def __init__(self, kept: DiskCache | Path | None = None) -> None:
        self._kept = (
            kept if isinstance(kept, DiskCache) else DiskCache(kept or Path(), cache.DEFAULT_LIMIT_BYTES if kept else 0)
        )
        self._on_device: dict[str, Entry] = {}
        self.fallbacks: dict[str, str] = {}

    def of(self, weight: Tensor) -> Svd:
        """The thin singular value decomposition of `[m, n]`, on the weight's device and in its dtype.

        Raises NotConverged.
        """
        return self.full(weight, matrix_name(weight))[0]

    def full(self, weight: Tensor, name: str | None) -> tuple[Svd, str | None]:
        """The decomposition of a matrix of this name, and the fallback, if any. Raises NotConverged."""
        (rows, columns), rank = weight.shape, min(weight.shape)
        shapes = {"u": (rows, rank), "s": (rank,), "vh": (rank, columns)}
        found = self._load(name, SVD, weight, shapes)
        if found is None:
            svd, note = _decompose(weight)
            self._save(name, SVD, weight, Entry(svd._asdict(), note))
        else:
            svd, note = Svd(**found.tensors), found.note
        if note and name:
            self.fallbacks[name] = note
        return svd, note

    def fallback_of(self, weight: Tensor) -> str | None:
        """The fallback in the full decomposition of a matrix with a name; None where there was none."""
        name = name_of(weight)
        return None if name is None else self.fallbacks.get(name)

    def truncation(self, matrix: Tensor, made_from: MadeFrom | None = None) -> Truncation:
        """The leading components of `[m, n]`, to be cut at any number of ranks; decomposed when first cut."""
        return Truncation(self, matrix, matrix_name(matrix, made_from))

    def truncate(self, matrix: Tensor, rank_of: RankRule, made_from: MadeFrom | None = None) -> Edit:
        """The best approximation of `[m, n]` at the rank that the rule gives (see `Truncation.cut`)."""
        return self.truncation(matrix, made_from).cut(rank_of)

    def leading(self, matrix: Tensor, name: str | None, kind: str) -> gram.Leading | None:
        """The components by one of the Gram kinds; None where that does not converge."""
        import torch

        count, larger = sorted(matrix.shape)
        shapes = {
            "directions": (count, count),
            "projections": (count, larger),
            "singular_values": (count,),
            "excess": (count + 1,),
        }
        found = self._load(name, kind, matrix, shapes)
        if found is not None:
            return gram.Leading(**found.tensors)
        try:
            leading = gram.decompose(matrix, torch.float64 if kind == GRAM_FP64 else torch.float32)
        except torch.linalg.LinAlgError:
            return None
        self._save(name, kind, matrix, Entry(leading._asdict(), None))
        return leading

    def flush(self) -> None:
        """Wait until all that is kept on disk is written."""
        cache.flush()

    def _load(self, name: str | None, kind: str, matrix: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Entry | None:
        if name is None:
            return None
        file = _file_name(name, kind, matrix)
        if file in self._on_device:
            self._on_device[file] = self._on_device.pop(file)
            return self._on_device[file]
        return self._kept.load(file, shapes, matrix.device)

    def _save(self, name: str | None, kind: str, matrix: Tensor, entry: Entry) -> None:
        if name is None:
            return
        file = _file_name(name, kind, matrix)
        if matrix.device.type == "cuda":
            self._hold(file, entry, matrix)
        self._kept.save(file, entry.tensors, entry.note)

    def _hold(self, file: str, entry: Entry, matrix: Tensor) -> None:
        """Keep on the device, and let the least recently used go."""
        import torch

        self._on_device[file] = entry
        sizes = {key: _bytes(held) for key, held in self._on_device.items()}
        allowed = _SHARE_OF_DEVICE * (torch.cuda.mem_get_info(matrix.device)[0] + sum(sizes.values()))
        while self._on_device and sum(sizes.values()) > allowed:
            oldest = next(iter(self._on_device))
            del self._on_device[oldest], sizes[oldest]


def matrix_name(matrix: Tensor, made_from: MadeFrom | None = None) -> str | None:
    """What a matrix is called here: by what it was made from, else its own name, else its bytes; None where it lies on
    a device and has neither.
    """
    if made_from is not None and (of := name_of(made_from.weight)) is not None:
        return f"{of} {made_from.how} {' '.join(tensor_digest(value) for value in made_from.others)} {matrix.dtype}"
    return name_of(matrix) or (tensor_digest(matrix) if matrix.device.type == "cpu" else None)


def _bytes(entry: Entry) -> int:
    return sum(value.numel() * value.element_size() for value in entry.tensors.values())


def _decompose(weight: Tensor) -> tuple[Svd, str | None]:
    import torch

    svd: Svd | None = None
    with suppress(torch.linalg.LinAlgError):
        svd = gram.full(weight) if full_by_gram(weight) else None
    if svd is not None:
        return svd, None
    try:
        return Svd(*(part.contiguous() for part in torch.linalg.svd(weight, full_matrices=False))), None
    except torch.linalg.LinAlgError:
        pass
    try:
        parts = torch.linalg.svd(weight.double().cpu(), full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise NotConverged(
            f"the singular value decomposition of a {tuple(weight.shape)} matrix does not converge, in fp64"
            f" neither: {error}"
        ) from None
    return Svd(*(part.to(weight).contiguous() for part in parts)), "fp64"


class Truncation:
    """The leading components of one matrix `[m, n]`; holds its decomposition in memory once it has been cut."""

    def __init__(self, factors: Decomposer, matrix: Tensor, name: str | None) -> None:
        self._factors = factors
        self._matrix = matrix
        self._name = name
        self._leading: dict[str, gram.Leading | None] = {}
        self._full: tuple[Svd, str | None] | None = None

    def cut(self, rank_of: RankRule) -> Edit:
        """The approximation of least error at the rank that the rule gives, within `gram.EXCESS_LIMIT`, and how it was
        made. Its factors are views.

        rank_of: a function of the singular values `[min(m, n)]`, descending. Raises NotConverged, and what the rule
        raises.
        """
        rows, columns = self._matrix.shape
        for kind, leading in self._attempts():
            rank = rank_of(leading.singular_values)
            if leading.suffices(rank):
                directions, projections = leading.directions[:rank], leading.projections[:rank]
                left, right = (directions.T, projections) if rows <= columns else (projections.T, directions)
                return Edit(left, right, decomposition=kind, excess_error=float(leading.excess[rank]))
            # Room for the next; where another rank wants this one again, it is read again.
            del self._leading[kind], leading
        if self._full is None:
            self._full = self._factors.full(self._matrix, self._name)
        svd, note = self._full
        rank = rank_of(svd.s)
        return Edit(
            svd.u[:, :rank] * svd.s[:rank],
            svd.vh[:rank],
            fallback=note,
            decomposition=SVD,
        )

    def serving(self, ranks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Factors `[m, k]` and `[k, n]`, k the largest of these ranks, whose first components are an exact truncation
        at each of them (see `cut`). Raises NotConverged.
        """
        (rows, columns), largest = self._matrix.shape, max(ranks)
        for _, leading in self._attempts():
            if all(leading.suffices(rank) for rank in ranks):
                directions, projections = leading.directions[:largest], leading.projections[:largest]
                return (directions.T, projections) if rows <= columns else (projections.T, directions)
        svd, _ = self._factors.full(self._matrix, self._name)
        return svd.u[:, :largest] * svd.s[:largest], svd.vh[:largest]

    def _attempts(self) -> Iterator[tuple[str, gram.Leading]]:
        for kind in gram_attempts(self._matrix):
            if kind not in self._leading:
                self._leading[kind] = self._factors.leading(self._matrix, self._name, kind)
            leading = self._leading[kind]
            if leading is not None:
                yield kind, leading


def _file_name(name: str, kind: str, matrix: Tensor) -> str:
    return cache.file_name(name, f"{kind}-{_VERSION}", matrix.device)
