"""Layers that share a basis (Basis Sharing, arXiv:2410.03765): the matrices of one kind of a few consecutive layers are
truncated as one, `W_l' = L_l R`, so that R `[k, n]` is stored once.

With M the matrices `[m, n]` of the group on top of each other, `[g m, n]`, and C the sum of the second moments of their
inputs, the best R and L_l of rank k for inputs as C has them are `R = U_k^T M` and the rows of U_k that stand for layer
l, U_k the leading eigenvectors of `M C M^T`. That is what the paper finds by whitening with a Cholesky factor of C,
which need not be positive definite here.

C is of all layers of the group together, and each layer sees only its own inputs. `refit: layer` (ours) keeps R and
gives each layer the best left factor for its own second moment C_l,

    L_l = W_l C_l R^T (R C_l R^T)^-1

which is never worse on the texts; alternating between the two factors would gain a little more. `refit: group` is the
released refit, for 40 % removed and more. All matrices are truncated, the documents go through the model once more, and
with C' the sum of the second moments of the group's inputs as they are then,

    L_l = W_l C' R^T (R C' R^T)^-1

one C' for all layers of the group; R stays, and the outputs aimed at are those of W_l on these inputs, not those of the
original model. Of all L_l it leaves the least error for inputs as C' has them, which is not the least for each layer's
own; on the inputs of the original model it would change nothing.

A group has one rank: by a budget of its own, by `keep.ranks`, which names it for each of its matrices, or by an
allocator (`allocate_ranks` with `factorisation: basis_sharing`) on the spectra of the groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from harness_ext.linalg.moments import add_ridge
from harness_ext.methods import Edit, method
from harness_ext.methods.feature_space import leading_directions, output_spectrum
from harness_ext.model.size import stored_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.methods.budget import Keep
    from harness_ext.model.layout import Matrix

Role = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "in_proj", "out_proj", "q_a_proj",
    "kv_a_proj", "q_b_proj", "kv_b_proj"
]  # fmt: skip
SHARED_ROLES: tuple[Role, ...] = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""What the released code shares in models of Llama's kind; the others are truncated each by itself."""
LAYERS_IN_GROUP = 2
Refit = Literal["none", "group", "layer"]
BY_GROUPS: Refit = "group"
"""The refit for which the documents go through the truncated model."""
REFITTED = "refitted to the compressed model's inputs"
"""Where the left factor is from, in the receipt."""
# What of the mean square of the shared coordinates is added to them, so that directions which no text shows stay.
_RIDGE = 1e-10


def groups_of(matrices: Sequence[Matrix], roles: Sequence[str], size: int) -> list[list[Matrix]]:
    """The matrices in groups that share: of one role, part and shape, `size` at a time in the order of the layers; each
    other matrix by itself.
    """

    def kind(matrix: Matrix) -> tuple[str, ...]:
        if matrix.role not in roles or matrix.expert is not None or matrix.layer is None:
            return (matrix.key,)
        return (str(matrix.role), str(matrix.part), str(matrix.shape))

    alike: dict[tuple[str, ...], list[Matrix]] = {}
    for matrix in matrices:
        alike.setdefault(kind(matrix), []).append(matrix)
    return [
        group[start : start + size]
        for group in (sorted(own, key=lambda matrix: matrix.layer or 0) for own in alike.values())
        for start in range(0, len(group), size)
    ]


class SharedBasis(NamedTuple):
    """What a group has in common. lefts: of each matrix `[m, k]`. right: `[k, n]`, of all. fallback: as in `Edit`."""

    lefts: tuple[Tensor, ...]
    right: Tensor
    fallback: str | None


