"""A decomposed matrix, and what an edit makes of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


RankRule = Callable[["Tensor"], int]
"""The number of components to keep, from the singular values `[min(m, n)]`, descending."""


class MadeFrom(NamedTuple):
    """What a matrix was made from, and how: by this its decomposition is found again, where the matrix itself has no
    name. weight: as the method was given it. how: a word. others: small tensors, all that it depends on besides.
    """

    weight: Tensor
    how: str
    others: tuple[Tensor, ...] = ()


class Truncate(Protocol):
    """The best approximation of a matrix `[m, n]`, the weight or one made from it, at the rank that a rule gives: its
    error exceeds the least possible by at most 1e-5 of that, in fp32.
    """

    def __call__(self, matrix: Tensor, rank_of: RankRule, made_from: MadeFrom | None = None) -> Edit:
        """made_from: for a matrix made from the weight, so that its decomposition is found again."""


class Svd(NamedTuple):
    """`W = U diag(s) Vh`, thin: U `[m, r]`, s `[r]` descending, Vh `[r, n]`, with r = min(m, n), in fp32."""

    u: Tensor
    s: Tensor
    vh: Tensor


@dataclass(frozen=True)
class Edit:
    """What becomes of one matrix: `W' = left @ right` of the stated rank, and `b' = b + bias_shift`.

    left: `[m, r]`. right: `[r, n]`. bias_shift: `[m]` or None for no change. Rank 0 (r = 0) is the zero matrix.
    fallback: where the method could not go its way, a word for the way it took instead; the receipt has it.
    decomposition: a word for where the factors are from, and excess_error: the bound or estimate
    found with it of `error / least possible error - 1`; the receipt has these as well.
    unchanged: whether W' is W, so that nothing is to be written: the product of factors would differ by rounding.
    numbers: how many it takes where not those of its factors or of W, as where a factor is another matrix's as well.
    """

    left: Tensor
    right: Tensor
    bias_shift: Tensor | None = None
    fallback: str | None = None
    decomposition: str | None = None
    excess_error: float | None = None
    unchanged: bool = False
    numbers: int | None = None

    @property
    def rank(self) -> int:
        """The number of components kept, r."""
        return self.left.shape[1]

    def weight(self) -> Tensor:
        """The dense product, `[m, n]`."""
        return self.left @ self.right

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Every tensor of the edit."""
        return tuple(part for part in (self.left, self.right, self.bias_shift) if part is not None)


@dataclass(frozen=True)
class DenseEdit:
    """What becomes of one matrix where that is not of low rank: sparse matrices and added noise.

    values: `[m, n]`. It counts as of full rank, and as holding all of its m n numbers, zeros too: a matrix with
    scattered zeros, stored and multiplied as the dense one that it is, saves nothing.
    """

    values: Tensor
    fallback: str | None = None
    bias_shift: None = None
    decomposition: str | None = None
    excess_error: None = None
    unchanged: bool = False

    @property
    def rank(self) -> int:
        """The full rank, min(m, n), by convention: nothing is factored."""
        return min(self.values.shape)

    def weight(self) -> Tensor:
        """The matrix, `[m, n]`."""
        return self.values

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Every tensor of the edit."""
        return (self.values,)


AnyEdit = Edit | DenseEdit
