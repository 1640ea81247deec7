"""Truncation of the weights themselves: with the rank read off the spectrum of noise, or with the columns weighted by
how much they matter.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness_ext.linalg.edits import MadeFrom, Truncate
from harness_ext.methods import Edit, method

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.methods.budget import Keep

Positive = Annotated[float, Field(gt=0)]
Exponent = Annotated[float, Field(gt=0, le=2)]

LARGEST_ONLY = "largest_only"
"""The fallback where no singular value stands out of the noise."""
UNSCALED = "unscaled"
"""The fallback where the statistics give every column the weight zero."""
SCALE_FLOOR = 1e-6
"""The smallest weight of a column as a share of the largest: beyond it, fp32 would lose the columns when they are
scaled back.
"""


@method(summary="Keep the singular components above the edge of a noise spectrum.", rank_from_weights=True)
def marchenko_pastur(weight: Tensor, /, *, truncate: Truncate, threshold: Positive = 1.0) -> Edit:
    """Keep `s_i > threshold * sigma (sqrt(m) + sqrt(n))`, the edge below which the singular values of an `[m, n]`
    matrix of independent noise of deviation sigma lie.

    sigma is estimated as `median(s) / sqrt(max(m, n) mu)`, mu the median of the Marchenko-Pastur law of m/n (Gavish and
    Donoho, arXiv:1305.5870): up to half of the components may be signal without moving it much. A matrix without a
    component above the edge keeps its largest (ours), which the receipt says.
    """
    largest_only = False

    def rank_of(singular_values: Tensor) -> int:
        nonlocal largest_only
        above = above_edge(singular_values, (weight.shape[0], weight.shape[1]), threshold)
        largest_only = above == 0
        return max(above, 1)

    kept = truncate(weight, rank_of)
    return replace(kept, fallback=LARGEST_ONLY) if largest_only else kept


def above_edge(singular_values: Tensor, shape: tuple[int, int], threshold: float = 1.0) -> int:
    """How many singular values `[min(m, n)]` of a matrix of this shape lie above so many times the edge of its noise;
    see `marchenko_pastur`.
    """
    edge = noise_level(singular_values, shape) * (shape[0] ** 0.5 + shape[1] ** 0.5)
    return int((singular_values > threshold * edge).sum())


def noise_level(singular_values: Tensor, shape: tuple[int, int]) -> float:
    """The deviation sigma of the noise in a matrix of this shape, from its singular values `[min(m, n)]`."""
    smaller, larger = sorted(shape)
    # The mean of the middle two, where torch.median takes the lower.
    return float(singular_values.double().quantile(0.5)) / (larger * marchenko_pastur_median(smaller / larger)) ** 0.5


@cache
def marchenko_pastur_median(aspect: float) -> float:
    """The median of the Marchenko-Pastur law with ratio `0 < aspect <= 1` and variance 1.

    With `x = 1 + aspect - 2 sqrt(aspect) cos(t)`, its density in t is `2 sin(t)^2 / (pi x)` on (0, pi), smooth also
    where that in x is not; summed at 20,000 midpoints.
    """
    import numpy

    count = 20_000
    angle = (numpy.arange(count) + 0.5) * numpy.pi / count
    place = 1 + aspect - 2 * numpy.sqrt(aspect) * numpy.cos(angle)
    cumulated = numpy.cumsum(2 * numpy.sin(angle) ** 2 / (numpy.pi * place)) * numpy.pi / count
    # A sum up to and with the k-th cell reaches to its right edge, half a cell beyond the midpoint.
    edges = (numpy.arange(count) + 1) * numpy.pi / count
    middle = numpy.interp(0.5, cumulated, edges)
    return float(1 + aspect - 2 * numpy.sqrt(aspect) * numpy.cos(middle))


@method(summary="Truncate with each column weighted by the size of its input.")
def activation_aware_svd(
    weight: Tensor, /, *, input_magnitude: Tensor, truncate: Truncate, keep: Keep, exponent: Exponent = 0.5
) -> Edit:
    """ASVD (arXiv:2312.05821): `W' = trunc_r(W S) S^-1`, S diagonal, `S_jj = (mean |x_j|)^exponent`.

    input_magnitude: `[n]`, over all tokens: without the sinks, five layers of SmolLM2 at the break-even rank leave a
    perplexity of WikiData's answers of 416,000, with them 3,339 (of 734). `keep.energy` is a share of the squared
    singular values of `W S`.
    """
    return scaled_truncation(weight, input_magnitude.double() ** exponent, truncate, keep)


@method(summary="Truncate with each column weighted by the information that the right answers hold about it.")
def fisher_weighted_svd(weight: Tensor, /, *, fisher_information: Tensor, truncate: Truncate, keep: Keep) -> Edit:
    """FWSVD (arXiv:2207.00112): `W' = trunc_r(W S) S^-1`, S diagonal, `S_jj = sqrt(sum_i I_ij)`, I the empirical Fisher
    information of the weights.

    fisher_information: `[n]`, already summed over the rows; of all tokens: without the sinks, five layers of SmolLM2 at
    the break-even rank leave a perplexity of WikiData's answers of 7,644, with them 984 (of 734). `keep.energy` is a
    share of the squared singular values of `W S`.
    """
    return scaled_truncation(weight, fisher_information.double().sqrt(), truncate, keep)


def scaled_truncation(weight: Tensor, scale: Tensor, truncate: Truncate, keep: Keep) -> Edit:
    """The `W'` of rank r that minimises `||(W - W') diag(scale)||_F`; scale `[n]`, not negative.

    A column whose scale is below `SCALE_FLOOR` of the largest is given that much, so that the scale can be undone;
    where all are zero, it is plain truncation. Decomposed in fp64, since a scale may span as many digits as fp32 has.
    """
    rows, columns = weight.shape
    scale, unscaled = usable_scale(scale)
    made_from = MadeFrom(weight, "columns scaled", (scale,))
    kept = truncate(weight.double() * scale, keep.rank_rule((rows, columns)), made_from)
    return replace(
        kept,
        left=kept.left.to(weight),
        right=(kept.right / scale).to(weight),
        fallback=UNSCALED if unscaled else kept.fallback,
    )


def usable_scale(scale: Tensor) -> tuple[Tensor, bool]:
    """A scale of columns `[n]` that can be undone: over its largest, and no smaller than `SCALE_FLOOR`; ones, and true,
    where all are zero.
    """
    import torch

    largest = scale.max()
    if bool(largest == 0):
        return torch.ones_like(scale), True
    return (scale / largest).clamp(min=SCALE_FLOOR), False
