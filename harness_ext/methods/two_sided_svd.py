"""Truncation with both sides of a matrix weighted: by what its inputs are, and by what the loss makes of its outputs.

`argmin_{rank r} tr(B (W - W') A (W - W')^T)` for W `[m, n]`, A `[n, n]` of the inputs and B `[m, m]` of the outputs is
`W' = B^-1/2 U_r U_r^T B^1/2 W`, U_r the leading eigenvectors of `B^1/2 W A W^T B^1/2`. A is never inverted or factored.
With A the inputs' second moment and B that of the gradients at the outputs, token by token, it is the
Kronecker-factored Fisher approximation (KFAC; as in arXiv:2505.17974 and in LEMS, ICML 2026). B = I is SVD-LLM, A = B =
I plain SVD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field

from harness_ext.methods import Edit, method
from harness_ext.methods.feature_space import leading_directions, output_spectrum

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.methods.budget import Keep

SHRINK_IN, SHRINK_OUT = 0.1, 0.3
"""As the released code shrinks the two moments."""
UNWEIGHTED = "unweighted_outputs"
"""The fallback where no gradient reaches the outputs: they are weighted alike."""


@method(summary="Truncate with inputs weighted by their size and outputs by the loss's gradients.")
def two_sided_svd(
    weight: Tensor,
    /,
    *,
    input_second_moment: Tensor,
    gradient_second_moment: Tensor,
    keep: Keep,
    shrink_in: Annotated[float, Field(ge=0, le=1)] = SHRINK_IN,
    shrink_out: Annotated[float, Field(gt=0, le=1)] = SHRINK_OUT,
) -> Edit:
    """`W' = B^-1/2 U_r U_r^T B^1/2 W`; see the module.

    input_second_moment: `[n, n]`, the mean of `x x^T` over tokens. gradient_second_moment: `[m, m]`, the mean of
    `g g^T`, g the gradient of the documents' loss at the outputs. Both are shrunk towards the mean of their diagonals:
    `(1 - s) M + s mean(diag M) I`; shrink_out of 1 weighs all outputs alike, which is SVD-LLM with shrunk moments.
    `keep.energy` is a share of the sum of the eigenvalues.
    """
    dense = weight.double()
    outputs = weighted_outputs(dense, input_second_moment, gradient_second_moment, shrink_in, shrink_out)
    rank = keep.rank_for((dense.shape[0], dense.shape[1]), outputs.eigenvalues.sqrt())
    directions, incomplete = leading_directions(outputs.weighted, outputs.eigenvalues, outputs.directions, rank)
    left = outputs.unweighted(directions)
    fallback = incomplete if outputs.are_weighted else UNWEIGHTED
    return Edit(left.to(weight), (directions.T @ outputs.weighted).to(weight), None, fallback)


class WeightedOutputs(NamedTuple):
    """The outputs of W as both sides weigh them, in fp64. weighted: `B^1/2 W` `[m, n]`. eigenvalues `[r]`, descending,
    and directions `[m, r]` of `B^1/2 W A W^T B^1/2`. vectors, roots: eigenvectors of B and the roots of its
    eigenvalues. are_weighted: whether B says anything.
    """

    weighted: Tensor
    eigenvalues: Tensor
    directions: Tensor
    vectors: Tensor
    roots: Tensor
    are_weighted: bool

    def unweighted(self, values: Tensor) -> Tensor:
        """`B^-1/2` times values `[m, k]`."""
        return (self.vectors / self.roots) @ (self.vectors.T @ values)


def weighted_outputs(
    dense: Tensor, inputs: Tensor, gradients: Tensor, shrink_in: float = SHRINK_IN, shrink_out: float = SHRINK_OUT
) -> WeightedOutputs:
    """What the truncation of W `[m, n]` goes by, from the two second moments; arguments as `two_sided_svd` has them."""
    import torch

    outputs = shrunk(gradients, shrink_out)
    are_weighted = bool(outputs.diagonal().max() > 0)
    if not are_weighted:
        outputs = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)
    values, vectors = torch.linalg.eigh(outputs)
    # shrinking leaves no eigenvalue below its share of the mean; rounding might
    roots = values.clamp(min=float(values[-1]) * 1e-15).sqrt()
    weighted = (vectors * roots) @ (vectors.T @ dense)
    return WeightedOutputs(
        weighted, *output_spectrum(weighted, shrunk(inputs, shrink_in)), vectors, roots, are_weighted
    )


def shrunk(moment: Tensor, share: float) -> Tensor:
    """`(1 - share) M + share mean(diag M) I` of a second moment `[n, n]`, in fp64."""
    import torch

    moment = moment.double()
    mean = moment.diagonal().mean()
    return (1 - share) * moment + share * mean * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
