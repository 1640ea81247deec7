"""Pruning single weights: not of low rank, and here as yardsticks for what is.

The matrices stay dense in memory and in the receipt's count: scattered zeros save neither space nor time without a
sparse format and kernels for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness_ext.methods import DenseEdit, method

if TYPE_CHECKING:
    from torch import Tensor

Density = Annotated[float, Field(gt=0, le=1)]


@method(summary="Zero the smallest weights of each matrix.")
def magnitude(weight: Tensor, /, *, density: Density = 0.5) -> DenseEdit:
    """Keep the share `density` of the weights, those largest in magnitude in the whole matrix; `floor((1 - density) m
    n)` become zero.
    """
    return DenseEdit(_without_smallest(weight.flatten(), weight.abs().flatten(), density).reshape(weight.shape))


@method(summary="Zero the weights that matter least to each output, by magnitude times the size of the input.")
def wanda(weight: Tensor, /, *, input_second_moment_diagonal: Tensor, density: Density = 0.5) -> DenseEdit:
    """Wanda (arXiv:2306.11695): keep the share `density` of each row, by `|W_ij| ||x_j||_2`; `floor((1 - density) n)`
    of a row become zero.

    input_second_moment_diagonal: `[n]`, the mean of `x_j^2`, whose root is in proportion to the norm over tokens: over
    all, as in the paper. Without the sinks SmolLM2 answers WikiData better (perplexity 10,300, not 20,400, of 734) and
    predicts WikiText worse (98, not 89, of 33).
    """
    return DenseEdit(
        _without_smallest(weight, weight.double().abs() * input_second_moment_diagonal.double().sqrt(), density)
    )


def _without_smallest(values: Tensor, importance: Tensor, density: float) -> Tensor:
    """Zero the least important `floor((1 - density) k)` along the last axis, of length k; among equals, the first."""
    count = int((1 - density) * values.shape[-1] + 1e-9)
    dropped = importance.argsort(dim=-1, stable=True)[..., :count]
    return values.scatter(-1, dropped, 0.0)
