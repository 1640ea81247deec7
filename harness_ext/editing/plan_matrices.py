"""What a recipe would leave of each matrix, from shapes alone: its rank, its numbers, and what its component loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

from harness_ext.calibration.experts import check_experts
from harness_ext.editing.plan_components import (
    Lost,
    Place,
    component_told,
    lost_by_components,
    place_of,
    taken_by_masks,
    tells_mean_share,
)
from harness_ext.editing.prime_units import check_prime_units, planned_split
from harness_ext.errors import BudgetTooSmall, located
from harness_ext.methods import registered_methods
from harness_ext.methods.search_registry import check_searchable, planned_trials
from harness_ext.model.checkpoint import Checkpoint
from harness_ext.model.components import COMPONENTS, UNITS, check_components
from harness_ext.model.layout import Layout, Matrix
from harness_ext.model.module_replacement import check_replaceable
from harness_ext.model.shard_files import TORCH_NAMES
from harness_ext.model.size import FACTORS, stored_parameters
from harness_ext.recipe.recipe import Recipe
from harness_ext.recipe.schema import Step, components_among, counted_as, has_prime_units, search_of
from harness_ext.training.trainer import check_trainable


class SharedFactor(NamedTuple):
    """A factor that several matrices of a step have in common. first: the matrix that counts it. size: its numbers."""

    step: int
    first: Place
    size: int


@dataclass(frozen=True)
class PlannedMatrix:
    """One matrix of one step. rank_after: None where only the weights or the calibration can tell. element_bytes: of a
    number as stored; dtype: its kind, by torch's name. stays_dense: whether the step computes it dense, though it
    computes others as factors. taken_away: numbers that go whatever its rank is, those in other matrices of its
    component among them; lost: what each of these loses, itself among them, by its place. counted_as: the format of low
    rank that its numbers are of. numbers: how many it takes where that is not what its rank says; of matrices that
    share a factor, on the mean. basis: that factor, which the first of them counts.
    """

    step: int
    method: str
    matrix: Matrix
    rank_after: int | None
    element_bytes: int
    dtype: str = "float32"
    stays_dense: bool = False
    taken_away: int = 0
    lost: tuple[tuple[Place, Lost], ...] = ()
    counted_as: str = FACTORS
    numbers: int | None = None
    basis: SharedFactor | None = None

    @property
    def takes_units(self) -> bool:
        """Whether whole hidden units, or heads, go with it, and no dimensions of each head."""
        method = registered_methods().get(self.method)
        is_of_units = method is not None and method.component == UNITS
        return bool(self.lost) and (is_of_units or self.matrix.role == COMPONENTS["mlp"].reader)

    @property
    def shape_after(self) -> tuple[int, int] | None:
        """Without the rows or columns that go with its component; None where only the run tells how many."""
        rows, columns = self.matrix.shape
        lost = dict(self.lost).get(place_of(self.matrix))
        if lost is None:
            return rows, columns
        if self.rank_after is None or not lost.is_sure:
            return None
        by_row = self.matrix.role in (COMPONENTS["scores"].reader, COMPONENTS["unattended"].reader)
        left = 1 - Fraction(lost.numbers, lost.of)
        return (int(rows * left), columns) if by_row else (rows, int(columns * left))

    @property
    def parameters_before(self) -> int:
        """Numbers in the dense matrix."""
        return self.matrix.shape[0] * self.matrix.shape[1]

    @property
    def parameters_after(self) -> int:
        """Numbers after the edit, stored at low rank where that is smaller; unchanged where the rank is not known
        yet, or a factored step leaves it dense; without all that its component loses, so that it may be below zero.
        """
        if self.rank_after is None or self.stays_dense or self.taken_away:
            return self.parameters_before - self.taken_away
        if self.numbers is not None:
            return self.numbers
        return stored_parameters(self.matrix.shape, self.rank_after, self.counted_as)


def torch_name(dtype: str) -> str:
    """Of a dtype that arithmetic is done in; fp32 for any other."""
    name = TORCH_NAMES.get(dtype, "float32")
    return name if name in ("float64", "float32", "float16", "bfloat16") else "float32"


def planned_matrices(recipe: Recipe, loaded: Checkpoint) -> tuple[PlannedMatrix, ...]:
    """Every matrix of every step, in order. loaded: a checkpoint as `as_loaded` gives it. Raises UserError where the
    recipe does not fit it.
    """
    return planned_in_layout(recipe, loaded, layout_of(loaded))


def layout_of(loaded: Checkpoint) -> Layout:
    """Where the matrices of a checkpoint lie, as `as_loaded` gives it."""
    shapes = {name: tensor.shape for name, tensor in loaded.tensors.items()}
    return Layout(loaded.config, shapes, loaded.shared, loaded.modules)


def planned_in_layout(recipe: Recipe, loaded: Checkpoint, layout: Layout) -> tuple[PlannedMatrix, ...]:
    """As `planned_matrices`, by the layout of the checkpoint."""
    planned: list[PlannedMatrix] = []
    for number, step in enumerate(recipe.steps):
        with located(recipe.place(number)):
            matrices = _selected(layout, step)
            away = lost_by_components(step, matrices, layout, loaded)
            own = [_losing(_planned(number, step, matrix, loaded), away[matrix.key]) for matrix in matrices]
            if step.masks is not None:
                lost = taken_by_masks(step, [item.matrix for item in own], layout, loaded)
                own = [_losing(item, lost[item.matrix.key]) for item in own]
            if not step.is_search and registered_methods()[step.method].shares:
                own = _sharing(step, own)
            planned += own if step.healing is None else _healed(own, planned)
    return tuple(planned)


def _sharing(step: Step, own: Sequence[PlannedMatrix]) -> list[PlannedMatrix]:
    """Matrices that share factors, at the ranks of their groups where the budget tells these without the weights."""
    from harness_ext.editing.sharing import groups_of
    from harness_ext.methods.basis_sharing import shared_numbers

    found = {item.matrix.key: item for item in own}
    settings = step.parameters
    for group in groups_of([item.matrix for item in own], settings["share"], settings["layers_in_group"]):
        keep, (rows, columns) = step.keep_of(group[0].key), group[0].shape
        if keep is None or keep.needs_singular_values:
            continue
        rank = keep.rank_for((len(group) * rows, columns))
        numbers = [shared_numbers((rows, columns), rank, place, len(group)) for place in range(len(group))]
        known: dict[str, Any] = {"rank_after": min(rank, rows, columns)}
        basis = SharedFactor(found[group[0].key].step, place_of(group[0]), numbers[0] - numbers[-1])
        if step.factored:
            known["stays_dense"] = not step.stores_factors((rows, columns), known["rank_after"])
        else:
            known["numbers"] = round(sum(numbers) / len(group))
        for matrix, count in zip(group, numbers, strict=True):
            less = 0 if step.factored else rows * columns - count
            known["basis"] = None if step.factored or len(group) == 1 else basis
            found[matrix.key] = replace(found[matrix.key], taken_away=less, **known)
    return list(found.values())


def _healed(own: Sequence[PlannedMatrix], earlier: Sequence[PlannedMatrix]) -> list[PlannedMatrix]:
    """Of the matrices of a step that heals, those that were edited before, at the ranks that they were left at."""
    left = {item.matrix.key: item for item in earlier}
    return [
        replace(item, rank_after=None if before.numbers else before.rank_after, stays_dense=before.stays_dense)
        for item in own
        if (before := left.get(item.matrix.key)) is not None
    ]


def _selected(layout: Layout, step: Step) -> Sequence[Matrix]:
    matrices = layout.select(step)
    check_components(layout, components_among(step, matrices))
    check_prime_units(step, matrices)
    if not step.is_search:
        check_experts(step, matrices)
    if step.trains:
        check_trainable(matrices)
    if step.factored:
        check_replaceable(matrices)
    if step.is_search:
        check_searchable(matrices)
        planned_trials(step.method, matrices, layout.layers, step.parameters)
        with suppress(BudgetTooSmall):  # by which a run loses this recipe, and goes on with others
            search_of(step).check(matrices, layout.layers, step.parameters)
    return matrices


def _planned(number: int, step: Step, matrix: Matrix, checkpoint: Checkpoint) -> PlannedMatrix:
    numbers = None
    with located(f"{matrix.key}: "):
        keep = step.keep_of(matrix.key)
        rank = (
            _rank_without_weights(step, matrix)
            if keep is None
            else None
            if keep.needs_singular_values or registered_methods()[step.method].shares
            else keep.rank_for(matrix.shape)
        )
        if keep is not None and rank is not None and has_prime_units(step):
            rank, numbers = planned_split(step, matrix, keep)
    stored = checkpoint.tensors[matrix.parameter]
    dense = bool(step.factored) and rank is not None and not step.stores_factors(matrix.shape, rank)
    dtype = torch_name(stored.dtype)
    return PlannedMatrix(
        number,
        step.method,
        matrix,
        rank,
        stored.element_bytes,
        dtype,
        dense,
        counted_as=counted_as(step),
        numbers=numbers,
    )


def _losing(item: PlannedMatrix, lost: Mapping[Place, Lost]) -> PlannedMatrix:
    """With what its component loses, by the place of each matrix."""
    return replace(item, lost=tuple(lost.items()), taken_away=sum(one.numbers for one in lost.values()))


def _rank_without_weights(step: Step, matrix: Matrix) -> int | None:
    """The rank that a method without a budget leaves, where its parameters alone tell it."""
    full = min(matrix.shape)
    if step.is_search:
        return full if component_told(step, matrix) is not None and not tells_mean_share(step) else None
    if registered_methods()[step.method].rank_from_weights:
        return None
    if step.parameters.get("share_of") == "all":
        return None
    return full - int(step.parameters["fraction"] * full + 1e-9) if "fraction" in step.parameters else full
