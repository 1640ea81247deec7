"""One generator a matrix, so that neither order nor device changes what is drawn."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator

    from harness_ext.model.layout import Matrix


def generator_for(seed: int, matrix: Matrix) -> Generator:
    """A CPU generator of its own for each matrix, so that neither order nor device changes what is drawn."""
    import torch

    digest = hashlib.sha256(f"{seed} {matrix.key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
