"""Zero-sum truncation in stages, with a correction between them (after arXiv:2602.02848): what one truncation of the
whole model leaves is pulled back towards the original along gradients of the loss, and all is scored and truncated
again, at the same budget.

It ends in ordinary steps, two or three a stage: `feature_space` with a rank for each matrix, `restore` for those that
an earlier stage cut and this one leaves dense, and `pull_back`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from harness_ext.errors import UserError
from harness_ext.methods.correction import PULL_BACK, RESTORE
from harness_ext.methods.search_registry import Fraction, SearchResult, checking, gathering, search
from harness_ext.search.factorisations import step_of
from harness_ext.search.zero_sum import (
    Align,
    Ridge,
    agreement,
    allotted,
    check_floors,
    effects_of,
    least_ranks,
    nothing_smaller,
)

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator

Edited = Callable[["Matrix", Mapping[str, "Tensor"]], "Tensor"]
"""Makes the new values of a matrix from its statistics."""


@checking(check_floors)
@gathering(times=lambda settings: settings["stages"])
@search(
    summary="As zero_sum, several times over: between two truncations the model is pulled back along gradients.",
    trials=lambda shapes, settings: int(any(min(shape) > 1 for shape in shapes)),
    statistics=("input_second_moment", "singular_value_gradients", "batch_gradients"),
    takes_on=True,
    revision=2,
)
def zero_sum_staged(
    evaluator: CandidateEvaluator,
    /,
    *,
    param_fraction: Fraction = 0.8,
    min_fraction: Fraction | None = None,
    ridge: Ridge = 1e-4,
    stages: Annotated[int, Field(ge=1)] = 6,
    directions: Annotated[int, Field(ge=1)] = 1,
    align: Align = None,
) -> SearchResult:
    """param_fraction, min_fraction, ridge, align: see `zero_sum`. stages: how often all matrices are scored and
    truncated, each time to the whole budget; 1 is `zero_sum`. directions: on how many gradients a correction is
    projected (`pull_back`), each of one of the sixteen batches of the documents, another one in every stage; published
    is one text of 1,024 tokens. A matrix that a stage leaves dense is the original again, as published.

    Nothing is tried before the outcome; its score is the one trial. Raises BudgetTooSmall where the least ranks
    leave more than the budget, and UserError where an earlier step edited one of the matrices: they are pulled towards
    the unedited model.
    """
    shapes = {matrix.key: matrix.shape for matrix in evaluator.matrices}
    floors = least_ranks(shapes, min_fraction, align)
    _check_unedited(evaluator)
    run, found = _Stages(evaluator, ridge, directions), []
    for stage in range(stages):
        if stage and not run.pull_back(stage - 1):
            break
        effects = effects_of(evaluator, ridge)
        found.append(allotted(shapes, effects, param_fraction, floors, align))
        run.truncate(found[-1], stage)
    evaluator.context.progress.advance(1)
    removed = sum(effect for key, rank in found[-1].items() for effect in effects[key][rank:])
    notes = [f"the predicted change of the loss at the last of {len(found)} stages is {removed:+.3g} nats"]
    if len(found) > 1:
        notes.append(f"from the first stage to the last: {agreement(shapes, found[0], found[-1], 'in both')}")
    steps = tuple(run.steps) if found[0] else ()
    return SearchResult(steps, tuple(notes), reason="" if steps else nothing_smaller(param_fraction))


def _check_unedited(evaluator: CandidateEvaluator) -> None:
    edited = [matrix.key for matrix in evaluator.matrices if matrix.key in evaluator.context.ranks]
    if edited:
        raise UserError(
            f"{edited[0]} was edited by an earlier step, and stages pull matrices back towards the unedited model: put"
            " this step first, leave that matrix out, or use zero_sum"
        )


@dataclass
class _Stages:
    """The stages so far. ranks: of the matrices that are cut as the model stands, by `Matrix.key`. steps: what leads
    there.
    """

    evaluator: CandidateEvaluator
    ridge: float | None
    directions: int

    def __post_init__(self) -> None:
        self.ranks: Mapping[str, int] = {}
        self.steps: list[dict[str, Any]] = []

    def truncate(self, ranks: Mapping[str, int], stage: int) -> None:
        """Cut matrices to these ranks, and make those originals again that are dense now and were not before."""
        from harness_ext.methods import Keep
        from harness_ext.methods.feature_space import feature_space

        def cut(matrix: Matrix, learned: Mapping[str, Tensor]) -> Tensor:
            weight = self.evaluator.standing_weight(matrix)
            return feature_space(
                weight,
                input_second_moment=learned["input_second_moment"].to(weight.device),
                input_mean_with_sinks=weight.new_zeros(matrix.shape[1]),
                keep=Keep(rank=ranks[matrix.key]),
                centred=False,
                bias=False,
                ridge=self.ridge,
            ).weight()

        edits = self._learned(ranks, "input_second_moment", cut)
        whole = [matrix for matrix in self.evaluator.matrices if matrix.key in self.ranks.keys() - ranks.keys()]
        if ranks:
            ridge = {} if self.ridge is None else {"ridge": self.ridge}
            self.steps.append(step_of(self.evaluator, "feature_space", ranks) | ridge)
        if whole:
            self.steps.append({"method": RESTORE, "matrices": [matrix.key for matrix in whole]})
        for matrix, weight in [*edits.items(), *((matrix, self.evaluator.weight(matrix)) for matrix in whole)]:
            self.evaluator.take(matrix, weight, note=[stage, ranks.get(matrix.key)])
        self.ranks = ranks

    def pull_back(self, stage: int) -> bool:
        """Correct all matrices that are cut; whether there are any."""
        from harness_ext.methods.correction import pull_back

        def pulled(matrix: Matrix, learned: Mapping[str, Tensor]) -> Tensor:
            weight = self.evaluator.standing_weight(matrix)
            gradients = learned["batch_gradients"].to(weight.device)
            return pull_back(
                weight,
                original=self.evaluator.weight(matrix),
                batch_gradients=gradients,
                directions=self.directions,
                first=first,
            ).weight()

        first = stage * self.directions
        edits = self._learned(self.ranks, "batch_gradients", pulled)
        if not edits:
            return False
        assert self.evaluator.step.calibration is not None, "a search has calibration documents"
        self.steps.append(
            {
                "method": PULL_BACK,
                "matrices": [matrix.key for matrix in edits],
                "directions": self.directions,
                "first": first,
                "calibration": self.evaluator.step.calibration.model_dump(mode="json"),
            }
        )
        for matrix, weight in edits.items():
            self.evaluator.take(matrix, weight, note=[stage, "pulled back"])
        return True

    def _learned(self, ranks: Mapping[str, int], name: str, edited: Edited) -> dict[Matrix, Tensor]:
        """The edits of some matrices, all made of the model as it stands now, in its dtype."""
        own = [matrix for matrix in self.evaluator.matrices if matrix.key in ranks]
        made: dict[Matrix, Tensor] = {}
        for group, learned in self.evaluator.statistics.gather_in_parts(own, frozenset({name})) if own else ():
            for matrix in group:
                stored = self.evaluator.lm.model.get_parameter(matrix.parameter)
                made[matrix] = edited(matrix, learned[matrix.key]).to(stored)
        return {matrix: made[matrix] for matrix in own}
