"""Truncation of the singular value decomposition, and the full-rank check that goes with it.

Component i of W is `s_i u_i v_i^T`. Among equal singular values the order is that in which LAPACK returns them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from harness_ext.linalg.edits import Truncate
from harness_ext.methods import Edit, Svd, method

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from harness_ext.methods.budget import Keep

EXACT_INSTEAD = "exact_instead"
"""The fallback where a randomised decomposition was asked for, but would not be faster at this rank, or not be near
enough.
"""


@method(summary="Keep the largest singular components of each matrix.")
def truncate_svd(
    weight: Tensor,
    /,
    *,
    truncate: Truncate,
    keep: Keep,
    generator: Generator,
    decomposition: Literal["exact", "randomised"] = "exact",
) -> Edit:
    """LASER's edit and plain SVD compression (arXiv:2312.13558): `W' = sum_{i <= r} s_i u_i v_i^T`, of all matrices of
    rank r the one nearest to W in Frobenius norm (Eckart and Young).

    decomposition: `randomised`, for small ranks of large matrices, finds the leading components among random directions
    of the step's seed, to within about 1 % of the least error. It does not see the whole spectrum, so that
    `keep.energy` cannot go with it.
    """
    from harness_ext.linalg import randomized

    shape = (weight.shape[0], weight.shape[1])
    if decomposition == "exact":
        return truncate(weight, keep.rank_rule(shape))
    found = randomized.truncate(weight, keep.rank_for(shape), generator)
    return found or replace(truncate(weight, keep.rank_rule(shape)), fallback=EXACT_INSTEAD)


@method(summary="Decompose and recompose at full rank; must not change a score beyond rounding.")
def identity(weight: Tensor, /, *, svd: Svd) -> Edit:
    """`W' = U diag(s) V^T` with every component: the standing check that decomposition and writing back are sound."""
    return Edit(svd.u * svd.s, svd.vh)
