"""The values of attention heads in fewer dimensions: what a head makes of them is linear, so that they may be mixed,
and not only chosen.

Of a head, `y = W_o (sum_t p_t v_t)`, with a the attended values in the brackets, `[d]`. With `C = L L^T` the mean of
`a a^T` over tokens and `W_o L = U s V^T`,

    W_o' = U_r s_r = W_o L V_r        W_v' = V_r^T L^-1 W_v        b_v' = V_r^T L^-1 b_v

leaves the least error of the head's output at r dimensions, `sum_{i > r} s_i^2` (A3, arXiv:2505.12942; that its moment
is that of attended values is our reading). MoDeGPT (arXiv:2408.09632) takes the values before they are attended to, so
that C is the mean of `v v^T`, `v = W_v x + b_v`, and the error that of `W_o v`: with R the mean of `x x^T` that is the
decomposition of `W_o W_v R^1/2`, at the same optimum. Only `[d, d]` matrices are decomposed. Heads that share a value
are reduced together: one decomposition of the stacked `[W_o1 L; ...; W_oG L]` (ours), C the mean of theirs where they
are attended, since they must share V_r. The ridge adds to C. With the identity for `W_o` the directions are the
principal ones of the values, `W_o' = W_o Q`, `W_v' = Q^T W_v` (FLAT-LLM, arXiv:2505.23966): blind to what reads them,
and so never better on the texts that they are from.

Of all pairs with this product, that one is made whose new values are an orthonormal mixture of the old ones, the
nearest to the first r of them (ours): whitened values, and weights as much larger or smaller, would waste half
precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from harness_ext.linalg.components import Component, ComponentEdit, MatrixBeside
from harness_ext.linalg.mixing import moments_by_head, orthonormal, root_of
from harness_ext.methods import method
from harness_ext.model.components import left_of

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from harness_ext.model.geometry import Heads

Share = Annotated[float, Field(gt=0, le=1)]
Ridge = Annotated[float, Field(gt=0)]
_Ranking = Literal["leading", "pca", "random"]


@method(summary="Mix the values of each attention head into fewer dimensions.", component="values")
def mix_values(
    weight: Tensor,
    /,
    *,
    component: Component,
    input_second_moment: Tensor,
    generator: Generator,
    unit_fraction: Share = 0.8,
    ranking: Literal["leading", "random"] = "leading",
    ridge: Ridge = 1e-4,
) -> ComponentEdit:
    """The same share of dimensions in every head, by attended values; see the module.

    input_second_moment: `[n, n]`, of the input of `o_proj`, of which each head's own block is used. unit_fraction:
    `floor` of that share of a head's dimensions stays, and one at least. ranking: `random` takes random directions of
    the whitened values in the place of V_r, a control. ridge: as a share of the mean of C's diagonal.
    """
    import torch

    assert component.heads is not None, "components of values are those of known heads"
    values = _Values(weight, component.weights["v_proj"], component.biases.get("v_proj"), component.heads)
    rank = left_of(values.heads.width, unit_fraction)
    blocks = [input_second_moment[place, place].double() for place in values.places]
    moments = torch.stack(blocks).unflatten(0, (values.heads.key_values, -1)).mean(1).to(weight.device)
    made = values.mixed(moments, rank, ridge, ranking, generator)
    beside = MatrixBeside(
        made.made, rank * values.heads.key_values, made.bias, kept=values.first(rank, values.heads.key_values)
    )
    return ComponentEdit(
        made.read,
        unchanged=rank == values.heads.width,
        columns=rank * values.heads.queries,
        kept=values.first(rank, values.heads.queries),
        beside={"v_proj": beside},
    )


@method(
    summary="Mix each head's values into fewer dimensions, by their sizes before attention.", component="unattended"
)
def mix_unattended_values(
    weight: Tensor,
    /,
    *,
    component: Component,
    input_second_moment: Tensor,
    input_mean_with_sinks: Tensor,
    generator: Generator,
    unit_fraction: Share = 0.8,
    ranking: _Ranking = "leading",
    ridge: Ridge = 1e-4,
) -> ComponentEdit:
    """As `mix_values`, by the values of single tokens; see the module. weight: that of the values.

    input_second_moment `[n, n]`, input_mean_with_sinks `[n]`: of the input of the values. ranking: `pca` takes the
    principal directions of the values alone.
    """
    assert component.heads is not None, "components of values are those of known heads"
    values = _Values(component.weights["o_proj"], weight, component.biases.get("v_proj"), component.heads)
    rank = left_of(values.heads.width, unit_fraction)
    inputs = input_second_moment.double().to(weight.device), input_mean_with_sinks.double().to(weight.device)
    moments = moments_by_head(values.made, values.bias, *inputs, values.heads.key_values)
    made = values.mixed(moments, rank, ridge, ranking, generator)
    beside = MatrixBeside(
        made.read,
        len(made.read),
        columns=rank * values.heads.queries,
        kept=values.first(rank, values.heads.queries),
    )
    return ComponentEdit(
        made.made,
        unchanged=rank == values.heads.width,
        rows=rank * values.heads.key_values,
        kept=values.first(rank, values.heads.key_values),
        bias=made.bias,
        beside={"o_proj": beside},
    )


class _Mixed(NamedTuple):
    """What becomes of them: `W_o'` `[m, q d]` and `W_v'` `[k d, n]`, zero where dimensions went, and b_v' `[k d]`."""

    read: Tensor
    made: Tensor
    bias: Tensor | None


