"""What all edits of a recipe so far have left of a matrix: its rank, its rows and columns, and the numbers these hold.

A later edit gives back nothing that an earlier one left out, unless it says so in its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness_ext.calibration.context import StepContext
from harness_ext.linalg.components import ComponentEdit, MatrixBeside
from harness_ext.linalg.edits import AnyEdit, Edit
from harness_ext.model.components import gives_directions
from harness_ext.model.layout import Matrix
from harness_ext.model.size import stored_parameters
from harness_ext.recipe.schema import counted_as, method_of
from leaderboard.readers.receipt import DENSE, FACTORS

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = ("rows_kept", "columns_kept")
"""What a record calls the rows and the columns that are left."""


@dataclass(frozen=True)
class WhatIsLeft:
    """places: which rows, or columns, are left, bool, by the record's name for how many; counts: how many; nothing of
    either where none are lost. of_step: how many columns the step left by itself, where an earlier one had taken
    others: what its control takes by it. before, after: the numbers that the matrix held before all edits, and holds
    now, with its bias where rows take that along.
    """

    places: Mapping[str, Tensor]
    counts: Mapping[str, int]
    of_step: Mapping[str, int]
    rank: int
    before: int
    after: int


def what_is_left(context: StepContext, matrix: Matrix, edit: AnyEdit | MatrixBeside, stored: str = DENSE) -> WhatIsLeft:
    """What is left of a matrix as it was written, by an edit of this one or of its component. stored: as what."""
    if not isinstance(edit, ComponentEdit | MatrixBeside):
        rank = _rank_after(context, matrix, edit.rank)
        before, after = _held_by_matrix(context, matrix, edit, stored, rank)
        return WhatIsLeft({}, {}, {}, rank, before, after)
    places = _places_after(context, matrix, edit)
    own = _lost_by(matrix, edit)
    counts = own | {name: int(one.sum()) for name, one in places.items()}
    rank = min([edit.rank if isinstance(edit, ComponentEdit) else min(matrix.shape), *counts.values()])
    if not (isinstance(edit, ComponentEdit) and gives_directions(method_of(context.step).component)):
        rank = _rank_after(context, matrix, rank)
    columns = own.get("columns_kept")
    of_step = {} if columns is None or columns == counts["columns_kept"] else {"columns_of_step": columns}
    before, after = _held_in_component(context, matrix, edit, counts, rank)
    return WhatIsLeft(places, counts, of_step if isinstance(edit, ComponentEdit) else {}, rank, before, after)


def _lost_by(matrix: Matrix, edit: ComponentEdit | MatrixBeside) -> dict[str, int]:
    """How many rows and columns an edit by itself leaves, of either only where it takes some."""
    told = zip(_NAMES, (edit.rows, edit.columns), matrix.shape, strict=True)
    return {name: count for name, count, full in told if count is not None and count < full}


def _places_after(context: StepContext, matrix: Matrix, edit: ComponentEdit | MatrixBeside) -> dict[str, Tensor]:
    """Which rows, and columns, are left of a matrix as it was written, of either only where some are lost: by this
    edit, or by an earlier one where they still hold zeros alone.
    """
    found = _places_before(context, matrix)
    if edit.kept is not None:
        own = edit.kept.cpu()
        found |= {name: found[name] & own if name in found else own for name in _lost_by(matrix, edit)}
    return {name: left for name, left in found.items() if not bool(left.all())}


def _places_before(context: StepContext, matrix: Matrix) -> dict[str, Tensor]:
    """Which rows and columns are left of a matrix of those that earlier steps took some of: all but the ones that still
    hold zeros alone, in the bias too.
    """
    before = context.left.get(matrix.key, {})
    if not before:
        return {}
    weights = context.model.weights
    values, bias = weights.values(matrix), weights.bias_of(matrix)
    rows = values.any(1) if bias is None else values.any(1) | bias.ne(0).to(values.device)
    filled = dict(zip(_NAMES, (rows, values.any(0)), strict=True))
    return {name: left | filled[name].cpu() for name, left in before.items()}


def _rank_after(context: StepContext, matrix: Matrix, rank: int) -> int:
    """The rank of a matrix as it was written, `[m, n]`: that of the edit, or the lower one that the matrix had before,
    where what lies beyond it, `sum_(i > before) s_i^2 / sum s_i^2`, is no more than rounding to the stored dtype makes.
    """
    import torch

    weights, before = context.model.weights, context.ranks.get(matrix.key, rank)
    if before >= rank:
        return rank
    squares = torch.linalg.svdvals(weights.values(matrix).double()).square()
    rounding = torch.finfo(weights.dtype_of(matrix)).eps ** 2
    return before if bool(squares[before:].sum() <= rounding * squares.sum()) else rank


def _held_in_component(
    context: StepContext, matrix: Matrix, edit: ComponentEdit | MatrixBeside, counts: Mapping[str, int], rank: int
) -> tuple[int, int]:
    """The numbers before and after the edit of a component: the rows and columns that are left, as factors where an
    earlier step left the matrix at a rank at which that is smaller.
    """
    (rows, columns), shape = matrix.shape, _shape_left(counts, matrix.shape)
    biased = edit.bias is not None and "rows_kept" in counts
    numbers = stored_parameters(shape, rank, counted_as(context.step))
    return rows * (columns + biased), numbers + shape[0] * biased


def _held_by_matrix(context: StepContext, matrix: Matrix, edit: AnyEdit, stored: str, rank: int) -> tuple[int, int]:
    """The numbers before and after the edit of a single matrix: as factors where that is smaller, and as it is in a
    factored step; without the rows and columns that earlier steps took away.
    """
    step, (rows, columns) = context.step, matrix.shape
    if isinstance(edit, Edit) and edit.numbers is not None and not step.factored:
        return rows * columns, edit.numbers
    if stored == FACTORS:
        return rows * columns, stored_parameters(matrix.shape, edit.rank, counted_as(step))
    places = _places_before(context, matrix)
    shape = _shape_left({name: int(one.sum()) for name, one in places.items()}, matrix.shape)
    biased = shape[0] < rows and context.model.weights.bias_of(matrix) is not None
    numbers = shape[0] * shape[1] if step.factored else stored_parameters(shape, rank, counted_as(step))
    return rows * (columns + biased), numbers + shape[0] * biased


def _shape_left(counts: Mapping[str, int], shape: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (counts.get(name, size) for name, size in zip(_NAMES, shape, strict=True))
    return rows, columns
