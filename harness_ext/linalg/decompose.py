"""Decompositions of weight matrices, each made once: by digest of the matrix, kept on disk over sessions.

A recipe, its control, the next recipe and tomorrow's run mostly ask for those of the same matrices; every rank, energy
and budget is a slice of one.

Two kinds. `Decomposer.of` gives the full singular value decomposition, by LAPACK (gesdd) in fp32, and where that does
not converge in fp64 on the CPU, which the receipt then says. `Decomposer.truncation` gives leading components only,
which is all that truncation needs: through the Gram matrix, in fp32 if its bound says that this suffices at the rank
asked for, else in fp64, else from the full decomposition. Which it is depends on matrix and rank alone, never on what
the cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.linalg import cache, gram
from harness_ext.linalg.cache import DiskCache
from harness_ext.linalg.edits import Edit, RankRule, Svd
from harness_ext.model.weights import tensor_digest

if TYPE_CHECKING:
    from torch import Tensor

SVD = "svd"
GRAM_FP32 = "gram_fp32"
GRAM_FP64 = "gram_fp64"
# Raised when the arithmetic changes: older files are then never read again.
_VERSION = 2


class NotConverged(ArithmeticError):
    """A decomposition that failed in fp32 and in fp64."""


class Decomposer:
    """Decompositions on demand. kept: where they are kept; a folder stands for a cache in it, None for nowhere."""

    def __init__(self, kept: DiskCache | Path | None = None) -> None:
        self._kept = (
            kept if isinstance(kept, DiskCache) else DiskCache(kept or Path(), cache.DEFAULT_LIMIT_BYTES if kept else 0)
        )
        self.fallbacks: dict[str, str] = {}

    def of(self, weight: Tensor) -> Svd:
        """The thin singular value decomposition of `[m, n]`, on the weight's device and in its dtype.

        Raises NotConverged.
        """
        (rows, columns), digest = weight.shape, tensor_digest(weight)
        name, rank = _name(digest, SVD, weight), min(rows, columns)
        found = self._kept.load(name, {"u": (rows, rank), "s": (rank,), "vh": (rank, columns)}, weight.device)
        if found is not None:
            if found.note:
                self.fallbacks[digest] = found.note
            return Svd(**found.tensors)
        svd = self._decompose(weight, digest)
        self._kept.save(name, svd._asdict(), self.fallbacks.get(digest))
        return svd

    def truncation(self, matrix: Tensor) -> Truncation:
        """The leading components of `[m, n]`, to be cut at any number of ranks; decomposed when first cut."""
        return Truncation(self, matrix)

    def truncate(self, matrix: Tensor, rank_of: RankRule) -> Edit:
        """The best approximation of `[m, n]` at the rank that the rule gives (see `Truncation.cut`)."""
        return self.truncation(matrix).cut(rank_of)

    def leading(self, matrix: Tensor, digest: str, kind: str) -> gram.Leading | None:
        """The components by one of the Gram kinds; None where that does not converge."""
        import torch

        count, larger = sorted(matrix.shape)
        name = _name(digest, kind, matrix)
        shapes = {
            "directions": (count, count),
            "projections": (count, larger),
            "singular_values": (count,),
            "excess": (count + 1,),
        }
        found = self._kept.load(name, shapes, matrix.device)
        if found is not None:
            return gram.Leading(**found.tensors)
        try:
            leading = gram.decompose(matrix, torch.float64 if kind == GRAM_FP64 else torch.float32)
        except torch.linalg.LinAlgError:
            return None
        self._kept.save(name, leading._asdict())
        return leading

    def _decompose(self, weight: Tensor, digest: str) -> Svd:
        import torch

        try:
            return Svd(*(part.contiguous() for part in torch.linalg.svd(weight, full_matrices=False)))
        except torch.linalg.LinAlgError:
            pass
        try:
            parts = torch.linalg.svd(weight.double().cpu(), full_matrices=False)
        except torch.linalg.LinAlgError as error:
            raise NotConverged(
                f"the singular value decomposition of a {tuple(weight.shape)} matrix does not converge, in fp64"
                f" neither: {error}"
            ) from None
        self.fallbacks[digest] = "fp64"
        return Svd(*(part.to(weight).contiguous() for part in parts))


class Truncation:
    """The leading components of one matrix `[m, n]`; holds its decomposition in memory once it has been cut."""

    def __init__(self, factors: Decomposer, matrix: Tensor) -> None:
        self._factors = factors
        self._matrix = matrix
        self._digest = tensor_digest(matrix)
        self._leading: dict[str, gram.Leading | None] = {}
        self._svd: Svd | None = None

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
        if self._svd is None:
            self._svd = self._factors.of(self._matrix)
        svd = self._svd
        rank = rank_of(svd.s)
        return Edit(
            svd.u[:, :rank] * svd.s[:rank],
            svd.vh[:rank],
            fallback=self._factors.fallbacks.get(self._digest),
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
        svd = self._factors.of(self._matrix)
        return svd.u[:, :largest] * svd.s[:largest], svd.vh[:largest]

    def _attempts(self) -> Iterator[tuple[str, gram.Leading]]:
        import torch

        for kind in (GRAM_FP64,) if self._matrix.dtype == torch.float64 else (GRAM_FP32, GRAM_FP64):
            if kind not in self._leading:
                self._leading[kind] = self._factors.leading(self._matrix, self._digest, kind)
            leading = self._leading[kind]
            if leading is not None:
                yield kind, leading


def _name(digest: str, kind: str, matrix: Tensor) -> str:
    return cache.name_of(digest, f"{kind}-{_VERSION}", matrix.device)
