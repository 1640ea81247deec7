"""One generator a matrix, so that neither order nor device changes what is drawn."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator

    from harness_ext.model.layout import Matrix


def generator_for(seed: int, matrix: Matrix) -> Generator:
    """A CPU generator of its own for each matrix, so that neither order nor device changes what is drawn."""
    return generator_named(f"{seed} {matrix.key}")


def generator_named(name: str) -> Generator:
    """A CPU generator of its own for each name, which begins with a seed."""
    import torch

    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
