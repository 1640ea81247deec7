"""Attention scores from fewer dimensions of queries and keys, mixed and not only chosen.

Without rotary positions a score is `q^T k`, `q = W_q x + b_q`, so that both may be multiplied by matrices of r rows.
With `C_q = L_q L_q^T` and `C_k = L_k L_k^T` the means of `q q^T` and `k k^T` over tokens, `[d, d]`, and the query heads
j = 1 .. G that share a key,

    [L_q1^T L_k; ...; L_qG^T L_k] = U s V^T
    k' = V_r^T L_k^-1 k        q_j' = (block j of U_r s_r)^T L_qj^-1 q_j

leaves the least `sum_j |L_qj^T (I - M_qj^T M_k) L_k|_F^2`, the mean squared error of the scores of a query and a key
that are drawn apart: `sum_{i > r} s_i^2` (A3, arXiv:2505.12942, its second theorem, and its form for shared keys). The
ridge adds to both moments. Of all pairs with these scores that one is made whose new keys are an orthonormal mixture of
the old ones, as `head_values` has it.

Rotary positions turn coordinates into each other, and leave nothing to mix: of these some are chosen, by
`score_selection`, which is what the paper falls back to. Where a part of the head turns, the rest is mixed by itself,
and the same share of both parts stays (ours).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness_ext.linalg.components import Component, ComponentEdit, MatrixBeside
from harness_ext.linalg.edits import AnyEdit
from harness_ext.linalg.mixing import moments_by_head, orthonormal, root_of
from harness_ext.methods import method
from harness_ext.methods.score_selection import geometry_of, kept_coordinates, select_coordinates
from harness_ext.model.components import coordinates_left

if TYPE_CHECKING:
    from torch import Generator, Tensor


@method(
    summary="Mix each head's queries and keys into fewer dimensions; choose some where positions rotate them.",
    component="scores",
)
def mix_scores(
    weight: Tensor,
    /,
    *,
    component: Component,
    input_second_moment: Tensor,
    input_mean_with_sinks: Tensor,
    generator: Generator,
    unit_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8,
    ranking: Literal["leading", "random"] = "leading",
    ridge: Annotated[float, Field(gt=0)] = 1e-4,
) -> AnyEdit:
    """The same share of dimensions in every head; see the module. weight: that of the keys.

    input_second_moment `[n, n]`, input_mean_with_sinks `[n]`: of the input of queries and keys. unit_fraction: `floor`
    of that share stays, and one at least. ranking: `random` takes random directions of the whitened keys in the place
    of V_r, or random coordinates, a control. ridge: as a share of the mean of each moment's diagonal.
    """
    import torch

    (heads, rotation), key_bias = geometry_of(component), component.biases.get("k_proj")
    (pairs, rank), turning = coordinates_left(heads.width, rotation, unit_fraction), rotation.width
    if rank == heads.width - turning:
        return select_coordinates(
            weight,
            component=component,
            input_second_moment=input_second_moment,
            input_mean_with_sinks=input_mean_with_sinks,
            generator=generator,
            unit_fraction=unit_fraction,
            ranking="random" if ranking == "random" else "size",
        )
    queries, bias = component.weights["q_proj"], component.biases.get("q_proj")
    moments = input_second_moment.double().to(weight.device), input_mean_with_sinks.double().to(weight.device)
    drawing = generator if ranking == "random" else None
    chosen = kept_coordinates(weight, component, *moments, (pairs, 0), drawing).double()
    of_keys = moments_by_head(weight, key_bias, *moments, heads.key_values)
    of_queries = moments_by_head(queries, bias, *moments, heads.queries).unflatten(0, (heads.key_values, -1))
    mixing_keys = torch.diag_embed(chosen)
    mixing_queries = mixing_keys[:, None].repeat(1, of_queries.shape[1], 1, 1)
    mixed = slice(turning, turning + rank)
    for group, (own, asking) in enumerate(zip(of_keys, of_queries, strict=True)):
        root = root_of(own[turning:, turning:], ridge)
        roots = torch.stack([root_of(one[turning:, turning:], ridge) for one in asking])
        scores = (roots.mT @ root).flatten(0, 1)
        directions = _directions(scores, rank, drawing)
        keys, turned = orthonormal(torch.linalg.solve_triangular(root.T, directions, upper=True))
        sizes = (scores @ directions).unflatten(0, (len(asking), -1)) @ turned
        mixing_keys[group, mixed, turning:] = keys
        mixing_queries[group, :, mixed, turning:] = torch.linalg.solve_triangular(roots.mT, sizes, upper=True).mT
    left = 2 * pairs + rank
    stays = chosen.bool()
    stays[:, mixed] = True
    beside = MatrixBeside(
        _mixed(queries, mixing_queries.flatten(0, 1)),
        left * heads.queries,
        None if bias is None else _mixed(bias, mixing_queries.flatten(0, 1)),
        kept=stays.repeat_interleave(heads.queries // heads.key_values, 0).flatten(),
    )
    return ComponentEdit(
        _mixed(weight, mixing_keys),
        unchanged=False,
        rows=left * heads.key_values,
        kept=stays.flatten(),
        bias=None if key_bias is None else _mixed(key_bias, mixing_keys),
        beside={"q_proj": beside},
    )


def _directions(scores: Tensor, rank: int, generator: Generator | None) -> Tensor:
    """The leading right singular vectors of `[G d, d]`, `[d, r]`; random orthonormal ones with a generator."""
    import torch

    if generator is None:
        return torch.linalg.svd(scores, full_matrices=False).Vh[:rank].T
    gaussian = torch.randn(scores.shape[1], rank, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.to(scores)


def _mixed(value: Tensor, mixing: Tensor) -> Tensor:
    """The rows of a weight `[h d, n]`, or numbers of a bias `[h d]`, mixed head by head, with M `[h, d, d]`."""
    by_head = value.double().unflatten(0, (len(mixing), -1))
    return (mixing @ (by_head if by_head.ndim == 3 else by_head[..., None])).reshape(value.shape).to(value)
