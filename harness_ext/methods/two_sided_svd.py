"""Truncation with both sides of a matrix weighted: by what its inputs are, and by what the loss makes of its outputs.

`argmin_{rank r} tr(B (W - W') A (W - W')^T)` for W `[m, n]`, A `[n, n]` of the inputs and B `[m, m]` of the outputs is
`W' = L^-T U_r U_r^T L^T W`, where `B = L L^T` and U_r are the leading eigenvectors of `L^T W A W^T L`. Any L will do,
since another one is this times an orthogonal matrix: the Cholesky factor costs least. A is never inverted or factored.
Methods differ in the two weights alone:

- A the inputs' second moment and B that of the gradients at the outputs, token by token, is the Kronecker-factored
  Fisher approximation (KFAC; as in LEMS, ICML 2026);
- B x A nearest to the Fisher information `E[vec G vec G^T]` of gradients G of whole batches is GFWSVD
  (arXiv:2505.17974), see `nearest_factors`;
- the same with B = I and A diagonal is FWSVD (arXiv:2207.00112);
- B = I and A the inputs' second moment is SVD-LLM; A = B = I plain SVD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from harness_ext.linalg.moments import add_ridge, least_ridge, overwrite_by_cholesky
from harness_ext.methods import Edit, method
from harness_ext.methods.feature_space import leading_directions, output_spectrum
from harness_ext.methods.registry import only_if

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.methods.budget import Keep

SHRINK_IN, SHRINK_OUT = 0.1, 0.3
"""As the released code of LEMS shrinks the two moments."""
UNWEIGHTED = "unweighted_outputs"
"""The fallback where no gradient reaches the outputs: they are weighted alike."""
_MOST_ROUNDS = 100


@method(summary="Truncate with inputs weighted by their size and outputs by the loss's gradients.")
@only_if(
    input_second_moment=("output", "tokens"),
    gradient_second_moment=("output", "tokens"),
    batch_gradients=("output", "batches"),
)
def two_sided_svd(
    weight: Tensor,
    /,
    *,
    input_second_moment: Tensor | None = None,
    gradient_second_moment: Tensor | None = None,
    batch_gradients: Tensor | None = None,
    keep: Keep,
    output: Literal["tokens", "batches"] = "tokens",
    shrink_in: Annotated[float, Field(ge=0, le=1)] = SHRINK_IN,
    shrink_out: Annotated[float, Field(gt=0, le=1)] = SHRINK_OUT,
    diagonal_in: bool = False,
) -> Edit:
    """`W' = L^-T U_r U_r^T L^T W`; see the module.

    input_second_moment: `[n, n]`, the mean of `x x^T` over tokens. gradient_second_moment: `[m, m]`, the mean of
    `g g^T`, g the gradient of the documents' loss at the outputs. batch_gradients: `[k, m, n]`, the gradients of the
    matrix in the losses of k batches. output: whether A and B are those two moments, or the factors nearest to the
    Fisher information of the batches. Both are shrunk towards the mean of their diagonals: `(1 - s) M + s mean(diag M)
    I`; shrink_out of 1 weighs all outputs alike, which by tokens is SVD-LLM with shrunk moments. diagonal_in: of A the
    diagonal alone counts; by batches, with shrink_in of 0 and shrink_out of 1, that is FWSVD. `keep.energy` is a share
    of the sum of the eigenvalues.
    """
    dense = weight.double()
    if output == "batches":
        assert batch_gradients is not None, "the setting asks for them"
        inputs, outputs = nearest_factors(
            batch_gradients, diagonal_in=diagonal_in, alike_in=shrink_in == 1, alike_out=shrink_out == 1
        )
    else:
        assert input_second_moment is not None and gradient_second_moment is not None, "the setting asks for them"
        inputs = input_second_moment.diagonal().diag() if diagonal_in else input_second_moment
        outputs = gradient_second_moment
    weighted = weighted_outputs(dense, inputs, outputs, shrink_in, shrink_out)
    rank = keep.rank_for((dense.shape[0], dense.shape[1]), weighted.eigenvalues.sqrt())
    directions, incomplete = leading_directions(weighted.weighted, weighted.eigenvalues, weighted.directions, rank)
    left = weighted.unweighted(directions)
    fallback = incomplete if weighted.are_weighted else UNWEIGHTED
    return Edit(left.to(weight), (directions.T @ weighted.weighted).to(weight), None, fallback)


def nearest_factors(
    gradients: Tensor, *, diagonal_in: bool = False, alike_in: bool = False, alike_out: bool = False
) -> tuple[Tensor, Tensor]:
    """A `[n, n]` and B `[m, m]`, in fp64 and of norm 1, whose Kronecker product is nearest to the mean of `vec G vec
    G^T` over gradients `[k, m, n]`; zeros where these are zero.

    By power iteration from `A = I`: `B = mean G A G^T`, `A = mean G^T B G`, each over its norm. Both stay positive
    semidefinite, where the leading vectors of a singular value decomposition come up to a common sign; and the
    iteration cannot miss the leading pair, with which the identity has a positive product. diagonal_in: nearest with A
    diagonal. alike_in, alike_out: nearest with A, or with B, the identity. Products are in the gradients' dtype, sums
    in fp64.
    """
    import torch

    _, rows, columns = gradients.shape
    largest = gradients.abs().max()
    # squares of small gradients are far below what fp32 holds
    gradients = gradients / largest if bool(largest > 0) else gradients
    inputs, outputs = (torch.eye(size, dtype=torch.float64, device=gradients.device) for size in (columns, rows))
    inputs, outputs = inputs / inputs.norm(), outputs / outputs.norm()
    enough = torch.finfo(gradients.dtype).eps ** 0.5
    for _ in range(_MOST_ROUNDS):
        before = inputs
        if not alike_out:
            outputs = _over_norm(_mean_product(gradients.mT, inputs))
        if not alike_in:
            found = _mean_product(gradients, outputs)
            inputs = _over_norm(found.diagonal().diag() if diagonal_in else found)
        if alike_in or alike_out or bool((inputs - before).norm() <= enough):
            break
    return inputs, outputs


def _mean_product(gradients: Tensor, between: Tensor) -> Tensor:
    """The mean of `G^T M G` over gradients `[k, a, b]`, `[b, b]` in fp64; M `[a, a]`."""
    between = between.to(gradients.dtype)
    total = sum((gradient.T @ (between @ gradient)).double() for gradient in gradients) / len(gradients)
    return (total + total.T) / 2


def _over_norm(moment: Tensor) -> Tensor:
    norm = moment.norm()
    return moment / norm if bool(norm > 0) else moment


class WeightedOutputs(NamedTuple):
    """The outputs of W as both sides weigh them, in fp64. weighted: `L^T W` `[m, n]`. eigenvalues `[r]`, descending,
    and directions `[m, r]` of `L^T W A W^T L`. lower: L `[m, m]`. are_weighted: whether B says anything.
    """

    weighted: Tensor
    eigenvalues: Tensor
    directions: Tensor
    lower: Tensor
    are_weighted: bool

    def unweighted(self, values: Tensor) -> Tensor:
        """`L^-T` times values `[m, k]`."""
        import torch

        return torch.linalg.solve_triangular(self.lower.T, values, upper=True)


def weighted_outputs(
    dense: Tensor, inputs: Tensor, outputs: Tensor, shrink_in: float = SHRINK_IN, shrink_out: float = SHRINK_OUT
) -> WeightedOutputs:
    """What the truncation of W `[m, n]` goes by, from the weights of its inputs `[n, n]` and its outputs `[m, m]`;
    arguments as `two_sided_svd` has them.
    """
    import torch

    outputs = shrunk(outputs, shrink_out)
    are_weighted = bool(outputs.diagonal().max() > 0)
    if not are_weighted:
        outputs = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)
    # shrinking leaves no eigenvalue below its share of the mean; rounding might
    lower = overwrite_by_cholesky(add_ridge(outputs, least_ridge(float(outputs.trace()))))
    weighted = lower.T @ dense
    return WeightedOutputs(weighted, *output_spectrum(weighted, shrunk(inputs, shrink_in)), lower, are_weighted)


def shrunk(moment: Tensor, share: float) -> Tensor:
    """`(1 - share) M + share mean(diag M) I` of a second moment `[n, n]`, in fp64."""
    moment = moment.double()
    return add_ridge((1 - share) * moment, share * moment.diagonal().mean())
