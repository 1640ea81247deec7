"""Which hidden units of an MLP stay, and the matrix that reads them refitted to those that do.

With C `[n, n]` the mean of `h h^T` over tokens, h the input of `down_proj`, and `C_t = C + t I`, a selection S of k
units keeps the rows S of gate and up, with their biases, and `down_proj` becomes

    W' = W C_t[:, S] C_t[S, S]^-1     (refit)          W' = W[:, S]     (selection only)

which minimises `mean |W h - W' h_S|^2 + t |W[:, S] - W'|^2`: the ridge pulls to the selection and not to zero (ours),
so that at any ridge the refit is no worse than the selection on the texts it was made from. MoDeGPT (arXiv:2408.09632),
A3 (arXiv:2505.12942) and subspace node pruning (arXiv:2405.17506) differ in the ranking alone:

    leverage   1 / [C_t^-1]_ii, in the order of the ridge leverage 1 - t [C_t^-1]_ii        (MoDeGPT)
    zca        1 / [C_t^-1/2]_ii^2                                                          (node pruning, our reading)
    energy     C_ii
    a3         sqrt([C_t]_ii) |W[:, i]|                                 (A3, whose t is zero: its recipes have 1e-12)
    obs        one by one the unit of least price |W'[:, i]|^2 / [C_t[S, S]^-1]_ii           (ours)
    random     a control

The price is what the error rises by, exactly, where a unit goes and the others are refitted (optimal brain surgeon, for
units). The first tokens of the texts count: weighted with no regard to them, the kept units get the one token wrong
whose output is hundreds of times larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness_ext.linalg.components import Component, ComponentEdit, MatrixBeside
from harness_ext.linalg.greedy_removal import by_price
from harness_ext.linalg.moments import (
    add_ridge,
    least_ridge,
    overwrite_by_cholesky,
    overwrite_by_eigenvectors,
    overwrite_by_inverse,
    ridged,
    solve_by_cholesky,
)
from harness_ext.methods import method
from harness_ext.model.components import left_of

if TYPE_CHECKING:
    from torch import Generator, Tensor

Ranking = Literal["leverage", "zca", "energy", "a3", "obs", "random"]
REFITTED, SELECTED = "refitted", "selected"
"""How `down_proj` was made, in the receipt."""
UNTESTED = "no held-out documents"
"""The fallback where a refit could not be tested on other documents: the selection is kept."""


@method(summary="Keep some of an MLP's hidden units, and refit the matrix that reads them.", component="mlp")
def mlp_select(
    weight: Tensor,
    /,
    *,
    component: Component,
    input_second_moment_by_halves: Tensor,
    generator: Generator,
    unit_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8,
    ranking: Ranking = "leverage",
    refit: bool | Literal["auto"] = "auto",
    ridge: Annotated[float, Field(gt=0)] = 1e-2,
) -> ComponentEdit:
    """The same share of units in every layer; see the module.

    input_second_moment_by_halves: `[2, n, n]`, the sums of `h h^T` over each half of the documents, divided by the
    number of tokens in both: they add up to C. unit_fraction: `floor` of that share of the units stays, and one at
    least. refit: `auto` refits where that lowers the error on the half of the documents that it was not made from, both
    halves in turn (ours). ridge: t, of the mean over tokens.
    """
    import torch

    dense = weight.double()
    moments = Moments(input_second_moment_by_halves.double().to(weight.device), ridge)
    count = left_of(dense.shape[1], unit_fraction)
    kept = _chosen(dense, moments.whole(), ranking, count, generator)
    refits = moments.favour_refit(dense, kept) if refit == "auto" else refit
    values = weight.new_zeros(weight.shape)
    everything = count == dense.shape[1]
    stays = values.new_zeros(values.shape[1], dtype=torch.bool).index_fill(0, kept, value=True)
    values[:, kept] = weight[:, kept] if everything or not refits else moments.refit(dense, kept).to(weight)
    return ComponentEdit(
        values,
        UNTESTED if refit == "auto" and not moments.testable else None,
        decomposition=REFITTED if refits else SELECTED,
        unchanged=everything,
        columns=count,
        kept=stays,
        beside={
            role: MatrixBeside(only_rows(value, kept), count, _only(component.biases.get(role), kept), kept=stays)
            for role, value in component.weights.items()
        },
    )


class Moments:
    """`C_t` of all documents, and of each half of them with half of the ridge, `[n, n]` in fp64: made anew whenever one
    is asked for, since a few of them are all that memory has room for in a wide MLP.
    """

    def __init__(self, by_halves: Tensor, ridge: float) -> None:
        """From the two sums, in fp64; see `mlp_select`."""
        self._sums = by_halves
        traces = by_halves.diagonal(dim1=1, dim2=2).sum(1)
        self._pull = _pull(float(traces.sum()), ridge)
        self.testable = bool((traces > 0).all())
        """Whether what is made from one half can be tested on the other."""

    def whole(self) -> Tensor:
        """Of all documents."""
        return add_ridge(self._sums.sum(0), self._pull)

    def half(self, number: int) -> Tensor:
        """Of the first, 0, or the second, 1."""
        return ridged(self._sums[number], self._pull / 2)

    def refit(self, dense: Tensor, kept: Tensor, half: int | None = None) -> Tensor:
        """`W C_t[:, S] C_t[S, S]^-1`, `[m, k]` in fp64, of all documents or of a half of them. kept: the indices S."""
        moment = self.whole() if half is None else self.half(half)
        read, own = (moment @ dense.T)[kept], moment[kept[:, None], kept]
        del moment
        return solve_by_cholesky(overwrite_by_cholesky(own), read).T

    def favour_refit(self, dense: Tensor, kept: Tensor) -> bool:
        """Whether refits to one half of the documents do better than the selection on the other, both summed."""
        if not self.testable:
            return False
        refits, selections = zip(*(self._errors(dense, kept, own) for own in (0, 1)), strict=True)
        return sum(refits) < sum(selections)

    def _errors(self, dense: Tensor, kept: Tensor, own: int) -> tuple[float, float]:
        """Of the refit to this half, and of the selection, on the other half."""
        read = self.refit(dense, kept, own)
        test = self.half(1 - own)
        return error_of(dense, read, kept, test), error_of(dense, dense[:, kept], kept, test)


def _pull(trace: float, ridge: float) -> float:
    """The ridge, no less than rounding in fp64 lets a matrix of this trace be inverted at."""
    return max(ridge, least_ridge(trace))


def with_ridge(moment: Tensor, ridge: float) -> Tensor:
    """A copy of a moment `[n, n]`, in fp64, with a ridge, no less than rounding asks for."""
    return ridged(moment, _pull(float(moment.diagonal().double().sum()), ridge))


def unexplained_variances(
    dense: Tensor, moment: Tensor, ranking: Ranking, generator: Generator, ridge: float = 1e-2
) -> Tensor:
    """D of `C[p, p] = L D L^T`, `[n]`: of each unit, the most important first, what the units before it do not explain.

    dense: W `[m, n]` in fp64. moment: C `[n, n]`, without a ridge; p, the order, is that of `mlp_select`, with its own.
    Zeros where C is zero.
    """
    import torch

    if not bool(moment.any()):
        return torch.zeros(len(moment), dtype=torch.float64, device=moment.device)
    order = order_of(dense, with_ridge(moment, ridge), ranking, generator)
    return overwrite_by_cholesky(with_ridge(moment, 0)[order[:, None], order]).diagonal().square()


def error_of(dense: Tensor, read: Tensor, kept: Tensor, moment: Tensor) -> float:
    """`mean |W h - W' h_S|^2`, from the second moment of h; read: W' `[m, k]`."""
    lost = dense.clone()
    lost[:, kept] -= read
    return float(((lost @ moment) * lost).sum())


