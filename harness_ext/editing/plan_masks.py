"""What masks take away, for a plan: from shapes alone, before any is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness_ext.model.checkpoint import Checkpoint
from harness_ext.model.components import UNITS, feeders_of
from harness_ext.model.layout import Layout, Matrix
from harness_ext.recipe.schema import Step
from harness_ext.search.policy_masks import units_among

Place = tuple[str, str | None]
"""A parameter, and the part of it; None for all."""


def place_of(matrix: Matrix) -> Place:
    return matrix.parameter, matrix.part


def taken_by_masks(
    step: Step, matrices: Sequence[Matrix], layout: Layout, loaded: Checkpoint
) -> dict[str, dict[Place, int]]:
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
    found = {}
    for matrix in matrices:
        numbers = {place_of(matrix): matrix.shape[0] * matrix.shape[1]}
        for one in feeders_of(layout, matrix, UNITS).values():
            numbers[place_of(one)] = one.shape[0] * (one.shape[1] + (one.bias in loaded.tensors))
        units_gone, count = gone[matrix.key], units.counts[matrix.key]
        found[matrix.key] = {place: units_gone * (own // count) for place, own in numbers.items()}
    return found
