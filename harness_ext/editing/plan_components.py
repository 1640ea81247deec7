"""What components lose, for a plan: from shapes alone, before anything is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from harness_ext.model.checkpoint import Checkpoint
from harness_ext.model.components import UNITS, feeders_of, lost_of
from harness_ext.model.layout import Layout, Matrix
from harness_ext.recipe.schema import Step, components_among
from harness_ext.search.policy_masks import units_among

Place = tuple[str, str | None]
"""A parameter, and the part of it; None for all."""


class Lost(NamedTuple):
    """Numbers that a matrix loses, of how many; those of its bias among both where rows take that along. is_sure:
    whether they are known before the recipe runs. by_row: whether rows go, and not columns.
    """

    numbers: int
    of: int
    is_sure: bool = True
    by_row: bool = False


def place_of(matrix: Matrix) -> Place:
    return matrix.parameter, matrix.part


def taken_by_masks(
    step: Step, matrices: Sequence[Matrix], layout: Layout, loaded: Checkpoint
) -> dict[str, dict[Place, Lost]]:
    """The numbers that each matrix, by `Matrix.key`, and what feeds it lose, biases among them, by their places, as if
    every layer lost as many units: which of them do, only the search tells. loaded: a checkpoint as `as_loaded` gives
    it.
    """
    assert step.masks is not None
    units = units_among(layout, matrices, step.masks)
    gone: Counter[str] = Counter()
    for share in units.shares:
        lost, layers = len(share.places) - share.left, len(share.keys)
        gone.update(
            {key: lost * (place + 1) // layers - lost * place // layers for place, key in enumerate(share.keys)}
        )
    by_itself = {key for share in units.shares if len(share.keys) == 1 for key in share.keys}
    found = {}
    for matrix in matrices:
        numbers = {place_of(matrix): matrix.shape[0] * matrix.shape[1]}
        for one in feeders_of(layout, matrix, UNITS).values():
            numbers[place_of(one)] = one.shape[0] * (one.shape[1] + (one.bias in loaded.tensors))
        units_gone, count = gone[matrix.key], units.counts[matrix.key]
        sure = matrix.key in by_itself
        found[matrix.key] = {
            place: Lost(units_gone * (own // count), own, sure, by_row=place != place_of(matrix))
            for place, own in numbers.items()
        }
    return found


def lost_by_components(
    step: Step, matrices: Sequence[Matrix], layout: Layout, loaded: Checkpoint
) -> dict[str, dict[Place, Lost]]:
    """The numbers that the component of each matrix, by `Matrix.key`, loses, biases among them. Of a search that tells
    the mean share of layers alone, at least, as if every layer lost it; nothing where its layers are not alike, since a
    large one may then keep more than the mean.
    """
    found = {matrix.key: _lost_by_component(step, matrix, layout, loaded) for matrix in matrices}
    if not tells_mean_share(step):
        return found
    kinds = {(matrix.role, *found[matrix.key].values()) for matrix in matrices}
    return found if len(kinds) == len({matrix.role for matrix in matrices}) else {key: {} for key in found}


def tells_mean_share(step: Step) -> bool:
    """Whether a search finds the share of its units that each layer keeps, under a mean over layers."""
    settings = step.parameters
    return step.is_search and settings.get("rule", "uniform") != "uniform" and "unit_fraction" in settings


def _lost_by_component(step: Step, matrix: Matrix, layout: Layout, loaded: Checkpoint) -> dict[Place, Lost]:
    """A column of the matrix for each unit (a row, of keys), and a row, with its bias, of the others; of values that
    are mixed by themselves the other way round.
    """
    kind = component_told(step, matrix)
    if kind is None or step.masks is not None:
        return {}

    def lost(role: str, total: int) -> int:
        fraction = step.parameters_of(matrix.key)["unit_fraction"]
        if tells_mean_share(step):  # layers round down what stays, each its own share
            return int((1 - fraction) * total + 1e-9)
        return lost_of(layout, kind, role, total, fraction)

    def rows_of(one: Matrix, role: str) -> Lost:
        row = one.shape[1] + (one.bias in loaded.tensors)
        return Lost(row * lost(role, one.shape[0]), row * one.shape[0], by_row=True)

    feeders, (rows, columns) = feeders_of(layout, matrix, kind), matrix.shape
    own = place_of(matrix)
    if kind == "unattended":
        reading, reads = feeders["o_proj"].shape
        return {
            own: rows_of(matrix, "v_proj"),
            place_of(feeders["o_proj"]): Lost(reading * lost("o_proj", reads), reading * reads),
        }
    beside = {place_of(one): rows_of(one, role) for role, one in feeders.items()}
    if kind == "scores":
        return {own: rows_of(matrix, "k_proj"), **beside}
    return {own: Lost(rows * lost(matrix.role or "", columns), rows * columns), **beside}


def component_told(step: Step, matrix: Matrix) -> str | None:
    """The kind of component that a matrix stands for, where the recipe tells the share of it that goes: of a search
    where it is the same in every layer, or the mean over them.
    """
    if step.is_search and step.parameters.get("rule") != "uniform" and not tells_mean_share(step):
        return None
    return next((kind for _, kind in components_among(step, [matrix])), None)