class _Values(NamedTuple):
    """The values of an attention of q query heads and k value heads, d wide. read: `W_o`, `[m, q d]`; made: `W_v`,
    `[k d, n]`; bias: b_v, `[k d]`, None where there is none.
    """

    read: Tensor
    made: Tensor
    bias: Tensor | None
    heads: Heads

    @property
    def places(self) -> list[slice]:
        """The columns of `W_o` that belong to each query head."""
        width = self.heads.width
        return [slice(head * width, (head + 1) * width) for head in range(self.heads.queries)]

    def first(self, rank: int, heads: int) -> Tensor:
        """The first so many dimensions of each of so many heads, bool, `[heads d]`: those that are left."""
        import torch

        return (torch.arange(self.heads.width, device=self.made.device) < rank).repeat(heads)

    def mixed(self, moments: Tensor, rank: int, ridge: float, ranking: _Ranking, generator: Generator) -> _Mixed:
        """Every head in so many dimensions, the same for heads that share values; themselves where that is all.
        moments: C of every value head, `[k, d, d]`. generator: draws the directions of `random`.
        """
        import torch

        width, serves = self.heads.width, self.heads.queries // self.heads.key_values
        if rank == width:
            return _Mixed(self.read, self.made, self.bias)
        read, made = torch.zeros_like(self.read), torch.zeros_like(self.made)
        shifted = None if self.bias is None else torch.zeros_like(self.bias)
        for group, moment in enumerate(moments):
            own = slice(group * width, (group + 1) * width)
            places = self.places[group * serves : (group + 1) * serves]
            root = root_of(moment, ridge)
            stacked = torch.cat([self.read[:, place].double() for place in places]) @ root
            if ranking == "random":
                directions = _random_directions(stacked, rank, generator)
            else:
                directions = _directions(root if ranking == "pca" else stacked, rank)
            back, turned = orthonormal(torch.linalg.solve_triangular(root.T, directions, upper=True))
            for place, part in zip(places, (stacked @ directions @ turned).chunk(serves), strict=True):
                read[:, place.start : place.start + rank] = part.to(read)
            made[own.start : own.start + rank] = (back @ self.made[own].double()).to(made)
            if shifted is not None and self.bias is not None:
                shifted[own.start : own.start + rank] = (back @ self.bias[own].double()).to(shifted)
        return _Mixed(read, made, shifted)


def _directions(outputs: Tensor, rank: int) -> Tensor:
    """The leading right singular vectors of `[m, d]`, `[d, r]`."""
    import torch

    return torch.linalg.eigh(outputs.T @ outputs).eigenvectors.flip(1)[:, :rank]


def _random_directions(outputs: Tensor, rank: int, generator: Generator) -> Tensor:
    """Random orthonormal ones in their place."""
    import torch

    gaussian = torch.randn(outputs.shape[1], rank, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.to(outputs)
