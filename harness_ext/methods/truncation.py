"""Truncation of the singular value decomposition, and the full-rank check that goes with it.

Component i of W is `s_i u_i v_i^T`. Ties between equal singular values are kept in the order in which LAPACK returns them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.methods import Edit, Svd, method

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.recipe import Keep


def leading_components(svd: Svd, rank: int) -> Edit:
    """The best approximation of the given rank in Frobenius norm (Eckart-Young): `sum_{i <= rank} s_i u_i v_i^T`."""
    return Edit(svd.u[:, :rank] * svd.s[:rank], svd.vh[:rank])


@method(summary="Keep the largest singular components of each matrix.")
def truncate_svd(weight: Tensor, /, *, svd: Svd, keep: Keep) -> Edit:
    """LASER's edit and plain SVD compression (arXiv:2312.13558): `W' = sum_{i <= r} s_i u_i v_i^T`, exact, not randomised."""
    return leading_components(svd, keep.rank_for(tuple(weight.shape), svd.s))


@method(summary="Decompose and recompose at full rank; must not change a score beyond rounding.")
def identity(weight: Tensor, /, *, svd: Svd) -> Edit:
    """`W' = U diag(s) V^T` with every component: the standing check that decomposition and surgery are sound."""
    return leading_components(svd, svd.s.shape[0])
