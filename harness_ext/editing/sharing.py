"""Matrices of consecutive layers that are edited together, as soon as all of them were learned about; with a refit to
the truncated model, once all matrices were truncated and its documents have gone through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from harness_ext.calibration.by_layer import Statistics, together
from harness_ext.errors import UserError, located
from harness_ext.methods.basis_sharing import BY_GROUPS, SharedBasis, groups_of, refitted_together, shared_basis
from harness_ext.recipe.schema import method_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.calibration.by_layer import Learned
    from harness_ext.calibration.context import StepContext
    from harness_ext.model.layout import Matrix
    from harness_ext.recipe.schema import Step


_MOMENT = "input_second_moment"
_FP32 = 4


def refits_groups(step: Step) -> bool:
    """Whether a step refits groups to the truncated model, through which its documents go once more."""
    return not step.is_search and method_of(step).shares and step.parameters.get("refit") == BY_GROUPS


def held_by_refit(step: Step, matrices: Sequence[Matrix]) -> int:
    """The bytes of all factors in fp32, which wait for what is learned of the truncated model; those of the matrices,
    which is more, where the budget does not tell.
    """
    if not refits_groups(step):
        return 0
    share = step.keep.param_fraction if step.keep is not None else None
    return round(_FP32 * (share or 1.0) * sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices))


def in_groups(context: StepContext, learned: Iterable[Learned], matrices: Sequence[Matrix]) -> Iterator[Learned]:
    """Groups with what they share, each as soon as the last of it was learned about: no more is held than what waits
    for its group.
    """
    return together(learned, _groups(context, matrices), partial(_shared, context))


def in_refitted_groups(
    context: StepContext, truncated: Iterable[Learned], learned: Iterable[Learned], matrices: Sequence[Matrix]
) -> Iterator[Learned]:
    """Groups with what they share, refitted to the model in which all of them are truncated. truncated: as `in_groups`
    gives them. learned: what is then learned of that model, asked for once it stands so. A matrix is again what it was
    when its group is given. The factors of all groups are held, in the weights' precision, on the CPU.

    Raises UserError where an earlier step edited one of the matrices, which could not be put back.
    """
    _check_unedited(context, matrices)
    model = _TruncatedModel(context)
    for group, statistics in truncated:
        model.truncate(group, statistics)
        del statistics
    yield from together(learned, _groups(context, matrices), model.refitted)


@dataclass
class _TruncatedModel:
    """A model in which all groups of a step are truncated, until each is refitted. bases: on the CPU, by the key of a
    group's first matrix. standing: the matrices that are truncated, by the name of the parameter.
    """

    context: StepContext
    bases: dict[str, SharedBasis] = field(default_factory=dict)
    standing: dict[str, list[Matrix]] = field(default_factory=dict)

    def truncate(self, group: Sequence[Matrix], statistics: Statistics) -> None:
        """Write the products of a group's factors, where it has any."""
        if any("shared_left" not in statistics[matrix.key] for matrix in group):
            return
        weights = self.context.model.weights
        like, lefts = weights.values(group[0]), []
        right = statistics[group[0].key]["shared_right"].to(like)
        for matrix in group:
            left = statistics[matrix.key]["shared_left"].to(right)
            weights.replace(matrix, left @ right)
            self.standing.setdefault(matrix.parameter, []).append(matrix)
            lefts.append(left.cpu())
        self.bases[group[0].key] = SharedBasis(tuple(lefts), right.cpu(), None)

    def refitted(self, group: Sequence[Matrix], statistics: Statistics) -> Statistics:
        """The statistics of a group in this model, with its refitted factors. Puts the group back, and with it all of
        the same parameters, which were learned about as well.
        """
        model = self.context.model.weights
        for parameter in {matrix.parameter for matrix in group}:
            for matrix in self.standing.pop(parameter, ()):
                model.replace(matrix, model.original(matrix))
        basis = self.bases.pop(group[0].key, None)
        if basis is None or any(_MOMENT not in values for values in statistics.values()):
            return statistics
        weights = [model.read(matrix) for matrix in group]
        there = SharedBasis(
            tuple(left.to(weight.device) for left, weight in zip(basis.lefts, weights, strict=True)),
            basis.right.to(weights[0].device),
            None,
        )
        return _with(group, statistics, refitted_together(there, weights, _moments(group, statistics, weights)))


def _check_unedited(context: StepContext, matrices: Sequence[Matrix]) -> None:
    edited = {key.partition(" ")[0] for key in context.ranks}
    for matrix in matrices:
        if matrix.parameter in edited:
            raise UserError(
                f"{matrix.key} was edited by an earlier step, and refit=group truncates all matrices, looks at the"
                " model, and starts again from the unedited one: put this step first, leave that matrix out, or set"
                " refit=layer"
            )


def _groups(context: StepContext, matrices: Sequence[Matrix]) -> list[list[Matrix]]:
    settings = context.step.parameters
    return groups_of(matrices, settings["share"], settings["layers_in_group"])


def _shared(context: StepContext, group: Sequence[Matrix], statistics: Statistics) -> Statistics:
    """The statistics of a group with its factors; as they are where one has none, as an expert may."""
    if any(_MOMENT not in values for values in statistics.values()):
        return statistics
    weights = [context.model.weights.read(matrix) for matrix in group]
    keep = context.step.keep_of(group[0].key)
    assert keep is not None, "its schema asks for one"
    with located(f"{group[0].key}: "):
        found = shared_basis(weights, _moments(group, statistics, weights), keep, context.step.parameters["refit"])
    return _with(group, statistics, found)


def _moments(group: Sequence[Matrix], statistics: Statistics, weights: Sequence[Tensor]) -> list[Tensor]:
    """The second moments of a group, each where its weight is."""
    return [statistics[matrix.key][_MOMENT].to(weight.device) for matrix, weight in zip(group, weights, strict=True)]


def _with(group: Sequence[Matrix], statistics: Statistics, found: SharedBasis) -> Statistics:
    import torch

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
