"""Healing: what training made of matrices that earlier steps edited takes their place (the training is in
`harness_ext.training.healing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.methods import AnyEdit, DenseEdit, Edit, method

if TYPE_CHECKING:
    from torch import Tensor


@method(summary="Train what earlier steps left of their matrices, at the ranks that they left.", rank_from_weights=True)
def heal(weight: Tensor, /, *, healed_left: Tensor, healed_right: Tensor, healed_adds: Tensor) -> AnyEdit:
    """The product of the trained factors, `[m, r]` and `[r, n]`; added to W where healed_adds (0-d, bool), and then as
    dense as W is.
    """
    if bool(healed_adds):
        return DenseEdit(weight + healed_left @ healed_right)
    return Edit(healed_left, healed_right)