def only_rows(values: Tensor, kept: Tensor) -> Tensor:
    """The same with all rows zero but those that are kept."""
    left = values.new_zeros(values.shape)
    left[kept] = values[kept]
    return left


def _only(bias: Tensor | None, kept: Tensor) -> Tensor | None:
    return None if bias is None else only_rows(bias, kept)


def _chosen(dense: Tensor, moment: Tensor, ranking: Ranking, count: int, generator: Generator) -> Tensor:
    """The indices of the kept units, `[k]`, ascending; among equals, the first. moment: is overwritten."""
    return order_of(dense, moment, ranking, generator, count)[:count].sort().values


def order_of(dense: Tensor, moment: Tensor, ranking: Ranking, generator: Generator, count: int = 1) -> Tensor:
    """The indices of all units, `[n]`, the most important first. moment: is overwritten. count: how many are to be told
    from the others; of `obs`, whose order costs more, the first so many are in no order.
    """
    import torch

    if ranking == "random":
        return torch.randperm(dense.shape[1], generator=generator).to(dense.device)
    if ranking == "obs":
        return by_price(dense, moment, count)
    return scores(dense, moment, ranking).argsort(descending=True, stable=True)


def scores(dense: Tensor, moment: Tensor, ranking: Ranking) -> Tensor:
    """What units are ranked by, `[n]`, the most important highest; of the rankings that score each unit once. moment:
    is overwritten.
    """
    if ranking == "leverage":
        return 1 / overwrite_by_inverse(moment).diagonal()
    if ranking == "zca":
        values, vectors = overwrite_by_eigenvectors(moment)
        return 1 / (vectors.square_() @ values.clamp(min=float(values[-1]) * 1e-16).rsqrt()).square()
    energy = moment.diagonal()
    return energy if ranking == "energy" else energy.sqrt() * dense.norm(dim=0)
