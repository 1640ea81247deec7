"""Two truncations one after the other, in two metrics (NSVD, arXiv:2503.17101).

Most of the rank goes to the directions along which the outputs on calibration texts vary most; the rest of it to plain
truncation of what these leave of the matrix, which looks at no text. It gives up some accuracy on the calibration texts
for weights that are nearer to the original, and so should be judged on texts unlike them. In one metric alone the
second truncation would be part of the first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness_ext.linalg.edits import MadeFrom, Truncate
from harness_ext.methods import Edit, call, method
from harness_ext.methods.feature_space import leading_directions, output_spectrum

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness_ext.methods.budget import Keep

# 0.95 of 20 is 19, and falls just short of it.
_SLACK = 1e-9


@method(summary="Truncate where outputs lose least, then truncate what that leaves of the weights.")
def nested_decomposition(
    weight: Tensor,
    /,
    *,
    input_second_moment: Tensor,
    truncate: Truncate,
    keep: Keep,
    remember: Callable[..., tuple[Tensor, ...]] = call,
    main_fraction: Annotated[float, Field(gt=0, le=1)] = 0.95,
) -> Edit:
    """`W' = W_1 + W_2`, `W_1 = U U^T W` of rank `k_1`, U the leading eigenvectors of `W C W^T`, and `W_2` the truncated
    SVD of `W - W_1` at rank `k_2`; factors `[U, A_2]` and `[U^T W; B_2]` of rank `k_1 + k_2`.

    input_second_moment: C `[n, n]`, the mean of `x x^T` over tokens. main_fraction: `k_1` is this share of the rank,
    rounded down, one at least. The default is ours: the published split could not be read. 1 is truncation in the space
    of the outputs alone. `keep.energy` is a share of the sum of the eigenvalues.
    """
    import torch

    dense = weight.double()
    shape = (dense.shape[0], dense.shape[1])
    eigenvalues, eigenvectors = remember(output_spectrum, weight, input_second_moment)
    rank = keep.rank_for(shape, eigenvalues.sqrt())
    main = min(rank, max(1, int(main_fraction * rank + _SLACK)))
    directions, fallback = leading_directions(dense, eigenvalues, eigenvectors, main)
    right = directions.T @ dense
    first = Edit(directions.to(weight), right.to(weight), None, fallback)
    if main == rank:
        return first
    made_from = MadeFrom(weight, f"without {main} directions of outputs", (input_second_moment,))
    second = truncate(dense - directions @ right, lambda _: rank - main, made_from)
    return replace(
        first,
        left=torch.cat([first.left, second.left.to(weight)], dim=1),
        right=torch.cat([first.right, second.right.to(weight)]),
        fallback=fallback or second.fallback,
    )
