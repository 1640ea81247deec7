"""Edits of one matrix on trial: several weights that could stand in its place, all computed in one pass.

Truncations of one decomposition are nested: the outputs of the larger rank are those of the smaller plus a few
components more, so that all of them together cost little more than the largest. Where the model computes in half
precision, the weights on trial are the rounded ones that an edit would write, so that what is tried is what would be
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Nested:
    """`W_r = left[:, :r] @ right[:r]` for several r. left `[m, k]`, right `[k, n]`, in fp32 (fp64); shifts
    `[alternatives, m]`: what is added to the bias, or None.
    """

    left: Tensor
    right: Tensor
    ranks: tuple[int, ...]
    shifts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ranks)

    def only(self, places: Sequence[int]) -> Nested:
        """Some of the alternatives."""
        return replace(
            self,
            ranks=tuple(self.ranks[place] for place in places),
            shifts=None if self.shifts is None else self.shifts[list(places)],
        )

    def weight(self, place: int) -> Tensor:
        """One of the weights, `[m, n]`."""
        rank = self.ranks[place]
        return self.left[:, :rank] @ self.right[:rank]

    def outputs(self, inputs: Tensor) -> Tensor:
        """`W_r x` of every alternative: `[alternatives, rows, m]` for inputs `[rows, n]`."""
        import torch

        coordinates = inputs @ self.right[: max(self.ranks)].T
        outputs = inputs.new_empty(len(self.ranks), inputs.shape[0], self.left.shape[0])
        before: tuple[int, Tensor] | None = None
        for place in sorted(range(len(self.ranks)), key=lambda place: self.ranks[place]):
            rank, start = self.ranks[place], before[0] if before else 0
            left, own = self.left[:, start:rank].T, coordinates[:, start:rank]
            (
                torch.mm(own, left, out=outputs[place])
                if before is None
                else torch.addmm(before[1], own, left, out=outputs[place])
            )
            before = rank, outputs[place]
        return outputs


@dataclass(frozen=True)
class Dense:
    """Any weights, `[alternatives, m, n]`, in the dtype in which they are multiplied."""

    weights: Tensor
    shifts: Tensor | None = None

    def __len__(self) -> int:
        return self.weights.shape[0]

    def only(self, places: Sequence[int]) -> Dense:
        """Some of the alternatives."""
        return Dense(self.weights[list(places)], None if self.shifts is None else self.shifts[list(places)])

    def weight(self, place: int) -> Tensor:
        """One of the weights, `[m, n]`."""
        return self.weights[place]

    def outputs(self, inputs: Tensor) -> Tensor:
        """See `Nested.outputs`."""
        return inputs @ self.weights.transpose(1, 2)


@dataclass(frozen=True)
class Grouped:
    """Rows in groups, each with nested truncations of its own. parts: the places of the rows `[rows of the group]`, and
    the group's alternatives; together they are all rows.
    """

    parts: tuple[tuple[Tensor, Nested], ...]
    shifts: None = None

    def __len__(self) -> int:
        return len(self.parts[0][1])

    def only(self, places: Sequence[int]) -> Grouped:
        """Some of the alternatives."""
        return Grouped(tuple((rows, part.only(places)) for rows, part in self.parts))

    def weight(self, place: int) -> Tensor:
        """One of the weights, `[m, n]`."""
        weights = [part.weight(place) for _, part in self.parts]
        whole = weights[0].new_empty(sum(map(len, weights)), weights[0].shape[1])
        for (rows, _), weight in zip(self.parts, weights, strict=True):
            whole[rows] = weight
        return whole

    def outputs(self, inputs: Tensor) -> Tensor:
        """See `Nested.outputs`."""
        outputs = inputs.new_empty(len(self), inputs.shape[0], sum(len(rows) for rows, _ in self.parts))
        for rows, part in self.parts:
            outputs[..., rows] = part.outputs(inputs)
        return outputs


Alone = Nested | Dense | Grouped
"""Alternatives of one kind."""


@dataclass(frozen=True)
class Joined:
    """Alternatives of several kinds in a row, none with a shift of the bias."""

    parts: tuple[Alone, ...]
    shifts: None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def only(self, places: Sequence[int]) -> Joined:
        """Some of the alternatives; places ascend."""
        chosen: list[Alone] = []
        start = 0
        for part in self.parts:
            own = [place - start for place in places if start <= place < start + len(part)]
            chosen += [part.only(own)] if own else []
            start += len(part)
        return Joined(tuple(chosen))

    def weight(self, place: int) -> Tensor:
        """One of the weights, `[m, n]`."""
        for part in self.parts:
            if place < len(part):
                return part.weight(place)
            place -= len(part)
        raise IndexError(place)

    def outputs(self, inputs: Tensor) -> Tensor:
        """See `Nested.outputs`."""
        import torch

        return torch.cat([part.outputs(inputs) for part in self.parts])


Alternatives = Alone | Joined


def as_computed(alternatives: Alternatives, dtype: torch.dtype) -> Alternatives:
    """The alternatives as the model would compute with them once written in its dtype: nested ones stay so in fp32 and
    fp64, where rounding is far below what a score shows.
    """
    if isinstance(alternatives, Joined):
        return Joined(tuple(_alone_as_computed(part, dtype) for part in alternatives.parts))
    return _alone_as_computed(alternatives, dtype)


def _alone_as_computed(alternatives: Alone, dtype: torch.dtype) -> Alone:
    import torch

    if dtype in (torch.float32, torch.float64):
        if isinstance(alternatives, Nested):
            return _in_one_layout(alternatives, dtype)
        if isinstance(alternatives, Grouped):
            return Grouped(tuple((rows, _in_one_layout(part, dtype)) for rows, part in alternatives.parts))
    weights = (
        alternatives.weights
        if isinstance(alternatives, Dense)
        else torch.stack([alternatives.weight(place) for place in range(len(alternatives))])
    )
    return Dense(weights.to(dtype), alternatives.shifts)


def _in_one_layout(nested: Nested, dtype: torch.dtype) -> Nested:
    """Copies of one layout, whether the factors were just computed or read back: products of other layouts round
    otherwise.
    """
    import torch

    return replace(
        nested,
        left=nested.left.to(dtype).T.clone(memory_format=torch.contiguous_format).T,
        right=nested.right.to(dtype).clone(memory_format=torch.contiguous_format),
    )
