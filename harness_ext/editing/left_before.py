"""What a matrix has left that an earlier step of the recipe edited: its rank, and the rows and columns that were not
taken away. An edit that comes later gives nothing of that back unless it says so in its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def rank_left(values: Tensor, rank: int, before: int, dtype: torch.dtype) -> int:
    """The rank of what was written, `[m, n]`: that of the edit, or the lower one that the matrix had before, where what
    lies beyond it, `sum_(i > before) s_i^2 / sum s_i^2`, is no more than rounding to the stored dtype makes.
    """
    import torch

    squares = torch.linalg.svdvals(values.double()).square()
    rounding = torch.finfo(dtype).eps ** 2
    return before if bool(squares[before:].sum() <= rounding * squares.sum()) else rank


def places_left(values: Tensor, bias: Tensor | None, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which rows and columns are left of `[m, n]`, of those that an earlier step took some of: all but the ones that
    still hold zeros alone, in the bias `[m]` too. before: which it left, bool, by the names of a record.
    """
    rows = values.any(1) if bias is None else values.any(1) | bias.ne(0).to(values.device)
    filled = {"rows_kept": rows, "columns_kept": values.any(0)}
    return {name: left | filled[name].cpu() for name, left in before.items()}


def counted_left(places: Mapping[str, Tensor], shape: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns that is, of a matrix of this shape."""
    rows, columns = (
        int(places[name].sum()) if name in places else size
        for name, size in zip(("rows_kept", "columns_kept"), shape, strict=True)
    )
    return rows, columns
