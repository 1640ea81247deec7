"""The leading singular components through the Gram matrix of the smaller side, with a bound on how far they are from
the best ones.

With W `[m, n]`, m <= n (else its transpose), and U the eigenvectors of `W W^T`, the truncation to rank r is `U_r U_r^T
W`: singular values and the other side's vectors are not needed, and every rank is a slice of one
eigendecomposition, which costs a fraction of the singular value decomposition. The price is accuracy: a Gram matrix
holds squares, and what lies far below the largest one drowns in its rounding. So the distance from the
best truncation is bounded here for every rank; where it is too large the caller takes more digits, or the full
decomposition.

The bound (ours). Let `A = U^T W`, energies `c_i = ||a_i||^2`, overlaps `D = U^T U - I`, and couplings
`F = A A^T - diag(c) - (D diag(c) + diag(c) D) / 2`, which are those of the nearest orthonormal basis to first order in
D. The r largest eigenvalues add up to more than `c_1 + ... + c_r` by `sum_{i <= r < j} F_ij^2 / (c_i - c_j)` to second
order; here each pair counts with the exact gain of its own 2 x 2 problem, `2 F^2 / (g + sqrt(g^2 + 4 F^2))` with g the
difference of its energies, which is sound for equal ones too, and the sum is doubled for the higher orders. To the
squared error overlaps add at most `sum_ij D_ij^2 c_i`, and rounding of A about `k u^2 ||W||^2` with u the unit
roundoff. The least error falls with the rank, so that bounds found at one rank serve the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.linalg.edits import Svd

if TYPE_CHECKING:
    from torch import Tensor, dtype

EXCESS_LIMIT = 1e-5
"""How much larger than the least possible error that of an exact truncation may be, as a share of it."""

_REACH = 1e-3
"""Of the largest: `u (s_1 / s)^2` bounds what V lacks of orthonormal, u the roundoff of fp64."""
_BLOCKS = (128, 512)
_LARGE = 1024
# Powers of two: entries between the inverse of this and this can be squared and summed in fp32 without overflow, and
# with nothing lost that counts.
_SAFE_EXPONENT = 20


class Leading(NamedTuple):
    """The components of an `[m, n]` matrix by falling energy; k = min(m, n). In the matrix's dtype, on its device, but
    for the last two, which are fp64.

    directions: `[k, k]`, orthonormal rows in the space of the smaller side. projections: `[k, max(m, n)]`, the matrix
    seen along them. singular_values: `[k]`. excess: `[k + 1]`, for each rank a bound on
    `error / least possible error - 1`, a part of the error as small as the roundoff of the whole matrix left out.
    """

    directions: Tensor
    projections: Tensor
    singular_values: Tensor
    excess: Tensor

    def suffices(self, rank: int) -> bool:
        """Whether the truncation to this rank is exact within `EXCESS_LIMIT`."""
        return bool(self.excess[rank] <= EXCESS_LIMIT)


def decompose(matrix: Tensor, precision: dtype) -> Leading:
    """The components of `[m, n]`, from a Gram matrix and eigenvectors in this precision.

    Raises torch.linalg.LinAlgError where the eigendecomposition does not converge.
    """
    import torch

    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    scale = _scale(wide)
    scaled = (wide if scale == 1 else wide / scale).to(precision)
    directions = _eigenvectors(scaled)
    projections = directions @ scaled
    lengths = _lengths(projections)
    if bool((lengths.diff() > 0).any()):
        # Where eigenvalues are all rounding, their order is not that of the energies.
        order = lengths.argsort(descending=True, stable=True)
        directions, projections, lengths = directions[order], projections[order], lengths[order]
    excess = _excess(directions, projections, lengths**2, torch.finfo(matrix.dtype).eps)
    projections = (projections if scale == 1 else projections * scale).to(matrix.dtype)
    return Leading(directions.to(matrix.dtype).contiguous(), projections.contiguous(), lengths * scale, excess)


def full(matrix: Tensor) -> Svd | None:
    """The thin singular value decomposition of an fp32 `[m, n]`, from eigenvectors in fp64: U from the Gram matrix of
    the smaller side, `V^T = U^T W / s`.

    A Gram matrix in fp64 gives the components down to `_REACH` of its largest. What they leave of W is seen along the
    other eigenvectors, and has a Gram matrix of its own, with a smaller largest component; and so on. None where what
    is left is all rounding, so that it has no directions: the full decomposition knows some.

    Raises torch.linalg.LinAlgError where an eigendecomposition does not converge.
    """
    import torch

    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    scale = _scale(wide)
    rest = (wide if scale == 1 else wide / scale).double()
    floor = torch.finfo(matrix.dtype).eps * float(torch.linalg.vector_norm(rest))
    basis: Tensor | None = None
    directions, rows, lengths = [], [], []
    while len(rest):
        turn = _eigenvectors(rest)
        seen = turn @ rest
        size = _lengths(seen)
        order = size.argsort(descending=True, stable=True)
        turn, seen, size = turn[order], seen[order], size[order]
        sound = int((size > _REACH * size[0]).sum())
        if float(size[sound - 1]) <= floor:
            return None
        here = turn if basis is None else turn @ basis
        directions.append(here[:sound])
        rows.append(seen[:sound] / size[:sound, None])
        lengths.append(size[:sound])
        basis, rest = here[sound:], seen[sound:]
        for known in rows:
            rest = rest - (rest @ known.T) @ known
    near, far, s = torch.cat(directions), torch.cat(rows), torch.cat(lengths)
    u, vh = (near.T, far) if wide is matrix else (far.T, near)
    return Svd(*(part.to(matrix.dtype).contiguous() for part in (u, s * scale, vh)))


def _scale(matrix: Tensor) -> float:
    """A power of two that brings the entries to where their squares neither overflow nor vanish; 1 for any usual
    weight.
    """
    exponent = math.frexp(float(matrix.abs().max()))[1]
    return 2.0**exponent if abs(exponent) > _SAFE_EXPONENT else 1.0


def _eigenvectors(matrix: Tensor) -> Tensor:
    """Those of `W W^T` as unit rows `[k, k]`, by falling eigenvalue."""
    vectors = _of_symmetric(_gram(matrix)).T.flip(0)
    return vectors / _lengths(vectors).to(vectors.dtype)[:, None]


def _gram(matrix: Tensor) -> Tensor:
    """The lower triangle of `W W^T` `[k, k]`, in blocks of rows; nothing of what is above it is read."""
    gram, block = matrix.new_zeros(matrix.shape[0], matrix.shape[0]), _block(len(matrix))
    for stop in range(block, matrix.shape[0] + block, block):
        gram[stop - block : stop, :stop] = matrix[stop - block : stop] @ matrix[:stop].T
    return gram


def _block(count: int) -> int:
    """Rows at a time of a triangle of this many: few enough that little of the other triangle is worked out."""
    return min(max(_BLOCKS[0], -(-count // 4)), _BLOCKS[1])


def _of_symmetric(gram: Tensor) -> Tensor:
    """Eigenvectors `[k, k]` as columns, by rising eigenvalue, from the lower triangle, which is lost."""
    import torch

    if gram.device.type != "cpu" or len(gram) < _LARGE:
        return torch.linalg.eigh(gram).eigenvectors
    import numpy
    from scipy.linalg import eigh

    # The same routine of LAPACK; scipy's build of it takes two thirds of the time that torch's takes, in place, on the
    # triangle as Fortran lays it out.
    try:
        return torch.from_numpy(
            eigh(gram.T.numpy(), lower=False, driver="evd", overwrite_a=True, check_finite=False)[1]
        )
    except numpy.linalg.LinAlgError as error:
        raise torch.linalg.LinAlgError(str(error)) from error


def _lengths(rows: Tensor) -> Tensor:
    """Their Euclidean norms, summed in fp64."""
    import torch

    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def _excess(directions: Tensor, projections: Tensor, energies: Tensor, negligible: float) -> Tensor:
    """The bound of the module's docstring for every rank, `[k + 1]`. energies: `[k]`, falling. negligible: a part of
    the error of this share of the norm does not count.
    """
    import torch

    count, total = len(energies), energies.sum()
    none = energies.new_zeros(1)
    missed, overlapping = _pairs(directions, projections, energies)
    rounding = count * (torch.finfo(directions.dtype).eps / 2) ** 2 * total
    left = torch.cat([energies.flip(0).cumsum(0).flip(0), none])
    # Squares: what rounding adds to an error is at right angles to it.
    error = (left + overlapping + rounding).cummin(0).values - negligible**2 * total
    least = (left - 2 * missed - rounding).clamp(min=0).flip(0).cummax(0).values.flip(0)
    return torch.where(error > least, (error / least).sqrt() - 1, none)


def _pairs(directions: Tensor, projections: Tensor, energies: Tensor) -> tuple[Tensor, Tensor]:
    """Over pairs of components: the energy that the first r miss, `[k + 1]`, and what overlaps add to the squared
    error, a scalar; block by block, so that no further matrix is held.
    """
    import torch

    count = len(energies)
    unit = energies[0].clamp(min=torch.finfo(torch.float64).tiny)
    share = (energies / unit).to(directions.dtype)
    crossing, overlapping = torch.zeros_like(energies), torch.zeros_like(energies[0])
    block = _block(count)
    for start in range(0, count, block):
        rows = slice(start, min(start + block, count))
        both = share[rows, None] + share[start:]
        overlap = (directions[rows] @ directions[start:].T).triu(1)
        coupling = ((projections[rows] @ projections[start:].T) / unit.to(projections.dtype)).triu(
            1
        ) - overlap * both / 2
        gap = (share[rows, None] - share[start:]).abs()
        gained = (2 * coupling**2 / (gap + (gap**2 + 4 * coupling**2).sqrt())).nan_to_num(nan=0.0).triu(1)
        # A pair counts at the ranks from its first component on, up to before its second.
        crossing[rows] += gained.sum(1, dtype=torch.float64)
        crossing[start:] -= gained.sum(0, dtype=torch.float64)
        overlapping += (overlap**2 * both).sum(dtype=torch.float64)
    return torch.cat([crossing.new_zeros(1), crossing.cumsum(0)]).clamp(min=0) * unit, overlapping * unit
