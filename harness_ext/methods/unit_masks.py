"""Which heads and hidden units stay, by keep-probabilities that a policy gradient learns from forward passes alone
(arXiv:2406.10576). A unit is a hidden unit of an MLP, or a key-value head with all query heads that read it.

With s `[N]` the probabilities of all units, m `[K, N]` masks drawn from them, and l `[K]` their losses on the same
documents, the gradient of the expected loss is estimated by

    g = sum_j (l_j - mean(l)) (m_j - s) / (s (1 - s)) / (K - 1)

which is unbiased for K from 2 on: it has each loss less the mean of the others. A step is `s - rate sqrt(s (1 - s)) g`,
projected so that the expected number of units is within the budget. The released code takes the same step but for what
losses are set against, a moving average over batches: there, how hard a batch happens to be moves every probability.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.linalg.components import Component, ComponentEdit, MatrixBeside
from harness_ext.methods import method
from harness_ext.model.components import UNITS

if TYPE_CHECKING:
    from torch import Tensor

# Halvings of an interval: as far as float64 tells numbers apart.
_BISECTIONS = 64


@method(summary="Keep the heads and hidden units whose learned keep-probabilities are highest.", component=UNITS)
def policy_prune(weight: Tensor, /, *, component: Component, kept_units: Tensor) -> ComponentEdit:
    """The matrix that reads units, without those that go, and what feeds them; nothing is refitted.

    kept_units: `[u]`, bool. Columns of the weight, and rows of what feeds it, belong to the units in their order, as
    many to each.
    """
    kept = kept_units.to(weight.device)
    left, width = int(kept.sum()), weight.shape[1] // len(kept)
    return ComponentEdit(
        _kept_rows(weight.T, kept).T,
        unchanged=left == len(kept),
        columns=left * width,
        kept=kept.repeat_interleave(width),
        beside={role: _fed(values, component.biases.get(role), kept) for role, values in component.weights.items()},
    )


def _fed(values: Tensor, bias: Tensor | None, kept: Tensor) -> MatrixBeside:
    width = len(values) // len(kept)
    left = None if bias is None else _kept_rows(bias, kept)
    return MatrixBeside(_kept_rows(values, kept), int(kept.sum()) * width, left, kept=kept.repeat_interleave(width))


def _kept_rows(values: Tensor, kept: Tensor) -> Tensor:
    """The same, `[m]` or `[m, n]`, with the rows of all other units zero."""
    gone = ~kept.repeat_interleave(len(values) // len(kept))
    return values.masked_fill(gone if values.ndim == 1 else gone[:, None], 0)


def wanda_scores(weight: Tensor, mean_squares: Tensor, units: int) -> Tensor:
    """Wanda's `|W_ij| sqrt(mean x_j^2)`, the mean over rows, added up over the columns of each unit, `[u]` in fp64: of
    units of one matrix `[m, n]`, in proportion to what the paper starts from. mean_squares: `[n]`.
    """
    columns = weight.double().abs().mean(0) * mean_squares.double().to(weight.device).sqrt()
    return columns.reshape(units, -1).sum(1)


def first_probabilities(scores: Tensor, share: float) -> Tensor:
    """What the paper starts from, of the units of one matrix, `[u]`: `clip(p + share - mean(p), 0, 1)`, p the sigmoid
    of the scores less their mean, over their standard deviation.
    """
    spread = scores.std(correction=0)
    chances = ((scores - scores.mean()) / spread.where(spread > 0, 1)).sigmoid()
    return (chances + share - chances.mean()).clamp(0, 1)


def gradient_estimate(losses: Tensor, masks: Tensor, probabilities: Tensor) -> Tensor:
    """g, `[N]`; see the module. losses `[K]`, masks `[K, N]`. Zero where a probability is 0 or 1: no mask differs."""
    variances = probabilities * (1 - probabilities)
    score = (masks.to(probabilities) - probabilities) / variances.where(variances > 0, 1)
    against_others = (losses - losses.mean()) / (len(losses) - 1)
    return (against_others @ score).where(variances > 0, 0)


def stepped(probabilities: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """Against the gradient, scaled by each unit's standard deviation: else one of a rare unit would be a leap. Not yet
    within any bounds.
    """
    return probabilities - rate * (probabilities * (1 - probabilities)).sqrt() * gradient


def projected(values: Tensor, budget: float) -> Tensor:
    """The nearest point to `values` `[u]` with entries in [0, 1] whose sum is at most the budget: `clip(values - v, 0,
    1)`, v the least from 0 on.
    """
    low, high = 0.0, max(0.0, float(values.max()))
    if float(values.clamp(0, 1).sum()) <= budget:
        return values.clamp(0, 1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        over = float((values - middle).clamp(0, 1).sum()) > budget
        low, high = (middle, high) if over else (low, middle)
    return (values - high).clamp(0, 1)


def highest(probabilities: Tensor, count: int) -> Tensor:
    """The mask `[u]`, bool, of so many units of the highest probabilities; among equals the first."""
    chosen = probabilities.argsort(descending=True, stable=True)[:count]
    return probabilities.new_zeros(len(probabilities)).bool().index_fill(0, chosen, value=True)
