"""Attention scores from fewer coordinates of queries and keys.

Coordinates are chosen by how large they are in both: `|q_i| |k_i|`, root mean squares over tokens, bias included
(MoDeGPT's second type, arXiv:2408.09632; A3 falls back to it, arXiv:2505.12942). Rotary positions turn coordinates i
and i + d/2 of a head into each other, so that these stay or go together, by `(q_i^2 + q_j^2) (k_i^2 + k_j^2)`, which
the rotation leaves as it is (ours), with the frequency that they had. Query heads that share a key share the choice,
their `q^2` summed. Nothing is refitted: it is the minimum of a bound on the error, not of the error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness_ext.linalg.components import Component, ComponentEdit, MatrixBeside
from harness_ext.methods import method
from harness_ext.model.components import left_of

if TYPE_CHECKING:
    from torch import Generator, Tensor


@method(summary="Keep some coordinates of each head's queries and keys.", component="scores")
def select_coordinates(
    weight: Tensor,
    /,
    *,
    component: Component,
    input_second_moment: Tensor,
    input_mean_with_sinks: Tensor,
    generator: Generator,
    unit_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8,
    ranking: Literal["size", "random"] = "size",
    scale: Literal["head", "rank"] = "head",
) -> ComponentEdit:
    """The same share of coordinates, of pairs where positions rotate them, in every head; see the module. weight: that
    of the keys.

    input_second_moment `[n, n]`, input_mean_with_sinks `[n]`: of the input of queries and keys. unit_fraction: `floor`
    of that share stays, and one at least. scale: scores are divided by the root of the head's width, as the original
    ones; `rank` has them divided by that of the coordinates left, as a class built for the smaller head would.
    """
    import torch

    heads, queries, bias = component.heads, component.weights["q_proj"], component.biases.get("q_proj")
    key_bias = component.biases.get("k_proj")
    assert heads is not None, "components of scores are those of known heads"
    pair, width = 2 if component.rotated else 1, heads.width
    count = left_of(width // pair, unit_fraction)
    moments = input_second_moment.double().to(weight.device), input_mean_with_sinks.double().to(weight.device)
    sizes = _squares(weight, key_bias, *moments).reshape(heads.key_values, 1, pair, -1)
    asked = _squares(queries, bias, *moments).reshape(heads.key_values, -1, pair, width // pair)
    scores = (asked.sum((1, 2)) * sizes.sum((1, 2))).cpu()
    if ranking == "random":
        scores = torch.rand(scores.shape, generator=generator)
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    kept.scatter_(1, scores.argsort(dim=1, descending=True, stable=True)[:, :count], value=True)
    rows = kept.repeat(1, pair).to(weight.device)
    serves = heads.queries // heads.key_values
    asking = rows.repeat_interleave(serves, 0).flatten()
    factor = (width / (pair * count)) ** 0.5 if scale == "rank" else 1.0
    beside = MatrixBeside(
        queries * asking[:, None] * factor,
        pair * count * heads.queries,
        None if bias is None else bias * asking * factor,
    )
    return ComponentEdit(
        weight * rows.flatten()[:, None],
        unchanged=pair * count == width,
        rows=pair * count * heads.key_values,
        bias=None if key_bias is None else key_bias * rows.flatten(),
        beside={"q_proj": beside},
    )


def _squares(weight: Tensor, bias: Tensor | None, moment: Tensor, mean: Tensor) -> Tensor:
    """The mean square of every output `W x + b`, `[m]`, in fp64."""
    dense = weight.double()
    linear = ((dense @ moment) * dense).sum(1)
    if bias is None:
        return linear
    shift = bias.double()
    return linear + 2 * shift * (dense @ mean) + shift.square()
