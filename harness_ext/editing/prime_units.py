"""Which hidden units of each MLP a step keeps as they are: told from what `down_proj` reads, for all its matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness_ext.calibration.by_layer import Statistics, together
from harness_ext.errors import UserError
from harness_ext.methods.sola import light_keep, light_of, prime_of, split_numbers
from harness_ext.model.components import COMPONENTS, mlps_among
from harness_ext.model.seeding import generator_for
from harness_ext.recipe.schema import has_prime_units

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.calibration.by_layer import Learned
    from harness_ext.calibration.context import StepContext
    from harness_ext.methods.budget import Keep
    from harness_ext.model.layout import Matrix
    from harness_ext.recipe.schema import Step

_READER = COMPONENTS["mlp"].reader


def check_prime_units(step: Step, matrices: Sequence[Matrix]) -> None:
    """Raise UserError, in a sentence, for the first matrix of an MLP whose prime units a step could not tell."""
    for mlp in mlps_among(matrices) if has_prime_units(step) else ():
        readers = [matrix for matrix in mlp if matrix.role == _READER]
        first = mlp[0]
        if first.expert is not None:
            raise UserError(
                f"{first.key}: units of experts cannot be prime, since each expert sees few tokens: set prime=0, or"
                " choose another method, such as svd-llm"
            )
        if len(readers) != 1:
            raise UserError(
                f"{first.key}: which units are prime is told from what the {_READER} of its layer reads, of which the"
                f" step has {len(readers)}: add {_READER} to matrices, or set prime=0"
            )
        for matrix in mlp:
            if matrix is not readers[0] and matrix.shape[0] != readers[0].shape[1]:
                raise UserError(
                    f"{readers[0].key} reads {readers[0].shape[1]} numbers and {matrix.key} makes {matrix.shape[0]}:"
                    " they are not of the same units; set prime=0, or leave one of them out"
                )


def with_prime_units(context: StepContext, learned: Iterable[Learned], matrices: Sequence[Matrix]) -> Iterator[Learned]:
    """The matrices of each MLP together, as soon as all of them were learned about, each with its prime units; every
    other matrix by itself, with none.
    """
    mlps = mlps_among(matrices) if has_prime_units(context.step) else []
    inside = {matrix.key for mlp in mlps for matrix in mlp}
    alone = [[matrix] for matrix in matrices if matrix.key not in inside]
    return together(learned, [*alone, *mlps], partial(_primed, context))


def _primed(context: StepContext, group: Sequence[Matrix], statistics: Statistics) -> Statistics:
    masks = _masks(context, group, statistics)
    return {
        matrix.key: {**statistics[matrix.key], "prime_units": mask} for matrix, mask in zip(group, masks, strict=True)
    }


def _masks(context: StepContext, group: Sequence[Matrix], statistics: Statistics) -> list[Tensor]:
    """Which rows of each matrix are prime, `[m, 1]`, or which columns, `[1, n]`; none, `[1, 1]`, where it has no units
    of an MLP.
    """
    import torch

    step = context.step
    reader = next((matrix for matrix in group if matrix.role == _READER), None)
    if reader is None or not has_prime_units(step):
        return [torch.zeros(1, 1, dtype=torch.bool) for _ in group]
    magnitude = statistics[reader.key].get("input_magnitude") if step.parameters["ranking"] != "random" else None
    chosen = prime_of(magnitude, reader.shape[1], step.parameters["prime"], generator_for(step.seed, reader))
    return [chosen[None] if matrix is reader else chosen[:, None] for matrix in group]


def light_shape(step: Step, role: str | None, shape: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns of a matrix that a step truncates: all but those of prime units."""
    return light_of(role, shape, step.parameters["prime"]) if has_prime_units(step) else shape


def is_below_one(step: Step, role: str | None, shape: tuple[int, int]) -> bool:
    """Whether the budget of a matrix comes to less than one component of what a step truncates of it."""
    light = light_shape(step, role, shape)
    return step.keep is not None and light_keep(step.keep, shape, light).is_below_one(light)


def planned_split(step: Step, matrix: Matrix, keep: Keep) -> tuple[int, int]:
    """The rank at which a step leaves a matrix, and how many numbers, as its shape alone tells them. Raises UserError
    where its prime units alone take more than the budget.
    """
    shape, light = matrix.shape, light_shape(step, matrix.role, matrix.shape)
    rank = light_keep(keep, shape, light).rank_for(light)
    kept = shape[0] - light[0] + shape[1] - light[1]
    return min(*shape, kept + rank), split_numbers(shape, light, rank)
