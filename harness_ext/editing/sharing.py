"""Matrices of consecutive layers that are edited together, as soon as all of them were learned about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness_ext.errors import located
from harness_ext.methods.basis_sharing import shared_basis

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.calibration.by_layer import Learned
    from harness_ext.calibration.context import StepContext
    from harness_ext.model.layout import Matrix

_MOMENT = "input_second_moment"


def groups_of(matrices: Sequence[Matrix], roles: Sequence[str], size: int) -> list[list[Matrix]]:
    """The matrices in groups that share: of one role, part and shape, `size` at a time in the order of the layers; each
    other matrix by itself.
    """

    def kind(matrix: Matrix) -> tuple[str, ...]:
        if matrix.role not in roles or matrix.expert is not None or matrix.layer is None:
            return (matrix.key,)
        return (str(matrix.role), str(matrix.part), str(matrix.shape))

    alike: dict[tuple[str, ...], list[Matrix]] = {}
    for matrix in matrices:
        alike.setdefault(kind(matrix), []).append(matrix)
    return [
        group[start : start + size]
        for group in (sorted(own, key=lambda matrix: matrix.layer or 0) for own in alike.values())
        for start in range(0, len(group), size)
    ]


def in_groups(context: StepContext, learned: Iterable[Learned], matrices: Sequence[Matrix]) -> Iterator[Learned]:
    """Groups with what they share, each as soon as the last of it was learned about: no more is held than what waits
    for its group.
    """
    step = context.step
    settings = step.parameters
    waiting = groups_of(matrices, settings["share"], settings["layers_in_group"])
    known: dict[str, Mapping[str, Tensor]] = {}
    for part, statistics in learned:
        known |= {matrix.key: statistics.get(matrix.key, {}) for matrix in part}
        ready = [group for group in waiting if all(matrix.key in known for matrix in group)]
        waiting = [group for group in waiting if group not in ready]
        for group in ready:
            yield group, _shared(context, group, {matrix.key: known.pop(matrix.key) for matrix in group})


def _shared(
    context: StepContext, group: Sequence[Matrix], statistics: Mapping[str, Mapping[str, Tensor]]
) -> Mapping[str, Mapping[str, Tensor]]:
    """The statistics of a group with its factors; as they are where one has none, as an expert may."""
    import torch

    if any(_MOMENT not in values for values in statistics.values()):
        return statistics
    weights = [context.model.weights.read(matrix) for matrix in group]
    moments = [statistics[matrix.key][_MOMENT].to(weight.device) for matrix, weight in zip(group, weights, strict=True)]
    keep = context.step.keep_of(group[0].key)
    assert keep is not None, "its schema asks for one"
    with located(f"{group[0].key}: "):
        found = shared_basis(weights, moments, keep, context.step.parameters["refit"])
    return {
        matrix.key: {
            **statistics[matrix.key],
            "shared_left": left,
            "shared_right": found.right,
            "shared_place": torch.tensor([place, len(group)]),
        }
        for place, (matrix, left) in enumerate(zip(group, found.lefts, strict=True))
    }


def sharing_note(counts: Sequence[int]) -> str | None:
    """What is to be known of how a model with shared bases is counted. counts: of each matrix edited so, how many share
    its basis.
    """
    shared = sum(count > 1 for count in counts)
    if not shared:
        return None
    return (
        f"{shared} matrices share their right factor with those of other layers, and the parameters count each such"
        " factor once; this model, and what is exported of it, holds it once for every matrix, and computes as much"
    )
