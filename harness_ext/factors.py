"""Singular value decompositions, each made once: by digest of the matrix, kept on disk for the session.

A recipe, its control and the next recipe mostly ask for the factors of the same matrices. They are read back from a bounded scratch folder, so that memory holds those of one matrix.
The full decomposition by LAPACK (gesdd) in fp32; where that does not converge, once more in fp64 on the CPU, which the receipt then says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.methods import Svd
from harness_ext.weights import tensor_digest

if TYPE_CHECKING:
    from torch import Tensor

CACHE_BYTES = 16 << 30


class NotConverged(ArithmeticError):
    """A decomposition that failed in fp32 and in fp64."""


class Factors:
    """Decompositions on demand. folder: existing scratch folder, removed by the caller."""

    def __init__(self, folder: Path, limit_bytes: int = CACHE_BYTES) -> None:
        self._folder = folder
        self._room = limit_bytes
        self.fallbacks: dict[str, str] = {}

    def of(self, weight: Tensor) -> Svd:
        """The thin singular value decomposition of `[m, n]`, on the weight's device and dtype.

        Raises NotConverged.
        """
        from safetensors.torch import load_file, save_file

        digest = tensor_digest(weight)
        path = self._folder / f"{digest}.svd.safetensors"
        if path.exists():
            kept = load_file(path, device=str(weight.device))
            return Svd(kept["u"], kept["s"], kept["vh"])
        svd = self._decompose(weight, digest)
        size = sum(part.numel() * part.element_size() for part in svd)
        if size <= self._room:
            try:
                save_file({name: part.contiguous().cpu() for name, part in svd._asdict().items()}, path)
                self._room -= size
            except OSError:
                # A full scratch disk costs time, nothing else: the factors are computed again when next asked for.
                path.unlink(missing_ok=True)
                self._room = 0
        return svd

    def _decompose(self, weight: Tensor, digest: str) -> Svd:
        import torch

        try:
            return Svd(*torch.linalg.svd(weight, full_matrices=False))
        except torch.linalg.LinAlgError:
            pass
        try:
            parts = torch.linalg.svd(weight.double().cpu(), full_matrices=False)
        except torch.linalg.LinAlgError as error:
            raise NotConverged(f"the singular value decomposition of a {tuple(weight.shape)} matrix does not converge, in fp64 neither: {error}") from None
        self.fallbacks[digest] = "fp64"
        return Svd(*(part.to(weight) for part in parts))
