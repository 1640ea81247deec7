"""How many units each layer keeps, by a rule on how far it turns its hidden states; the same share for the queries and
keys, the values and the hidden units of a layer, since the price of a layer is told of it as a whole.

Nothing is tried before the outcome: ordinary steps, one for each kind of component, with a share for each matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness_ext.errors import UserError
from harness_ext.methods.layer_budgets import LayerRule, LayerShares, by_angle, by_influence
from harness_ext.methods.search_registry import Fraction, SearchResult, of_components, search
from harness_ext.methods.unit_selection import Ranking

if TYPE_CHECKING:
    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator

_METHODS = {
    "k_proj": "select_coordinates",
    "v_proj": "mix_unattended_values",
    "o_proj": "mix_values",
    "down_proj": "mlp_select",
}
"""By the role of the matrix that stands for a component, in the order of the steps."""
_LEAST_SHARE = 1e-6


@of_components({"k_proj": "scores", "v_proj": "unattended", "o_proj": "values", "down_proj": "mlp"})
@search(
    summary="A share of units for every layer under one mean, by how far the layer turns its hidden states.",
    trials=lambda shapes, settings: int(bool(shapes)),
    # the steps that it finds gather it
    statistics=("input_second_moment",),
)
def allocate_units(
    evaluator: CandidateEvaluator,
    /,
    *,
    unit_fraction: Fraction = 0.8,
    rule: LayerRule = "block-influence",
    epsilon: Annotated[float, Field(gt=0)] = 0.15,
    cap: Fraction = 0.8,
    ranking: Ranking = "leverage",
    refit: bool | Literal["auto"] = True,
) -> SearchResult:
    """The rules are those of `harness_ext.methods.layer_budgets`. unit_fraction: the mean over layers of the share that
    stays. epsilon, cap: of `block-influence`; a small epsilon cuts some layers far more than others, and none loses
    more than the cap. ranking, refit: of hidden units, as in `mlp_select`. The values are mixed by those of single
    tokens where `v_proj` is named, by attended ones where `o_proj` is.
    """
    _check_mixed_once(evaluator.matrices)
    if unit_fraction == 1:
        return SearchResult((), reason="its budget, unit_fraction 1, takes no units away")
    shares = _shares(evaluator, 1 - unit_fraction, rule, epsilon, cap)
    settings = {"mlp_select": {"ranking": ranking, "refit": refit}}
    steps = tuple(
        _step(evaluator, method, own, shares.removed) | settings.get(method, {})
        for role, method in _METHODS.items()
        if (own := [matrix for matrix in evaluator.matrices if matrix.role == role])
    )
    evaluator.context.progress.advance(1)
    return SearchResult(steps, (_told(rule, epsilon, shares),))


def _check_mixed_once(matrices: Sequence[Matrix]) -> None:
    layers = {role: {matrix.layer for matrix in matrices if matrix.role == role} for role in ("v_proj", "o_proj")}
    if both := layers["v_proj"] & layers["o_proj"]:
        raise UserError(
            f"v_proj and o_proj of layer {min(layer or 0 for layer in both)} are both named, and its values would be"
            " mixed twice: name v_proj to mix them by single tokens, or o_proj to mix them by attended ones"
        )


def _shares(evaluator: CandidateEvaluator, removed: float, rule: LayerRule, epsilon: float, cap: float) -> LayerShares:
    if rule == "uniform":
        return LayerShares({matrix.layer or 0: removed for matrix in evaluator.matrices})
    changes = evaluator.layer_changes()
    if rule == "angular":
        return by_angle({layer: one.angle for layer, one in changes.items()}, removed)
    return by_influence({layer: 1 - one.cosine for layer, one in changes.items()}, removed, epsilon, cap)


def _step(
    evaluator: CandidateEvaluator, method: str, matrices: Sequence[Matrix], removed: Mapping[int, float]
) -> dict[str, Any]:
    calibration = evaluator.step.calibration
    assert calibration is not None, "a search has calibration documents"
    return {
        "method": method,
        "matrices": [matrix.key for matrix in matrices],
        "unit_fraction": {matrix.key: max(_LEAST_SHARE, 1 - removed[matrix.layer or 0]) for matrix in matrices},
        "seed": evaluator.step.seed,
        "calibration": calibration.model_dump(mode="json"),
    }


def _told(rule: LayerRule, epsilon: float, shares: LayerShares) -> str:
    """What the receipt says of the shares."""
    raised = "" if shares.epsilon in (None, epsilon) else f" (raised from {epsilon:.4g}, for the cap)"
    used = "" if shares.epsilon is None else f" with epsilon {shares.epsilon:.4g}{raised}"
    each = ", ".join(f"{layer}: {share:.4g}" for layer, share in sorted(shares.removed.items()))
    return f"share of its units that each layer loses, by {rule}{used}: {each}"
