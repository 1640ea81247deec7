"""Which matrices of a layer make up a component: the one that a step names, and those that feed it.

What a unit of an MLP is, or a value of a head, is spread over matrices: a row of each that feeds, a column of the one
that reads. Whether a model's matrices fit together so is told from roles, names and shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness_ext.errors import UserError
from harness_ext.model.layout import Layout, Matrix, check_not_shared


class ComponentKind(NamedTuple):
    """reader: the role that a step names. feeders: the roles that feed it; those of `optional` may be missing. what: a
    component in words.
    """

    reader: str
    feeders: tuple[str, ...]
    optional: frozenset[str]
    what: str


COMPONENTS = {
    "mlp": ComponentKind("down_proj", ("gate_proj", "up_proj"), frozenset({"gate_proj"}), "the MLP of a layer"),
    "values": ComponentKind("o_proj", ("v_proj",), frozenset(), "the values of an attention"),
}


def feeders_of(layout: Layout, matrix: Matrix, kind: str) -> dict[str, Matrix]:
    """The matrices that feed this one, by role. Raises UserError, in a sentence, where they do not make a component."""
    known = COMPONENTS[kind]
    if matrix.expert is not None:
        raise UserError(
            f"{matrix.key}: units of experts cannot be chosen, since each expert sees few tokens and its layer computes"
            " all of them in one call; choose a method for single matrices, such as svd-llm"
        )
    if matrix.role != known.reader or matrix.head is not None:
        raise UserError(
            f"{matrix.key}: this method edits {known.what} as a whole, and is given the matrix that reads what the"
            f" others make: set matrices=[{known.reader}]"
        )
    own = [
        other
        for other in layout.matrices
        if other.layer == matrix.layer and other.expert is None and _parent(other) == _parent(matrix)
    ]
    found: dict[str, Matrix] = {}
    for role in known.feeders:
        feeding = [other for other in own if other.role == role]
        if len(feeding) > 1 or (not feeding and role not in known.optional):
            raise UserError(
                f"{matrix.key}: {known.what} is edited as a whole, and {len(feeding)} matrices of it are its {role}:"
                " choose a method for single matrices, such as svd-llm"
            )
        if feeding:
            found[role] = feeding[0]
    check_not_shared([matrix, *found.values()], "what feeds it differs from layer to layer")
    if kind == "values":
        _check_heads(layout, matrix, found["v_proj"])
    else:
        _check_fit(layout, matrix, found)
    return found


def groups_of(layout: Layout, kind: str, role: str) -> int:
    """Among how many heads the rows or columns of a role are shared out; one where there are no heads."""
    heads = layout.heads
    if kind != "values" or heads is None:
        return 1
    return heads.queries if role == COMPONENTS[kind].reader else heads.key_values


def check_components(layout: Layout, matrices: Sequence[Matrix], kind: str | None) -> None:
    """Raise UserError naming the first matrix that reads from no component of this kind; kind: None asks for none."""
    for matrix in matrices if kind is not None else ():
        assert kind is not None
        feeders_of(layout, matrix, kind)


def _check_heads(layout: Layout, matrix: Matrix, values: Matrix) -> None:
    heads = layout.heads
    if heads is None or layout.no_heads is not None:
        raise UserError(f"{matrix.key}: its heads cannot be told apart: {layout.no_heads}; choose another method")
    if matrix.shape[1] != heads.queries * heads.width or values.shape[0] != heads.key_values * heads.width:
        raise UserError(
            f"{matrix.key} reads {matrix.shape[1]} numbers and {values.key} makes {values.shape[0]}, which are not"
            f" {heads.queries} and {heads.key_values} heads of {heads.width}: choose another method"
        )


def _check_fit(layout: Layout, matrix: Matrix, feeders: dict[str, Matrix]) -> None:
    width = matrix.shape[1]
    for other in feeders.values():
        if other.shape[0] != width:
            raise UserError(
                f"{matrix.key} reads {width} numbers and {other.key} makes {other.shape[0]}: they are not of the same"
                " units, and cannot be chosen together"
            )
    for name, length in layout.vectors.items():
        if length == width and name.startswith(f"{_parent(matrix)}.") and "norm" in name:
            raise UserError(
                f"{matrix.key} reads what {name} has normalised over all units: without some of them the others would"
                " change too; choose a method for single matrices, such as svd-llm"
            )


def _parent(matrix: Matrix) -> str:
    return matrix.module.rpartition(".")[0]
