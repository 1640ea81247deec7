"""Several matrices of a layer that are edited together, because only together can one be made smaller: the hidden units
of an MLP, the values of an attention head.

What is taken away is zero in the edited matrices, which keep their shapes: the model computes what the smaller one
would, and any model class runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.linalg.edits import DenseEdit

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.model.geometry import Heads
    from harness_ext.model.rotation import Rotation


class Component(NamedTuple):
    """The other matrices of a component, by role. weights: `[out, in]`, in fp32. biases: `[out]`, of those that have
    one, and of the matrix that the step names. heads: the attention geometry, None where it is unknown. rotation:
    what positions turn of queries and keys, None for nothing.
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    heads: Heads | None = None
    rotation: Rotation | None = None


class MatrixBeside(NamedTuple):
    """What becomes of another matrix of the component. values: `[m, n]`, zero where rows, or columns, were taken away.
    rows, columns: how many are left, None for all columns. bias: `[m]`, what its bias becomes, None where it stays or
    there is none. kept: as in `ComponentEdit`.
    """

    values: Tensor
    rows: int
    bias: Tensor | None = None
    columns: int | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class ComponentEdit(DenseEdit):
    """What becomes of a component. values: `[m, n]`, of the matrix that the step names, zero where columns, or rows,
    were taken away. columns, rows: how many of either are left, None for all. bias: `[m]`, what its bias becomes where
    it loses as many numbers as there are rows less, None where it stays or there is none. beside: the others, by role.
    kept: which of the rows, or columns, that it tells the number of are left, bool; by it those that several edits took
    away are counted once, and those of an edit that does not tell it by their number alone.
    """

    columns: int | None = field(default=None, kw_only=True)
    rows: int | None = field(default=None, kw_only=True)
    bias: Tensor | None = field(default=None, kw_only=True)
    beside: Mapping[str, MatrixBeside] = field(kw_only=True)
    kept: Tensor | None = field(default=None, kw_only=True)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Every tensor of the edit."""
        others = [part for one in self.beside.values() for part in (one.values, one.bias) if part is not None]
        return (self.values, *others) if self.bias is None else (self.values, self.bias, *others)
