"""A matrix as a sum of bases, some of which are dropped and some added: the parametrisation that basis selection trains
(arXiv:2405.15877), and its rule for dropping.

The paper names the parts and their order; what is filled in here is ours. The sum of |s| that a round is measured
against is that at the first, so that the ratios of later rounds do not multiply. What is dropped stays so. The added
matrices start as in LoRA, one at zero and one at random, so that the model starts as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from harness_ext.methods import Svd


@dataclass(frozen=True)
class Bases:
    """`W~ = U diag(s) V^T + A B`: u `[m, k]` and vh `[k, n]` are fixed, values s `[k]` of either sign, added_left A
    `[m, q]` and added_right B `[q, n]` are trained.

    kept: `[k]`, the places of the bases in the decomposition, ascending.
    """

    u: Tensor
    values: Tensor
    vh: Tensor
    added_left: Tensor
    added_right: Tensor
    kept: Tensor

    @property
    def trained(self) -> dict[str, Tensor]:
        """What the optimiser changes, by name."""
        return {"values": self.values, "added_left": self.added_left, "added_right": self.added_right}

    def __call__(self, inputs: Tensor) -> Tensor:
        """`x -> W~ x` on inputs `[..., n]`; the dense matrix is never made."""
        return (inputs @ self.vh.T * self.values) @ self.u.T + inputs @ self.added_right.T @ self.added_left.T

    def only(self, places: Tensor) -> Bases:
        """Without the bases that are not at these places, ascending, among those still here."""
        values = self.values.detach()[places].requires_grad_(True)
        return replace(self, u=self.u[:, places], values=values, vh=self.vh[places], kept=self.kept[places])

    def pair(self) -> FactorPair:
        """The same matrix as `[U sqrt|s|, A] [sign(s) sqrt|s| V^T; B]`, to be trained as a whole."""
        import torch

        values = self.values.detach()
        root = values.abs().sqrt()
        left = torch.cat([self.u * root, self.added_left.detach()], dim=1)
        right = torch.cat([(values.sign() * root)[:, None] * self.vh, self.added_right.detach()])
        return FactorPair(left.requires_grad_(True), right.requires_grad_(True))


@dataclass(frozen=True)
class FactorPair:
    """`W~ = left @ right`, `[m, k + q]` and `[k + q, n]`, both trained."""

    left: Tensor
    right: Tensor

    @property
    def trained(self) -> dict[str, Tensor]:
        """What the optimiser changes, by name."""
        return {"left": self.left, "right": self.right}

    def __call__(self, inputs: Tensor) -> Tensor:
        """`x -> W~ x` on inputs `[..., n]`."""
        return inputs @ self.right.T @ self.left.T

    def pair(self) -> FactorPair:
        """Itself."""
        return self


def all_bases(svd: Svd, added_rank: int, generator: Generator) -> Bases:
    """Every basis of a decomposition, and `added_rank` new ones: A = 0, B normal with variance 1 / n, so that B x is of
    the size of the inputs' entries. generator: on the CPU.
    """
    import torch

    rows, columns = svd.u.shape[0], svd.vh.shape[1]
    drawn = torch.randn(added_rank, columns, generator=generator, dtype=torch.float64) / columns**0.5
    places = torch.arange(len(svd.s), device=svd.s.device)
    # Contiguous, as they are not when fresh from LAPACK: products of other layouts are rounded otherwise, and factors
    # read back from the disk must train to the same bits.
    u, vh = svd.u.contiguous(), svd.vh.contiguous()
    return Bases(
        u,
        svd.s.clone().requires_grad_(True),
        vh,
        svd.u.new_zeros(rows, added_rank).requires_grad_(True),
        drawn.to(svd.u).requires_grad_(True),
        places,
    )


def bases_to_keep(values: Tensor, ratio: float, total: float) -> Tensor:
    """The places, ascending, of the fewest values `[k]` whose |s| sum to `ratio * total` at least; all where all
    together do not. Of equal ones the first stay.

    Sums are in fp64, and a sum that falls short by its own rounding reaches.
    """
    import torch

    order = values.detach().abs().argsort(descending=True, stable=True)
    sums = torch.cat([values.new_zeros(1, dtype=torch.float64), values.detach().double().abs()[order].cumsum(0)])
    count = int((sums < ratio * total * (1 - 1e-12)).sum())
    return order[:count].sort().values


def ratios(keep_ratio: float, rounds: int) -> list[float]:
    """The share of the sum of |s| that each round keeps: falling to `keep_ratio` in equal steps."""
    return [1 - (1 - keep_ratio) * number / rounds for number in range(1, rounds + 1)]
