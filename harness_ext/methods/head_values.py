"""The values of attention heads in fewer dimensions: what a head makes of them is linear, so that they may be mixed,
and not only chosen.

Of a head, `y = W_o (sum_t p_t v_t)`, with a the attended values in the brackets, `[d]`. With `C = L L^T` the mean of
`a a^T` over tokens and `W_o L = U s V^T`,

    W_o' = U_r s_r = W_o L V_r        W_v' = V_r^T L^-1 W_v        b_v' = V_r^T L^-1 b_v

leaves the least error of the head's output at r dimensions, `sum_{i > r} s_i^2` (A3, arXiv:2505.12942; that its moment
is that of attended values is our reading). Only `[d, d]` matrices are decomposed. Heads that share a value are reduced
together: one decomposition of the stacked `[W_o1 L; ...; W_oG L]`, C the mean of theirs (ours), since they must share
V_r. The ridge adds to C.

Of all pairs with this product, that one is made whose new values are an orthonormal mixture of the old ones, the
nearest to the first r of them (ours): whitened values, and weights as much larger or smaller, would waste half
precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness_ext.linalg.components import Component, ComponentEdit, MatrixBeside
from harness_ext.methods import method
from harness_ext.model.components import left_of

if TYPE_CHECKING:
    from torch import Generator, Tensor


@method(summary="Mix the values of each attention head into fewer dimensions.", component="values")
def mix_values(
    weight: Tensor,
    /,
    *,
    component: Component,
    input_second_moment: Tensor,
    generator: Generator,
    unit_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8,
    ranking: Literal["leading", "random"] = "leading",
    ridge: Annotated[float, Field(gt=0)] = 1e-4,
) -> ComponentEdit:
    """The same share of dimensions in every head; see the module.

    input_second_moment: `[n, n]`, of the input of `o_proj`, of which each head's own block is used. unit_fraction:
    `floor` of that share of a head's dimensions stays, and one at least. ranking: `random` takes random directions of
    the whitened values in the place of V_r, a control. ridge: as a share of the mean of C's diagonal.
    """
    import torch

    heads, values, bias = component.heads, component.weights["v_proj"], component.biases.get("v_proj")
    assert heads is not None, "components of values are those of known heads"
    width, serves = heads.width, heads.queries // heads.key_values
    rank = left_of(width, unit_fraction)
    if rank == width:
        beside = {"v_proj": MatrixBeside(values, len(values), bias)}
        return ComponentEdit(weight, unchanged=True, columns=weight.shape[1], beside=beside)
    read, made = torch.zeros_like(weight), torch.zeros_like(values)
    shifted = None if bias is None else torch.zeros_like(bias)
    for group in range(heads.key_values):
        own = slice(group * width, (group + 1) * width)
        places = [slice(head * width, (head + 1) * width) for head in range(group * serves, (group + 1) * serves)]
        moment = sum(
            (input_second_moment[place, place].double() for place in places), start=weight.new_zeros(()).double()
        )
        root = _root(moment.to(weight.device) / serves, ridge)
        stacked = torch.cat([weight[:, place].double() for place in places]) @ root
        directions = _directions(stacked, rank, generator if ranking == "random" else None)
        back, turned = _orthonormal(torch.linalg.solve_triangular(root.T, directions, upper=True))
        for place, part in zip(places, (stacked @ directions @ turned).chunk(serves), strict=True):
            read[:, place.start : place.start + rank] = part.to(weight)
        made[own.start : own.start + rank] = (back @ values[own].double()).to(values)
        if shifted is not None and bias is not None:
            shifted[own.start : own.start + rank] = (back @ bias[own].double()).to(bias)
    beside = {"v_proj": MatrixBeside(made, rank * heads.key_values, shifted)}
    return ComponentEdit(read, columns=rank * heads.queries, beside=beside)


def _root(moment: Tensor, ridge: float) -> Tensor:
    """L of `C + t I`, `[d, d]`, lower; of values that are always zero, I."""
    import torch

    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    pull = ridge * float(moment.diagonal().mean())
    return torch.linalg.cholesky(moment + pull * identity) if pull > 0 else identity


def _directions(stacked: Tensor, rank: int, generator: Generator | None) -> Tensor:
    """The leading right singular vectors of `[G m, d]`, `[d, r]`; random orthonormal ones with a generator."""
    import torch

    if generator is None:
        return torch.linalg.eigh(stacked.T @ stacked).eigenvectors.flip(1)[:, :rank]
    gaussian = torch.randn(stacked.shape[1], rank, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.to(stacked)


def _orthonormal(mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Of a mixture `X [d, r]` of values, `B [r, d]` with orthonormal rows that spans the same, as near to the first r
    unit vectors as it can be, and `Y [r, r]` with `Y B = X^T`.
    """
    import torch

    basis, triangle = torch.linalg.qr(mixture)
    left, _, right = torch.linalg.svd(basis[: mixture.shape[1]].T)
    turn = left @ right
    return (basis @ turn).T, triangle.T @ turn
