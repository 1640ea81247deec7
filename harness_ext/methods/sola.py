"""SoLA (arXiv:2604.03258): the hidden units of an MLP that are used most, its prime units, stay as they are, and what
is left of the matrices is truncated where their outputs lose least.

A unit is a row of gate and up, `[m, n]`, and a column of `down_proj`. With P the prime units, L the others, and C the
second moment of a matrix's inputs,

    gate, up     W'[P] = W[P]         W'[L] = U_k U_k^T W[L]           U_k of  W[L] C W[L]^T
    down_proj    W'[:, P] = W[:, P]   W'[:, L] = U_k U_k^T W[:, L]     U_k of  W[:, L] C[L, L] W[:, L]^T
    others       W' = U_k U_k^T W                                      U_k of  W C W^T

U_k the leading k eigenvectors, as `feature_space` has them for `svd-llm`. Nothing of a prime unit is lost, so that what
the light ones lose is all that is lost, and C[L, L] alone tells how much. With p prime units a matrix is of rank p + k
at most, and takes `p n + k (m - p + n)` numbers (`down_proj`: `p m + k (m + n - p)`), fewer than factors of that rank.

The prime units are those of the largest mean of |h| over tokens, h the input of `down_proj`, which for gated MLPs is
the activated gate times up. The paper sums |h| over tokens; the order is the same. Its released code takes a norm over
the texts of a batch at each place and sums that over places, which is |h| where a batch has one text, as it has there.
The released ranks are constants, the same in layers 2 to 29 of 32 of LLaMA-2-7B and 2 to 37 of 40 of 13B, and its code
that would choose them is called from nowhere; here each matrix keeps the same share of its numbers, or an allocator
finds ranks by the spectra of what is truncated (`allocate_ranks` with `factorisation: sola`). Theirs of the 7B, at 20
and at 30 % of the model removed, which `keep.rank` takes in a step for each:

    q_proj 1120, 640    k_proj 800, 640    o_proj dense, 1440    gate_proj 1760, 1760    up_proj 2400, 1920
    down_proj 2240, 1760
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness_ext.errors import UserError
from harness_ext.methods import Edit, call, method
from harness_ext.methods.budget import Keep
from harness_ext.methods.feature_space import leading_directions, output_spectrum
from harness_ext.methods.registry import only_if
from harness_ext.model.components import COMPONENTS, left_of
from harness_ext.model.size import stored_parameters

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor


PRIME = 0.15


@method(summary="Keep the hidden units that are used most, and truncate the rest by its outputs.")
@only_if(input_magnitude=("ranking", "magnitude"))
def sola(
    weight: Tensor,
    /,
    *,
    input_second_moment: Tensor,
    prime_units: Tensor,
    keep: Keep,
    remember: Callable[..., tuple[Tensor, ...]] = call,
    input_magnitude: Tensor | None = None,
    prime: Annotated[float, Field(ge=0, lt=1)] = PRIME,
    ranking: Literal["magnitude", "random"] = "magnitude",
) -> Edit:
    """See the module. weight: `[m, n]`.

    input_second_moment: `[n, n]`, the mean of `x x^T` over tokens. prime_units: which rows or columns of W stay, bool,
    `[m, 1]` or `[1, n]`; `[1, 1]` and false where W has no units. It is found by `prime_of` from the input_magnitude of
    `down_proj`, `[n]`, for all matrices of an MLP. prime: `floor` of that share of the units is prime, and one at
    least; none at 0, which is `svd-llm`. ranking: `random` draws them by the seed, a control.

    Of `keep`, `param_fraction` is of all numbers of W, those of prime units among them; the other measures are of the
    truncated part alone. Raises UserError where the prime units alone take more than that.
    """
    import torch

    count, stays = int(prime_units.sum()), prime_units.flatten()
    by_rows = prime_units.shape[1] == 1
    light, moment = light_part(weight, input_second_moment, prime_units)
    shape = (light.shape[0], light.shape[1])
    eigenvalues, eigenvectors = remember(output_spectrum, light, moment)
    budget = light_keep(keep, (weight.shape[0], weight.shape[1]), shape)
    rank = budget.rank_for(shape, eigenvalues.sqrt())
    directions, fallback = leading_directions(light.double(), eigenvalues, eigenvectors, rank)
    left, right = directions.to(weight), (directions.T @ light.double()).to(weight)
    if not count:
        return Edit(left, right, fallback=fallback)
    left, right = _beside_rows(weight, stays, left, right) if by_rows else _beside_columns(weight, stays, left, right)
    if left.shape[1] > min(weight.shape):
        one, product = torch.eye(min(weight.shape)).to(weight), left @ right
        left, right = (one, product) if weight.shape[0] <= weight.shape[1] else (product, one)
    return Edit(
        left,
        right,
        fallback=fallback,
        decomposition=f"beside {count} prime units",
        numbers=split_numbers((weight.shape[0], weight.shape[1]), shape, rank),
    )


def light_part(weight: Tensor, moment: Tensor, prime_units: Tensor) -> tuple[Tensor, Tensor]:
    """What of W `[m, n]` is truncated, and the second moment of what that sees, `[n, n]` of all inputs. prime_units: as
    `sola` takes them.
    """
    light = ~prime_units.flatten().to(weight.device)
    if not bool(prime_units.any()):
        return weight, moment
    if prime_units.shape[1] == 1:
        return weight[light], moment
    # Rows and columns at once: one after the other would make a further matrix, larger than both.
    places = light.nonzero().flatten()
    return weight[:, light], moment[places[:, None], places]


def prime_count(units: int, share: float) -> int:
    """How many of so many units are prime: `floor` of the share, one at least and never all; none at a share of 0."""
    return min(left_of(units, share), units - 1) if share else 0


def prime_of(magnitude: Tensor | None, units: int, share: float, generator: Generator) -> Tensor:
    """Which of the units are prime, `[u]`, bool: those of the largest magnitude `[u]`, among equals the first; without
    magnitudes, drawn at random.
    """
    import torch

    if magnitude is None:
        order = torch.randperm(units, generator=generator)
    else:
        order = magnitude.argsort(descending=True, stable=True)
    chosen = torch.zeros(units, dtype=torch.bool, device=order.device)
    chosen[order[: prime_count(units, share)]] = True
    return chosen


def light_of(role: str | None, shape: tuple[int, int], share: float) -> tuple[int, int]:
    """The rows and columns of a matrix of this role that are truncated, at such a share of prime units: all where it
    is of no MLP.
    """
    (rows, columns), mlp = shape, COMPONENTS["mlp"]
    if role == mlp.reader:
        return rows, columns - prime_count(columns, share)
    return (rows - prime_count(rows, share), columns) if role in mlp.feeders else shape


def light_keep(keep: Keep, shape: tuple[int, int], light: tuple[int, int]) -> Keep:
    """The budget of the part `light` of a matrix of this shape, whose other rows or columns stay as they are. Raises
    UserError where these alone take more than the budget of all.
    """
    if keep.param_fraction is None or light == shape:
        return keep
    whole, part = shape[0] * shape[1], light[0] * light[1]
    left = keep.param_fraction * whole - (whole - part)
    if left <= 0:
        raise UserError(
            f"its prime units take {(whole - part) / whole:.1%} of its numbers, and all of it may keep"
            f" {keep.param_fraction:.1%} (keep.param_fraction): lower prime, or keep more"
        )
    return Keep(param_fraction=left / part, align=keep.align)


def split_numbers(shape: tuple[int, int], light: tuple[int, int], rank: int) -> int:
    """The numbers of a matrix of which all but the part `light` stays, and that is of this rank: as factors where these
    are fewer.
    """
    return shape[0] * shape[1] - light[0] * light[1] + stored_parameters(light, rank)


def _beside_rows(weight: Tensor, stays: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors `[m, p + k]` and `[p + k, n]` of W with the rows that stay, from those of its other rows."""
    import torch

    count = int(stays.sum())
    rows = weight.new_zeros(weight.shape[0], count + left.shape[1])
    rows[stays, :count] = torch.eye(count).to(weight)
    rows[~stays, count:] = left
    return rows, torch.cat([weight[stays], right])


def _beside_columns(weight: Tensor, stays: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same for columns that stay."""
    found = _beside_rows(weight.T, stays, right.T, left.T)
    return found[1].T, found[0].T
