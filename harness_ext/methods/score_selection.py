"""Attention scores from fewer coordinates of queries and keys.

Coordinates are chosen by how large they are in both: `|q_i| |k_i|`, root mean squares over tokens, bias included
(MoDeGPT's second type, arXiv:2408.09632; A3 falls back to it, arXiv:2505.12942). Rotary positions turn coordinates of a
head into each other in pairs (`Rotation`), so that these stay or go together, by `(q_i^2 + q_j^2) (k_i^2 + k_j^2)`,
which the rotation leaves as it is (ours), with the frequency that they had. Where a part of the head turns, the same
share of both parts stays (ours). Query heads that share a key share the choice, their `q^2` summed. Nothing is
refitted: it is the minimum of a bound on the error, not of the error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness_ext.linalg.components import Component, ComponentEdit, MatrixBeside
from harness_ext.methods import method
from harness_ext.model.components import coordinates_left
from harness_ext.model.rotation import Rotation

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from harness_ext.model.geometry import Heads


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
    heads, rotation = geometry_of(component)
    queries, bias, key_bias = (
        component.weights["q_proj"],
        component.biases.get("q_proj"),
        component.biases.get("k_proj"),
    )
    moments = input_second_moment.double().to(weight.device), input_mean_with_sinks.double().to(weight.device)
    counts = coordinates_left(heads.width, rotation, unit_fraction)
    left = 2 * counts[0] + counts[1]
    rows = kept_coordinates(weight, component, *moments, counts, generator if ranking == "random" else None)
    asking = rows.repeat_interleave(heads.queries // heads.key_values, 0).flatten()
    factor = (heads.width / left) ** 0.5 if scale == "rank" else 1.0
    beside = MatrixBeside(
        queries * asking[:, None] * factor,
        left * heads.queries,
        None if bias is None else bias * asking * factor,
        kept=asking,
    )
    return ComponentEdit(
        weight * rows.flatten()[:, None],
        unchanged=left == heads.width,
        rows=left * heads.key_values,
        kept=rows.flatten(),
        bias=None if key_bias is None else key_bias * rows.flatten(),
        beside={"q_proj": beside},
    )


def geometry_of(component: Component) -> tuple[Heads, Rotation]:
    """Of the queries and keys of a component of scores; of a model whose rotation is unknown none is made."""
    assert component.heads is not None, "scores are those of known heads"
    return component.heads, component.rotation or Rotation()


def kept_coordinates(
    weight: Tensor,
    component: Component,
    moment: Tensor,
    mean: Tensor,
    counts: tuple[int, int],
    generator: Generator | None,
) -> Tensor:
    """Which coordinates of each key head stay, true or false, `[heads, d]`. weight: that of the keys. moment `[n, n]`
    and mean `[n]` of their input, in fp64. counts: how many pairs that turn and how many others. generator: draws them
    in the place of the largest.
    """
    import torch

    heads, rotation = geometry_of(component)
    sizes = _squares(weight, component.biases.get("k_proj"), moment, mean).reshape(heads.key_values, -1)
    asked = _squares(component.weights["q_proj"], component.biases.get("q_proj"), moment, mean)
    asked = asked.reshape(heads.key_values, -1, heads.width).sum(1)

    def chosen(scores: Tensor, count: int) -> Tensor:
        scores = scores.cpu() if generator is None else torch.rand(scores.shape, generator=generator)
        kept = torch.zeros(scores.shape, dtype=torch.bool)
        return kept.scatter_(1, scores.argsort(dim=1, descending=True, stable=True)[:, :count], value=True)

    pairs = chosen(rotation.by_pair(asked).sum(-1) * rotation.by_pair(sizes).sum(-1), counts[0])
    others = chosen((asked * sizes)[:, rotation.width :], counts[1])
    return torch.cat([rotation.by_coordinate(pairs), others], 1).to(weight.device)


def _squares(weight: Tensor, bias: Tensor | None, moment: Tensor, mean: Tensor) -> Tensor:
    """The mean square of every output `W x + b`, `[m]`, in fp64."""
    dense = weight.double()
    linear = ((dense @ moment) * dense).sum(1)
    if bias is None:
        return linear
    shift = bias.double()
    return linear + 2 * shift * (dense @ mean) + shift.square()
