"""Basis selection: what training made of a matrix takes its place (arXiv:2405.15877; the training is in
`harness_ext.training.trainer`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.methods import Edit, method

if TYPE_CHECKING:
    from torch import Tensor


@method(summary="Train which bases of the matrix to keep, and new ones.", rank_from_weights=True)
def basis_selection(weight: Tensor, /, *, trained_left: Tensor, trained_right: Tensor) -> Edit:
    """The product of the trained factors, `[m, r]` and `[r, n]`; where bases kept and added are more than min(m, n), as
    of full rank, which they cannot exceed. No mean over tokens is in them: training goes by what the model answers, and
    sink tokens have their part in that.
    """
    import torch

    rows, columns = weight.shape
    if trained_left.shape[1] <= min(rows, columns):
        return Edit(trained_left, trained_right)
    product = trained_left @ trained_right
    one = torch.eye(min(rows, columns), dtype=product.dtype, device=product.device)
    return Edit(one, product) if rows <= columns else Edit(product, one)
