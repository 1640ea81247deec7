"""Truncation of the rows of a matrix in clusters, each decomposed by itself (after arXiv:2510.20800, which released no
code; every choice here is ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness_ext.methods import AnyEdit, DenseEdit, Edit, method

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from harness_ext.methods.budget import Keep

Clusters = Annotated[int, Field(ge=1)]
ROUNDS = 20
"""Rounds of k-subspaces at most; a round that moves no row ends it."""


@method(summary="Truncate the rows of each matrix in clusters, each by itself.", rank_from_weights=True)
def truncate_clusters(
    weight: Tensor,
    /,
    *,
    keep: Keep,
    generator: Generator,
    clusters: Clusters = 4,
    grouping: Literal["block", "subspace"] = "block",
) -> AnyEdit:
    """The rows of each of c groups are replaced by their truncated SVD; `keep` is of the group: `rank_fraction` of
    min(rows, n).

    grouping: `block`, contiguous rows, as even as they go; `subspace`, k-subspaces of the rank to be kept
    (`subspaces`). Groups with one subspace each make `W' = left right`, left with a block for each
    group; where their ranks add up to the full rank or more that would be larger than the matrix, and the edit is
    dense.

    More clusters than rows are as many as rows.
    """
    import torch

    count = min(clusters, weight.shape[0])
    places = blocks(weight.shape[0], count) if grouping == "block" else subspaces(weight, count, keep, generator)
    lefts, rights = [], []
    for rows in places:
        u, s, vh = torch.linalg.svd(weight[rows], full_matrices=False)
        rank = keep.rank_for((len(rows), weight.shape[1]), s)
        left = weight.new_zeros(weight.shape[0], rank)
        left[rows] = u[:, :rank] * s[:rank]
        lefts.append(left)
        rights.append(vh[:rank])
    left, right = torch.cat(lefts, dim=1), torch.cat(rights)
    return Edit(left, right) if left.shape[1] < min(weight.shape) else DenseEdit(left @ right)


def blocks(rows: int, count: int) -> Sequence[Tensor]:
    """The places of the rows in contiguous groups, the first ones a row longer where they cannot be even."""
    import torch

    return torch.arange(rows).tensor_split(count)


def subspaces(weight: Tensor, count: int, keep: Keep, generator: Generator) -> Sequence[Tensor]:
    """The places of the rows `[m, n]` in groups, each near one subspace: k-subspaces (Bradley and Mangasarian 2000,
    doi:10.1023/A:1008324625522) from a random even start.

    In turn, each group's leading right singular vectors, as many as are to be kept of it, and each row to the subspace
    that holds most of its length; among equals to the first. A group may lose all of its rows.
    """
    import torch

    own = torch.randperm(weight.shape[0], generator=generator) % count
    own = own.to(weight.device)
    for _ in range(ROUNDS):
        held = []
        for group in range(count):
            rows = weight[own == group]
            if not len(rows):
                held.append(weight.new_full((weight.shape[0],), -1.0))
                continue
            _, s, vh = torch.linalg.svd(rows, full_matrices=False)
            rank = keep.rank_for((len(rows), rows.shape[1]), s)
            held.append((weight @ vh[:rank].T).square().sum(1))
        nearest = torch.stack(held).argmax(0)
        if torch.equal(nearest, own):
            break
        own = nearest
    return [rows for rows in ((own == group).nonzero()[:, 0] for group in range(count)) if len(rows)]
