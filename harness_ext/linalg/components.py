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


def left_of(total: int, fraction: float) -> int:
    """How many of so many units stay at a share of them: rounded down, and one at least."""
    return max(1, int(fraction * total + 1e-9))


class Component(NamedTuple):
    """The other matrices of a component, by role. weights: `[out, in]`, in fp32. biases: `[out]`, of those that have
    one. heads: the attention geometry, None where it is unknown.
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    heads: Heads | None = None


class MatrixBeside(NamedTuple):
    """What becomes of another matrix of the component. values: `[m, n]`, zero where rows were taken away. rows: how
    many are left. bias: `[m]`, what its bias becomes, None where it has none.
    """

    values: Tensor
    rows: int
    bias: Tensor | None = None


@dataclass(frozen=True)
class ComponentEdit(DenseEdit):
    """What becomes of a component. values: `[m, n]`, of the matrix that reads what the others make, zero where columns
    were taken away. columns: how many are left. beside: the others, by role.
    """

    columns: int = field(kw_only=True)
    beside: Mapping[str, MatrixBeside] = field(kw_only=True)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Every tensor of the edit."""
        others = [part for one in self.beside.values() for part in (one.values, one.bias) if part is not None]
        return (self.values, *others)
