"""How many units each layer keeps, by a rule on how far it turns its hidden states; the same share for the queries and
keys, the values and the hidden units of a layer, since the price of a layer is told of it as a whole. Or by the
variance of its hidden units, which tells of these alone.

Nothing is tried before the outcome: ordinary steps, one for each kind of component, with a share for each matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness_ext.errors import UserError, VariantFailed
from harness_ext.methods.layer_budgets import LayerRule, LayerShares, by_angle, by_influence, by_variance
from harness_ext.methods.search_registry import Fraction, SearchResult, checking, of_components, refusing, search
from harness_ext.methods.unit_selection import Ranking, unexplained_variances

if TYPE_CHECKING:
    from torch import Tensor

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
_MOMENT = "input_second_moment"


def _contradiction(settings: Mapping[str, Any]) -> str:
    removed, cap = 1 - settings["unit_fraction"], settings["cap"]
    if settings["rule"] != "block-influence" or removed < cap:
        return ""
    return (
        f"unit_fraction: a share of {removed:.3g} of the units is to go, and no layer is to lose more than {cap:.3g}"
        " (cap): raise unit_fraction or cap, or set rule=uniform"
    )


def _check(matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> None:
    _check_mixed_once(matrices)
    _check_rule(matrices, settings["rule"])
    roles = {matrix.role for matrix in matrices}
    if settings["scale"] is not None and "k_proj" not in roles:
        raise UserError(
            "scale is of the scores of queries and keys, and no k_proj is named: leave it out, or name k_proj"
        )
    if settings["mixing"] is not None and "v_proj" not in roles:
        raise UserError(
            "mixing is of the values of single tokens, and no v_proj is named: leave it out, or name v_proj"
        )


@refusing(_contradiction)
@checking(_check)
@of_components(_METHODS)
@search(
    summary="A share of units for every layer under one mean, by how far the layer turns its hidden states.",
    trials=lambda shapes, settings: int(bool(shapes)),
    # `cumulative-variance` gathers it, and so do the steps that are found
    statistics=(_MOMENT,),
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
    scale: Literal["head", "rank"] | None = None,
    mixing: Literal["leading", "pca"] | None = None,
) -> SearchResult:
    """The rules are those of `harness_ext.methods.layer_budgets`. unit_fraction: the mean over layers of the share that
    stays. epsilon, cap: of `block-influence`; a small epsilon cuts some layers far more than others, and none loses
    more than the cap. ranking, refit: of hidden units, as in `mlp_select`. scale: of the scores, as in
    `select_coordinates`, whose default it is where it is not given. mixing: `ranking` of `mix_unattended_values`,
    whose default it is where it is not given. The values are mixed by those of single
    tokens where `v_proj` is named, by attended ones where `o_proj` is. `cumulative-variance` takes units in the order
    of the ranking, and is of hidden units alone: `matrices: [down_proj]`.
    """
    if unit_fraction == 1:
        return SearchResult((), reason="its budget, unit_fraction 1, takes no units away")
    shares = (
        by_variance(_variances(evaluator, ranking), 1 - unit_fraction)
        if rule == "cumulative-variance"
        else _shares(evaluator, 1 - unit_fraction, rule, epsilon, cap)
    )
    settings: dict[str, dict[str, Any]] = {
        "mlp_select": {"ranking": ranking, "refit": refit},
        "select_coordinates": {"scale": scale or "head"},
        "mix_unattended_values": {} if mixing is None else {"ranking": mixing},
    }
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


def _check_rule(matrices: Sequence[Matrix], rule: LayerRule) -> None:
    others = sorted({matrix.role or "" for matrix in matrices} - {"down_proj"})
    if rule == "cumulative-variance" and others:
        raise UserError(
            f"the rule cumulative-variance is of the variance of hidden units, and {others[0]} has none: set"
            " matrices=[down_proj], or another rule"
        )


def _require_finite(moment: Tensor, matrix: Matrix) -> None:
    if not bool(moment.isfinite().all()):
        reason = (
            f"the {_MOMENT} of {matrix.key} over the calibration documents holds a NaN or an infinity: its inputs"
            " overflow; load the model in float32 or bfloat16"
        )
        raise VariantFailed("non_finite_statistic", reason, matrix.key)


def _variances(evaluator: CandidateEvaluator, ranking: Ranking) -> dict[int, list[float]]:
    """Of every layer, by its number, what its hidden units have that those before them do not explain."""
    found: dict[int, list[float]] = {}
    for matrices, learned in evaluator.statistics.gather_in_parts(evaluator.matrices, frozenset({_MOMENT})):
        for matrix in matrices:
            dense = evaluator.weight(matrix).double()
            moment = learned[matrix.key][_MOMENT].to(dense.device)
            _require_finite(moment, matrix)
            own = evaluator.generator(matrix, evaluator.step.seed)
            found[matrix.layer or 0] = unexplained_variances(dense, moment, ranking, own).tolist()
    return found


def _shares(evaluator: CandidateEvaluator, removed: float, rule: LayerRule, epsilon: float, cap: float) -> LayerShares:
    if rule == "uniform":
        return LayerShares({matrix.layer or 0: removed for matrix in evaluator.matrices})
    changes = evaluator.statistics.layer_changes()
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
    used += "" if shares.tau is None else f" with tau {shares.tau:.6g}"
    each = ", ".join(f"{layer}: {share:.4g}" for layer, share in sorted(shares.removed.items()))
    return f"share of its units that each layer loses, by {rule}{used}: {each}"