def group_spectrum(weights: Sequence[Tensor], moments: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """M, the matrices of a group on top of each other, `[g m, n]`, and the leading eigenvalues and eigenvectors of
    `M C M^T`, as `output_spectrum` has them; in fp64.
    """
    import torch

    stacked = torch.cat([weight.double() for weight in weights])
    total = torch.stack([moment.double() for moment in moments]).sum(0)
    return stacked, *output_spectrum(stacked, total)


def shared_basis(
    weights: Sequence[Tensor], moments: Sequence[Tensor], keep: Keep, refit: Refit = "none"
) -> SharedBasis:
    """The factors of a group of matrices, each `[m, n]`, from the second moments `[n, n]` of their inputs; in fp64.

    keep: of the matrices on top of each other, `[g m, n]`: of `param_fraction`, what R takes counts once. Its energy is
    a share of the sum of the eigenvalues. refit: `group` takes the second moments of the truncated model, and comes
    later (`refitted_together`).
    """
    stacked, eigenvalues, eigenvectors = group_spectrum(weights, moments)
    rank = keep.rank_for((stacked.shape[0], stacked.shape[1]), eigenvalues.sqrt())
    directions, fallback = leading_directions(stacked, eigenvalues, eigenvectors, rank)
    right = directions.T @ stacked
    lefts = directions.split([len(weight) for weight in weights])
    if refit == "layer":
        lefts = tuple(
            refitted(left, right, weight.double(), moment.double())
            for left, weight, moment in zip(lefts, weights, moments, strict=True)
        )
    return SharedBasis(tuple(lefts), right, fallback)


def refitted_together(basis: SharedBasis, weights: Sequence[Tensor], moments: Sequence[Tensor]) -> SharedBasis:
    """The same right factor with the left ones that are best for the sum of these second moments `[n, n]`, in fp64.
    weights: those of the group, each `[m, n]`.
    """
    import torch

    total = torch.stack([moment.double() for moment in moments]).sum(0)
    right = basis.right.double()
    lefts = [
        refitted(left.double(), right, weight.double(), total)
        for left, weight in zip(basis.lefts, weights, strict=True)
    ]
    return basis._replace(lefts=tuple(lefts), right=right)


def refitted(left: Tensor, right: Tensor, weight: Tensor, moment: Tensor) -> Tensor:
    """The best left factor `[m, k]` for a right one `[k, n]` and a second moment `[n, n]` of the inputs of W `[m, n]`;
    where the texts do not tell, as it was.
    """
    import torch

    if not len(right):
        return left
    seen = moment @ right.T
    gram = right @ seen
    scale = gram.diagonal().mean()
    if not bool(scale > 0):
        return left
    gram = add_ridge((gram + gram.T) / 2, _RIDGE * scale)
    root, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed):
        return left
    # Of what the factors miss, so that the ridge pulls to the factor as it was.
    return left + torch.cholesky_solve(((weight - left @ right) @ seen).T, root).T


@method(summary="Truncate a few consecutive layers as one, so that they share a basis.")
def basis_sharing(
    weight: Tensor,
    /,
    *,
    input_second_moment: Tensor,
    shared_left: Tensor,
    shared_right: Tensor,
    shared_place: Tensor,
    keep: Keep,
    layers_in_group: Annotated[int, Field(ge=1)] = LAYERS_IN_GROUP,
    share: tuple[Role, ...] = SHARED_ROLES,
    refit: Refit = "none",
) -> Edit:
    """`W' = shared_left shared_right`, `[m, k]` and `[k, n]`, as `shared_basis` finds them for the group of W.

    input_second_moment: `[n, n]`, the mean of `x x^T` over tokens. shared_place: two whole numbers, the place of W in
    its group and how many it has; the first counts the basis. layers_in_group: so many consecutive layers of the step's
    share one; the last of an odd number has one of its own. share: the roles that do; all others are truncated by
    themselves, which is `svd-llm`. refit: `layer` by the inputs of each layer, `group` by those that the group has in
    the truncated model; see the module. `param_fraction` is of the numbers of a group, its basis counted once.
    """
    import torch

    place, count = shared_place.tolist()
    rows, columns = weight.shape
    rank = shared_left.shape[1]
    left, right = shared_left.to(weight), shared_right.to(weight)
    if rank > min(rows, columns):
        product = (shared_left @ shared_right).to(weight)
        one = torch.eye(min(rows, columns), dtype=weight.dtype, device=weight.device)
        left, right = (one, product) if rows <= columns else (product, one)
    origin = REFITTED if refit == BY_GROUPS else None
    return Edit(left, right, numbers=shared_numbers((rows, columns), rank, place, count), decomposition=origin)


def shared_numbers(shape: tuple[int, int], rank: int, place: int, count: int) -> int:
    """The numbers that one of `count` matrices `[m, n]` takes whose group shares a right factor `[rank, n]`, which the
    first of them counts; as many as it has where the group would not be smaller.
    """
    rows, columns = shape
    if stored_parameters((count * rows, columns), rank) == count * rows * columns:
        return rows * columns
    return rank * rows + (rank * columns if place == 0 else 0)
