"""A run with recipes in which the second of two ranks holds other weights: run by a test in two processes.

weights_in_two_ranks.py loaded ARGUMENTS: from the start on. weights_in_two_ranks.py edited ARGUMENTS: once the method
`by_rank` has edited them.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from harness_ext.cli import main
from harness_ext.lm_eval_adapter import model_loading
from harness_ext.methods import DenseEdit, method
from harness_ext.ranks.group import current


@method(summary="Another matrix in each rank.")
def by_rank(weight: Tensor, /) -> DenseEdit:
    return DenseEdit(weight * (1 - current().rank / 256))


def load_other(*arguments: Any, load: Any = model_loading.load_model) -> Any:
    lm = load(*arguments)
    parameter = next(lm.model.parameters())
    parameter.data[0, 0] += current().rank
    return lm


if sys.argv.pop(1) == "loaded":
    model_loading.load_model = load_other
main()
